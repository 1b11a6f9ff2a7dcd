"""Train the trunk on the source set first, once for every run that starts from the same trunk."""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
import warnings
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from torch import Tensor

import jtln
from jtln.data.pairs import Pair
from jtln.data.transforms import Augment
from jtln.errors import UserError
from jtln.module import JTLN
from jtln.schedules import Schedule
from jtln.storage import kept_if_possible, replacing
from jtln.training.trainer import Budget, TrainerSettings, fit, make_trainer, pair_data
from jtln.trunks.base import Trunk

_DECISION = "JTLN_PRETRAINED"  # what the first process found in the cache, for those that it starts
_FORMAT = 1  # of the cached file; raised when what a key stands for changes


@dataclass(frozen=True)
class Pretraining:
    """How the trunk is trained on the source set.

    Attributes:
        budget: epochs, steps and source batch size.
        passes: whether an epoch is not the budget's, but one pass over the source training set, of 75 to 1000 steps.
        seed: of initialisation, order and augmentation; not the run's, so that all runs share one trunk.
        optimizer, lr_schedule: as :class:`JTLN` takes them; the trunk learns at the heads' rate.
    """

    budget: Budget
    seed: int
    optimizer: Callable[[Iterable[dict[str, Any]]], torch.optim.Optimizer]
    lr_schedule: Schedule
    passes: bool = False

    def fitted(self, images: int) -> Pretraining:
        """The same for a source training set of so many images: no batch holds an image twice."""
        batch = min(self.budget.source_batch_size, images)
        steps = min(max(-(-images // batch), 75), 1000) if self.passes else self.budget.steps_per_epoch
        return replace(self, budget=replace(self.budget, source_batch_size=batch, steps_per_epoch=steps), passes=False)


@dataclass(frozen=True)
class Pretrained:
    """A trunk trained on the source set, with the source head that it was trained with."""

    state: dict[str, Tensor]  # names as in JTLN: trunk.*, source_head.*
    key: str  # the hash of all that it depends on
    cached: bool  # whether it was there already
    accuracy: float  # on the source validation part, in [0, 1]

    def load_into(self, module: JTLN) -> None:
        """Start ``module``'s trunk and source head from these weights."""
        wanted = set(module.state_dict())
        module.load_state_dict({key: value for key, value in self.state.items() if key in wanted}, strict=False)


def cache_key(pair: Pair, trunk: Trunk, settings: Pretraining, augment: Augment | None, depends: dict[str, Any]) -> str:
    """The hash of everything that the pre-trained weights depend on.

    Args:
        depends: what only the caller knows: the configuration of trunk, weights, optimizer and precision.
    """
    facts = {
        "format": _FORMAT,
        "versions": [jtln.__version__, torch.__version__.split("+")[0]],
        "images": pair.source.train.fingerprint(),
        "classes": pair.source.classes.names,
        "image_size": pair.image_size,
        "trunk": trunk.name,
        "budget": asdict(settings.budget),
        "seed": settings.seed,
        "lr_schedule": repr(settings.lr_schedule),
        "augment": None if augment is None else repr(augment),
        "depends": depends,
    }
    return hashlib.sha256(json.dumps(facts, sort_keys=True, default=str).encode()).hexdigest()[:20]


def pretrain(
    pair: Pair,
    make_trunk: Callable[[], Trunk],
    settings: Pretraining,
    trainer_settings: TrainerSettings,
    *,
    augment: Augment | None,
    cache: Path | None,
    depends: dict[str, Any],
    num_workers: int | None = None,
) -> Pretrained:
    """The pre-trained trunk: from the cache, or trained now and put there.

    Args:
        cache: a folder that all runs share; None keeps nothing.
    """
    pl.seed_everything(settings.seed, verbose=False)
    trunk = make_trunk()
    key = cache_key(pair, trunk, settings, augment, depends)
    path = None if cache is None else cache / "pretrained" / f"{trunk.name}-{key}.pt"
    kept = _read(path, key) if path is not None and path.is_file() else None
    if kept is not None and _agreed(key, cached=True):
        return kept
    if not _agreed(key, cached=False):
        raise UserError(
            "the first process found the pre-trained trunk in its cache, but this one did not: give all machines the "
            "same folder with cache=DIR"
        )

    module = JTLN(
        trunk,
        pair.source.classes,
        pair.target.classes,
        lambda_target=0.0,
        lambda_source=1.0,
        optimizer=settings.optimizer,
        trunk_lr_factor=1.0,
        lr_schedule=settings.lr_schedule,
    )
    data = pair_data(
        pair,
        trunk,
        settings.budget,
        seed=settings.seed,
        augment=augment,
        use_target=False,
        num_workers=num_workers,
    )
    with tempfile.TemporaryDirectory() as folder:
        trainer = make_trainer(
            trainer_settings,
            settings.budget,
            Path(folder),
            description="pre-training",
            keep_checkpoints=False,
            hidden=("target val",),
        )
        fit(trainer, module, data)
        accuracy = float(trainer.callback_metrics["val/source/accuracy"])
    state = {
        name: value.detach().cpu().clone()
        for name, value in module.state_dict().items()
        if name.startswith(("trunk.", "source_head."))
    }
    if path is not None and trainer.is_global_zero:
        with kept_if_possible("the pre-trained trunk", "every run trains it again"), replacing(path) as file:
            torch.save({"state": state, "accuracy": accuracy}, file)
    return Pretrained(state, key, False, accuracy)


def reset() -> None:
    """What an earlier run in this process found in the cache must not reach the processes that this run starts."""
    if os.environ.get("LOCAL_RANK", "0") == "0":
        os.environ.pop(_DECISION, None)


def _agreed(key: str, cached: bool) -> bool:
    """Whether the first process, too, takes (or does not take) the cached trunk.

    It looks before it starts the others, which look seconds later: by then another run may have put the file there,
    and a process that goes on without pre-training would leave the others waiting for ever.
    """
    found = f"{key}:{int(cached)}"
    if os.environ.get("LOCAL_RANK", "0") == "0":
        os.environ[_DECISION] = found
        return True
    return os.environ.pop(_DECISION, found) == found  # once: in a later job of a multirun all look at the same time


def _read(path: Path, key: str) -> Pretrained | None:
    """What the cache holds; None where the file is broken, by a full disk, say."""
    try:
        kept = torch.load(path, map_location="cpu", weights_only=True)
        return Pretrained(kept["state"], key, True, kept["accuracy"])
    except Exception as error:  # what torch.load raises depends on where the file was cut off
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        warnings.warn(f"the cached trunk {path} cannot be read and is trained again: {reason}", stacklevel=2)
        return None
