"""The loggers and callbacks that a configuration names: a group's files may be combined, and one's own are taken."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from hydra.errors import InstantiationException
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf
from pytorch_lightning.callbacks import Callback
from pytorch_lightning.loggers import Logger

from jtln.cli.overrides import config_dir
from jtln.cli.wandb_logger import wandb_logger
from jtln.errors import UserError, unknown

_CSV = "csv"  # metrics.csv is written anyway
_WANDB = "wandb"  # without a _target_ it is :func:`wandb_logger`


def make_loggers(
    node: Mapping[Any, Any], config: dict[str, Any], dataset: str, choices: Any, folder: Path
) -> list[Logger]:
    """Return the loggers beside ``metrics.csv``, each by its name in ``node``.

    The other arguments are those of :func:`wandb_logger`.
    """
    made: list[Logger] = []
    for name, settings in node.items():
        if name == _WANDB and settings and "_target_" not in settings:
            _check_wandb(settings)
            made.append(wandb_logger(settings, config, dataset, choices, folder))
        elif name != _CSV:
            made.append(_made("logger", str(name), settings))
    return made


def _check_wandb(settings: Any) -> None:
    known = yaml.safe_load((config_dir() / "logger" / f"{_WANDB}.yaml").read_text(encoding="utf-8"))[_WANDB]
    for key in map(str, settings):
        if key not in known:
            raise unknown("key in 'logger.wandb'", key, sorted(known))
    for key in ("project", "entity", "group", "name"):
        if not isinstance(settings.get(key), str | None):
            raise UserError(f"expected text or null for logger.wandb.{key}, but got {settings[key]}")
    if not OmegaConf.is_list(settings.tags) or not all(isinstance(each, str) for each in settings.tags):
        raise UserError(f"expected a list of words for logger.wandb.tags, but got {settings.tags}")


def make_callbacks(node: Mapping[Any, Any]) -> Sequence[Callback]:
    """Return the callbacks, each by its name in ``node``."""
    return [_made("callbacks", str(name), settings) for name, settings in node.items()]


def _made(group: str, name: str, settings: Any) -> Any:
    key, kind = f"{group}.{name}", {"logger": Logger, "callbacks": Callback}[group]
    if not isinstance(settings, DictConfig) or "_target_" not in settings:
        raise UserError(f"expected a _target_ in {key}, the class of a {kind.__name__}, but got {settings!r}")
    try:
        made = instantiate(settings, _convert_="all")
    except InstantiationException as error:
        if isinstance(error.__cause__, ImportError) and str(settings["_target_"]).startswith("pytorch_lightning."):
            raise UserError(f"expected the package {name} for {group}={name}: pip install {name}") from error
        cause = error.__cause__ or error
        reason = (str(cause).strip().splitlines() or [""])[0]
        raise UserError(
            f"expected what {settings['_target_']} takes in {key}, but got {type(cause).__name__}: {reason}"
        ) from error
    if not isinstance(made, kind):
        raise UserError(f"expected a {kind.__module__}.{kind.__name__} for {key}, but got {made!r}")
    return made
