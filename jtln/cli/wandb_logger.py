"""The Weights & Biases logger of a run."""

from __future__ import annotations

import netrc
import os
import secrets
from pathlib import Path
from typing import Any
from urllib.parse import urlparse

from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig
from pytorch_lightning.loggers import Logger

from jtln.errors import UserError

MODES = ("auto", "online", "offline", "disabled")
_KEYS = ("project", "entity", "group", "name", "tags", "mode", "checkpoint")
ID_FILE = "wandb_id.txt"


def wandb_logger(settings: DictConfig, config: dict[str, Any], dataset: str, choices: Any, folder: Path) -> Logger:
    """Return the logger: a W&B run of its own for this job, which a resumed run goes on with.

    It is offline where no key is configured, so that nobody is asked for one.

    Args:
        settings: ``conf/logger/wandb.yaml``, and further arguments of Lightning's ``WandbLogger``.
        config: the whole resolved configuration, by which dashboards filter.
        dataset: its name.
        choices: of the configuration groups.
        folder: of the run; keeps the id of the W&B run.
    """
    import wandb

    from jtln.training.wandb_run import RunLogger

    try:
        wandb.Settings(project=settings.project, run_tags=tuple(settings.tags))
    except (wandb.Error, ValueError) as error:
        reason = " ".join(str(error).split())
        raise UserError(
            f"expected what W&B takes for logger.wandb.project and logger.wandb.tags, but it says: {reason}"
        ) from error
    if settings.mode not in MODES:
        raise UserError(f"expected logger.wandb.mode to be one of {', '.join(MODES)}, but got {settings.mode}")
    mode = settings.mode
    if mode == "auto":
        mode = os.environ.get("WANDB_MODE") or ("online" if _has_key() else "offline")
    os.environ.setdefault("WANDB_SILENT", "true")
    multirun = HydraConfig.get().mode == RunMode.MULTIRUN
    short = [choices.method, choices.head, choices.cost, f"seed{config['seed']}"]
    return RunLogger(
        checkpoint=bool(settings.checkpoint),
        project=settings.project,
        entity=settings.entity,
        group=settings.group or (folder.parent.name if multirun else None),
        job_type=f"{choices.method} {choices.head}",
        name=settings.name or " ".join(map(str, short)),
        tags=[*settings.tags, dataset],
        config=config,
        id=_id(folder),
        resume="allow",
        save_dir=folder,
        offline=mode == "offline",
        mode=mode,
        reinit="finish_previous",
        **{str(key): value for key, value in settings.items() if key not in _KEYS},
    )


def _id(folder: Path) -> str:
    """Return the id of the folder's W&B run: that of the run which is resumed, or of a W&B sweep, or a new one."""
    path = folder / ID_FILE
    if path.is_file() and (known := path.read_text(encoding="utf-8").strip()):
        return known
    given = os.environ.get("WANDB_RUN_ID") if "WANDB_SWEEP_ID" in os.environ else None
    new = given or secrets.token_hex(4)
    folder.mkdir(parents=True, exist_ok=True)
    if os.environ.get("LOCAL_RANK", "0") == "0":
        path.write_text(f"{new}\n", encoding="utf-8")
    return new


def _has_key() -> bool:
    if os.environ.get("WANDB_API_KEY"):
        return True
    host = urlparse(os.environ.get("WANDB_BASE_URL", "https://api.wandb.ai")).hostname or ""
    try:
        return netrc.netrc(os.environ.get("NETRC")).authenticators(host) is not None
    except (OSError, netrc.NetrcParseError):
        return False
