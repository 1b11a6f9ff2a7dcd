"""From the composed configuration to the objects of a run."""

from __future__ import annotations

import netrc
import os
import shlex
from dataclasses import fields
from importlib.metadata import version
from pathlib import Path
from typing import Any
from urllib.parse import urlparse

import platformdirs
import torch
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf
from pytorch_lightning.loggers import Logger
from torch.nn import Parameter

from jtln.cli.study import config_dir_given, overrides_given
from jtln.data.pairs import PairSpec
from jtln.data.transforms import VIEWS
from jtln.errors import UserError, unknown
from jtln.schedules import Cosine
from jtln.study.job import row_hash, settings_hash
from jtln.training.experiment import Experiment, Method, check_fit
from jtln.training.pretraining import Pretraining
from jtln.training.trainer import Budget, TrainerSettings
from jtln.trunks.base import Trunk
from jtln.trunks.weights import is_fetched, weights_digest


def build(config: DictConfig) -> Experiment:
    """The experiment that ``config`` describes; a UserError says which of its values cannot be."""
    hydra = HydraConfig.get()
    choices = DictConfig(hydra.runtime.choices)
    overrides = [o for o in overrides_given(hydra) if not o.startswith("resume=")]
    folder = Path(hydra.runtime.output_dir)
    config = OmegaConf.masked_copy(config, [str(key) for key in config if key != "study"])  # this is one run
    settings: Any = OmegaConf.to_container(config, resolve=True)
    # What follows the seed (dataset.split_seed=${seed}) is the same in all runs of a row.
    of_row: Any = OmegaConf.to_container(OmegaConf.merge(config, {"seed": "*"}), resolve=True)
    smoke = bool(config.debug.smoke)
    budget = _budget(config)
    if smoke:
        config = _shrunk(config)
        budget = _budget(config)
    # Images are kept decoded in the user's cache folder, too, where the configuration names none.
    spec = instantiate(OmegaConf.merge(config, {"cache": str(_cache(config))}).dataset)
    trunk: Any = OmegaConf.to_container(config.trunk, resolve=True)
    trunk_weights = str(config.trunk.get("weights", "none"))

    def make_trunk() -> Trunk:
        return instantiate(config.trunk, image_size=spec.image_size)

    return Experiment(
        method=_method(config),
        dataset=spec.name,
        cost_name=_cost_name(config, choices),
        spec=spec,
        cost=instantiate(config.cost),
        make_trunk=make_trunk,
        budget=budget,
        optimizer=_optimizer(config),
        lr_schedule=instantiate(config.schedule),
        trunk_lr_factor=float(config.trunk_lr_factor),
        trainer=_trainer(config.trainer),
        folder=folder,
        seed=_seed(config, "seed"),
        augment=bool(config.augment),
        pretraining=_pretraining(config) if config.pretrain.source else None,
        pretraining_depends={
            "trunk": trunk,
            "weights": weights_digest(trunk_weights),
            "optimizer": str(config.pretrain.get("lr")),
            "torchvision": version("torchvision"),  # whose default ImageNet weights may change
            "trainer": {key: value for key, value in config.trainer.items() if key != "progress_bar"},
        },
        trunk=trunk,
        cache=None if smoke else _cache(config),
        num_workers=_num_workers(config),
        test_views=_test_views(config, spec),
        loggers=[_wandb(config.logger, spec.name, choices, overrides, folder)] if config.logger.wandb else [],
        negative_transfer="off" if config.negative_transfer is False else str(config.negative_transfer),  # YAML's off
        made_images=int(config.debug.per_class) if smoke else None,
        seed_draws_classes=of_row["dataset"].get("split_seed") == "*",
        resume=config.resume is not None,
        config=OmegaConf.to_yaml(config, resolve=True),
        overrides=overrides,
        command=" ".join(["python train.py", *map(shlex.quote, (*config_dir_given(hydra), *overrides))]),
        settings={"run": settings_hash(settings), "row": row_hash(of_row)},
    )


def _method(config: DictConfig) -> Method:
    known = [field.name for field in fields(Method)]
    for key in map(str, config.method):
        if key not in known:  # given with +
            raise unknown("key in 'method'", key, known)
    return Method(**instantiate(config.method, _convert_="all"))


def check(config: DictConfig, spec: PairSpec) -> None:
    """Raise what a run with these values would before it reads an image: cheap.

    Args:
        spec: of its data set.
    """
    _budget(config)
    method, cost = _method(config), instantiate(config.cost)
    check_fit(method, cost, type(cost).__name__.removesuffix("Cost").lower(), bool(config.pretrain.source))
    if method.uses_cost and cost.updates == "never":
        cost.matrix(spec.source_classes, spec.target_classes)  # a class that it does not know
    _optimizer(config)
    instantiate(config.schedule)
    _num_workers(config)
    if config.pretrain.source:
        _pretraining(config)


def _budget(config: DictConfig) -> Budget:
    keys = ("epochs", "steps_per_epoch", "batch_size.source", "batch_size.target")
    return Budget(*(_at_least(config, key, 1) for key in keys))


def _optimizer(config: DictConfig) -> Any:
    """From parameter groups to an optimizer, tried on a parameter of its own: a wrong rate is said now."""
    optimizer = instantiate(config.optimizer)
    try:
        optimizer([Parameter(torch.zeros(1))])
    except (TypeError, ValueError) as error:
        raise UserError(f"the optimizer cannot be had as configured (optimizer.*): {error}") from error
    return optimizer


def _num_workers(config: DictConfig) -> int | None:
    if isinstance(config.num_workers, str):
        if config.num_workers == "auto":
            return None
        raise UserError(f"expected auto or a whole number >= 0 for num_workers, but got {config.num_workers!r}")
    return _at_least(config, "num_workers", 0)


def _test_views(config: DictConfig, spec: PairSpec) -> str:
    if config.test_views not in VIEWS:
        raise unknown("test_views", config.test_views, VIEWS)
    if config.test_views == "ten_crop" and spec.stored_size == spec.image_size:
        raise UserError(
            f"expected images larger than the network's {spec.image_size} pixels for test_views=ten_crop, but got them "
            "of that size: set dataset.stored_size to a larger one where the dataset has it, or test_views=flip"
        )
    return str(config.test_views)


def _shrunk(config: DictConfig) -> DictConfig:
    """``debug=smoke``: a step or two of everything."""
    size = config.debug.batch_size
    small = {
        "epochs": 2,
        "steps_per_epoch": 1,
        "batch_size": {
            "source": min(size, config.batch_size.source),
            "target": min(size, config.batch_size.target),
        },
    }
    if config.pretrain.source:
        small["pretrain"] = {"epochs": 1, "steps_per_epoch": 1, "batch_size": size}
    if is_fetched(str(config.trunk.get("weights"))):
        small["trunk"] = {"weights": "none"}
    return OmegaConf.merge(config, small)  # type: ignore[return-value]


def _pretraining(config: DictConfig) -> Pretraining:
    from functools import partial

    from torch.optim import AdamW

    settings = config.pretrain
    passes = settings.steps_per_epoch == "auto"
    for key in ("epochs", "batch_size") if passes else ("epochs", "steps_per_epoch", "batch_size"):
        _at_least(config, f"pretrain.{key}", 1)
    budget = Budget(settings.epochs, 1 if passes else settings.steps_per_epoch, settings.batch_size, 1)
    if not settings.lr > 0:
        raise UserError(f"expected pretrain.lr > 0, but got {settings.lr}")
    optimizer = partial(AdamW, lr=float(settings.lr), weight_decay=1e-2)
    return Pretraining(budget, _seed(config, "pretrain.seed"), optimizer, Cosine(warmup=0.1), passes)


def _seed(config: DictConfig, key: str) -> int:
    seed = _at_least(config, key, 0)
    if seed >= 2**32:  # NumPy's and Lightning's limit
        raise UserError(f"expected a whole number from 0 to {2**32 - 1} for {key}, but got {seed}")
    return seed


def _at_least(config: DictConfig, key: str, least: int) -> int:
    value = OmegaConf.select(config, key)
    if not isinstance(value, int) or isinstance(value, bool) or value < least:
        raise UserError(f"expected a whole number >= {least} for {key}, but got {value!r}")
    return value


def _trainer(settings: DictConfig) -> TrainerSettings:
    options: dict[str, Any] = OmegaConf.to_container(settings, resolve=True)  # type: ignore[assignment]
    bar = bool(options.pop("progress_bar", True))
    if options.get("deterministic") is True:
        options["deterministic"] = "warn"  # the backward pass of AlexNet's adaptive pooling has no such form on a GPU
    return TrainerSettings({str(key): value for key, value in options.items()}, bar)


def _cost_name(config: DictConfig, choices: DictConfig) -> str:
    """The group's choice with its metric, or with the cost that it is made of: "permuted wordnet (wup)"."""
    inner = choices.get("cost@cost.of")
    name = str(choices.cost) if inner is None else f"{choices.cost} {inner}"
    metric = OmegaConf.select(config, "cost.metric" if inner is None else "cost.of.metric")
    return name if metric is None else f"{name} ({metric})"


def _cache(config: DictConfig) -> Path:
    named = config.cache or os.environ.get("JTLN_CACHE")
    return Path(named).expanduser() if named else platformdirs.user_cache_path("jtln")


def _wandb(settings: DictConfig, dataset: str, choices: Any, overrides: list[str], folder: Path) -> Logger:
    """A W&B run of its own for this job; offline where no key is configured, so that nobody is asked for one."""
    import wandb
    from pytorch_lightning.loggers import WandbLogger

    try:
        wandb.Settings(project=settings.project, run_tags=tuple(settings.tags))
    except (wandb.Error, ValueError) as error:
        reason = " ".join(str(error).split())
        raise UserError(f"expected what W&B takes for logger.project and logger.tags, but it says: {reason}") from error
    modes = ("auto", "online", "offline", "disabled")
    if settings.mode not in modes:
        raise UserError(f"expected logger.mode to be one of {', '.join(modes)}, but got {settings.mode}")
    mode = settings.mode
    if mode == "auto":
        mode = os.environ.get("WANDB_MODE") or ("online" if _has_wandb_key() else "offline")
    os.environ.setdefault("WANDB_SILENT", "true")
    multirun = HydraConfig.get().mode == RunMode.MULTIRUN
    return WandbLogger(
        project=settings.project,
        entity=settings.entity,
        group=settings.group or (folder.parent.name if multirun else None),
        name=settings.name or " ".join(overrides) or f"{choices.method}-{dataset}-{choices.cost}",
        tags=list(settings.tags),
        save_dir=folder,
        offline=mode == "offline",
        mode=mode,
        reinit="finish_previous",
    )


def _has_wandb_key() -> bool:
    if os.environ.get("WANDB_API_KEY"):
        return True
    host = urlparse(os.environ.get("WANDB_BASE_URL", "https://api.wandb.ai")).hostname or ""
    try:
        return netrc.netrc(os.environ.get("NETRC")).authenticators(host) is not None
    except (OSError, netrc.NetrcParseError):
        return False
