"""Train the trunk on the source set first, once for every run that starts from the same trunk; or its head alone."""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
import warnings
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from filelock import FileLock, Timeout
from torch import Tensor, nn
from torch.nn.functional import linear

import jtln
from jtln.data.features import Batch, Features
from jtln.data.pairs import Pair
from jtln.data.transforms import Augment
from jtln.distributed import first_decides, gather_in_order
from jtln.errors import UserError
from jtln.heads.logistic import regression
from jtln.methods import Method
from jtln.module import JTLN, Optimization, not_finite
from jtln.storage import clear_leftovers, kept_if_possible, read_torch, save_torch
from jtln.temperature import fit_temperature
from jtln.training.trainer import Budget, TrainerSettings, fit, make_trainer, pair_data
from jtln.trunks import Trunk

_FORMAT = 2  # of the cached file; raised when what a key stands for changes
METHOD = Method("pretraining", lambda_target=0.0, lambda_source=1.0)
MOST_SOURCE_IMAGES = 20_000  # for the fit of the source head: a regression holds all of their features at once
SOURCE_LENGTH = 5.0  # mean length of their features, as in head=logistic
SOURCE_TOLERANCE = 1e-2  # of the gradient of a sum of cross-entropies over thousands of images


@dataclass(frozen=True)
class Pretraining:
    """The settings of the trunk's training on the source set.

    Attributes:
        budget: epochs, steps and source batch size.
        seed: of initialisation, order and augmentation; not the run's, so that all runs share one trunk.
        optimization: of the trunk and the source head.
        passes: whether an epoch is not the budget's, but one pass over the source training set, of 75 to 1000 steps.
    """

    budget: Budget
    seed: int
    optimization: Optimization
    passes: bool = False

    def fitted(self, images: int) -> Pretraining:
        """Return the same for a source training set of so many images: no batch holds an image twice."""
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

    def load_into(self, trunk: Trunk, source_head: nn.Linear) -> None:
        """Start trunk and source head from these weights."""
        for module, prefix in ((trunk, "trunk."), (source_head, "source_head.")):
            state = {k.removeprefix(prefix): value for k, value in self.state.items() if k.startswith(prefix)}
            module.load_state_dict(state)


def cache_key(pair: Pair, trunk: Trunk, settings: Pretraining, augment: Augment | None, depends: dict[str, Any]) -> str:
    """Return the hash of everything that the pre-trained weights depend on.

    Args:
        pair: its source images and classes count.
        trunk: its name counts.
        settings: of the pre-training.
        augment: of the training images; None: none.
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
        "lr_schedule": repr(settings.optimization.schedule),
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
    """Return the pre-trained trunk: from the cache, or trained now and put there.

    One run trains it; others that want the same trunk at the same time wait for it.

    Args:
        pair: its source images are trained on.
        make_trunk: returns the network that training starts from.
        settings: of the pre-training.
        trainer_settings: of the Trainer.
        augment: of the training images; None: none.
        cache: a folder that all runs share; None keeps nothing.
        depends: see :func:`cache_key`.
        num_workers: of each loader; None chooses it.

    Raises:
        UserError: the processes of this run do not see the same cache.
    """
    pl.seed_everything(settings.seed, verbose=False)
    trunk = make_trunk()
    trunk.frozen = False
    key = cache_key(pair, trunk, settings, augment, depends)
    path = None if cache is None else cache / "pretrained" / f"{trunk.name}-{key}.pt"
    with _only_one(path):
        kept = None if path is None else _read(path, key)
        if first_decides(f"pretrained-{key}", kept is not None):
            if kept is None:
                raise UserError(
                    "expected the pre-trained trunk in the cache, where the first process found it, but this one did "
                    "not: give all machines the same folder with cache=DIR"
                )
            return kept
        trained = _train(pair, trunk, settings, trainer_settings, augment, num_workers)
        if path is not None and os.environ.get("LOCAL_RANK", "0") == "0":
            with kept_if_possible("the pre-trained trunk", "every run trains it again"):
                clear_leftovers(path.parent, path.name)
                save_torch({"state": trained.state, "accuracy": trained.accuracy}, path)
        return replace(trained, key=key)


@torch.no_grad()
def fit_source_head(source_head: nn.Linear, features: Features) -> int:
    """Fit the source head to the trunk's features as they are, by logistic regression (:mod:`jtln.heads.logistic`).

    The source's validation images, if there are any, choose its temperature. All processes fit the same head, to the
    images of all.

    Args:
        source_head: (D, S), changed in place.
        features: of the pair; the regression reads at most 20,000 source images, evenly spread over the training part.

    Returns:
        The number of images that the regression read.

    Raises:
        UserError: there is no source image, or features are not finite.
    """
    dim, classes = source_head.in_features, source_head.out_features
    rows, labels = _gathered(features.of("source", at_most=MOST_SOURCE_IMAGES), dim, features.device)
    if not len(rows) or not bool(rows.isfinite().all()):
        got = "others" if len(rows) else "none"
        raise UserError(f"expected finite features of source images for pretrain=head, but got {got}")
    scale = SOURCE_LENGTH / max(float(rows.norm(dim=1).mean()), 1e-12)
    found = regression(rows * scale, labels, classes, tolerance=SOURCE_TOLERANCE)
    weight, bias, tau = found.weight * scale, found.bias, 1.0
    held_out, their_labels = _gathered(features.of("source", "val"), dim, features.device)
    if len(held_out):
        tau = fit_temperature([(linear(held_out, weight, bias), their_labels)]).temperature
    source_head.weight.copy_(weight / tau)
    source_head.bias.copy_(bias / tau)
    return len(rows)


def _gathered(batches: Iterable[Batch], dim: int, device: torch.device | str) -> tuple[Tensor, Tensor]:
    """Return features (N, D), float64, and labels (N,) of all processes' images, on the CPU.

    A process may have none.
    """
    empty = torch.zeros(0, dim, device=device), torch.zeros(0, dtype=torch.long, device=device)
    found = [empty, *((x, y.to(device)) for x, y in batches)]
    rows, labels = (gather_in_order(torch.cat([batch[k] for batch in found])).cpu() for k in (0, 1))
    return rows.double(), labels


def _train(
    pair: Pair,
    trunk: Trunk,
    settings: Pretraining,
    trainer_settings: TrainerSettings,
    augment: Augment | None,
    num_workers: int | None,
) -> Pretrained:
    classes = len(pair.source.classes), len(pair.target.classes)
    module = JTLN(trunk, *classes, METHOD, optimization=settings.optimization)
    data = pair_data(pair, trunk, settings.budget, seed=settings.seed, augment=augment, num_workers=num_workers)
    data.use_target = False
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
    return Pretrained(state, "", False, accuracy)


@contextmanager
def _only_one(path: Path | None) -> Iterator[None]:
    """Hold the lock of a cached trunk; another run's first process waits here until it is free.

    Where the file system has no locks or may not be written, the run goes on without one.
    """
    if path is None or os.environ.get("LOCAL_RANK", "0") != "0":
        yield
        return
    lock = FileLock(path.with_suffix(".lock"))
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            lock.acquire(timeout=0)
        except Timeout:
            print(f"waiting    another run trains the same trunk: {path}", flush=True)
            lock.acquire()
    except (OSError, NotImplementedError):
        yield
        return
    try:
        yield
    finally:
        lock.release()


def _read(path: Path, key: str) -> Pretrained | None:
    """Read the cached trunk; None where there is no file, or a broken one."""
    if not path.is_file():
        return None
    try:
        kept = read_torch(path)
        if (name := not_finite(kept["state"])) is not None:
            raise ValueError(f"{name} is not finite")
        return Pretrained(kept["state"], key, True, kept["accuracy"])
    except Exception as error:  # what torch.load raises depends on where the file was cut off
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        warnings.warn(f"the cached trunk {path} cannot be read and is trained again: {reason}", stacklevel=2)
        return None
