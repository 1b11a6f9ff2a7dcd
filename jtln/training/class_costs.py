"""The cost matrix of a run: read before training, calibrated, and kept up to date while features change."""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import Callback
from torch import Tensor, nn

from jtln.costs import Cost, SourceHead, is_constant
from jtln.costs.calibration import Calibration, calibrate
from jtln.data.features import Features
from jtln.data.pairs import Pair
from jtln.errors import UserError
from jtln.heads import AUTO, Head, SourcePlan
from jtln.heads.logistic import at_length, choose_alpha, labelled
from jtln.methods import Method
from jtln.module import JTLN
from jtln.names.class_set import ClassSet
from jtln.transport import TransportedPrior, TransportLoss, TransportSettings, class_plan, relation

DEFAULT_ALPHA = 0.5  # weight of the prior where one label a class cannot choose it


@dataclass(frozen=True)
class RunCost:
    """The cost matrix at the start of training.

    Attributes:
        given: (S, T) as the cost has it.
        used: (S, T) for the transport loss and the head: calibrated where that was asked for.
        calibration: its outcome; None where there was none.
    """

    given: Tensor
    used: Tensor
    calibration: Calibration | None = None

    def loss(self, method: Method, settings: TransportSettings) -> TransportLoss | None:
        """Return the transport loss under this cost; None where the method has no transport term."""
        if not method.uses_transport:
            return None
        return TransportLoss(
            self.used,
            settings.epsilon,
            gradient=method.gradient,
            max_iterations=settings.max_iterations,
            tolerance=settings.tolerance,
        )


def read_cost(
    cost: Cost, pair: Pair, features: Features, source_head: nn.Linear, settings: TransportSettings, calibrates: bool
) -> RunCost:
    """Read the cost and calibrate it, before the loss is built.

    Args:
        cost: the metric.
        pair: whose classes it relates.
        features: under the trunk as training starts from it.
        source_head: likewise.
        settings: how it is used.
        calibrates: whether the labelled images calibrate it.
    """
    source, target = pair.source.classes, pair.target.classes
    if cost.updates == "ema":  # no features yet: the first step has a constant cost
        cost.prepare((len(source), len(target)), source_head.in_features)
        constant = torch.ones(len(source), len(target))
        return RunCost(constant, constant)
    if cost.updates != "never":
        _fit(cost.to(features.device), pair, features, source_head)
    given = cost.matrix(source, target)
    if not calibrates:
        return RunCost(given, given)
    logits = ((_logits(source_head, rows), labels) for rows, labels in features.of("target"))
    unknown = cost.unknown(source, target).target
    used, calibration = calibrate(given.to(features.device), settings.epsilon, logits, unknown)
    return RunCost(given, used.cpu(), calibration)


def source_plan(
    cost: Cost, classes: ClassSet, calibration: Calibration | None, settings: TransportSettings
) -> SourcePlan | None:
    """Return what gives plans between source classes, as sharp as the plan between source and target classes.

    Args:
        cost: that relates source and target classes.
        classes: the source's.
        calibration: of the cost on the labelled images; its epsilon is a share of the cost's range.
        settings: whose epsilon is in the cost's units, for a cost that was not calibrated.

    Returns:
        None where the cost follows features, does not relate source classes to each other, or was found to be of no
        use.
    """
    if cost.updates != "never" or (calibration is not None and math.isinf(calibration.epsilon)):
        return None
    try:
        matrix = copy.deepcopy(cost).matrix(classes, classes)  # a cost may remember the classes that it was asked for
    except UserError:
        return None

    def plan(some: Tensor, others: Tensor) -> Tensor:
        block = matrix.to(some.device)[some][:, others]
        width = float(block.max() - block.min())
        if width <= 1e-6:  # nothing tells these classes apart
            return torch.full_like(block, 1 / block.numel())
        return class_plan(block, settings.epsilon if calibration is None else calibration.epsilon * width)

    return plan


@dataclass(frozen=True)
class RunPrior:
    """The transported prior of a run, and what chose its weight.

    Attributes:
        prior: alpha log q(x).
        nll: mean negative log-likelihood of the labelled images under q, in nats.
        chance: that of a uniform guess, log T.
        folds: with ``head.prior=auto``, the mean negative log-likelihood of labelled images that are left out, at each
            alpha; empty where alpha was given, or a class has one label only.
    """

    prior: TransportedPrior
    nll: float
    chance: float
    folds: dict[float, float]

    def described(self) -> dict[str, Any]:
        """Return what ``result.json`` holds of it."""
        folds = {f"{alpha:g}": nll for alpha, nll in self.folds.items()}
        return {"alpha": float(self.prior.alpha), "nll": self.nll, "chance": self.chance, "folds": folds}


@torch.no_grad()
def read_prior(
    head: Head,
    cost: RunCost,
    features: Features,
    source_head: nn.Linear,
    settings: TransportSettings,
    learns: bool,
    unknown_targets: Sequence[int] = (),
) -> RunPrior:
    """Form the prior under the cost in use, and choose its weight where the head asks for that.

    With ``prior="auto"`` labelled images that are left out choose alpha. Where every class has one label, alpha is 0.5
    if the labelled images are likelier under q than by chance, and 0 otherwise.

    Args:
        head: asks for the prior and its weight.
        cost: as :func:`read_cost` returned it.
        features: under the trunk as training starts from it.
        source_head: likewise.
        settings: of the cost's use.
        learns: whether the gradient reaches the source head through q.
        unknown_targets: target classes that the cost knows nothing of.
    """
    rows = relation(cost.used.to(features.device), settings.epsilon, settings.rows, unknown_targets)
    prior = TransportedPrior(rows, DEFAULT_ALPHA, learns=learns).to(features.device)
    inputs, labels, log_q = labelled(features, lambda x: prior.log_q(source_head(x)))
    assert log_q is not None
    chance = math.log(rows.shape[1])
    nll = float(-log_q.gather(1, labels[:, None]).mean())
    folds: dict[float, float] = {}
    if head.prior == AUTO:
        length = at_length(inputs.double(), 5.0)
        folds = {} if is_constant(cost.used) else choose_alpha(length, labels, log_q)
        alpha = min(folds, key=lambda each: folds[each]) if folds else DEFAULT_ALPHA * float(nll < chance - 1e-6)
    else:
        alpha = float(head.prior)
    prior.alpha.fill_(alpha)
    return RunPrior(prior, nll, chance, folds)


class FollowFeatures(Callback):
    """Keeps the cost up to date while the features change: each epoch, or after each step.

    Args:
        cost: that ``updates`` each "epoch" or by "ema".
        pair: whose classes it relates.

    Attributes:
        matrix: (S, T), the latest; to be set to the one at the start.
    """

    def __init__(self, cost: Cost, pair: Pair) -> None:
        self.cost, self.pair, self.matrix = cost, pair, torch.empty(0)

    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self.cost.to(pl_module.device)

    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if self.cost.updates == "epoch" and trainer.current_epoch > 0:
            assert isinstance(pl_module, JTLN)
            data: Any = trainer.datamodule  # type: ignore[attr-defined]
            _fit(self.cost, self.pair, Features(pl_module.trunk, data, pl_module.device), pl_module.source_head)
            self._set(pl_module)

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if self.cost.updates == "ema":
            assert isinstance(pl_module, JTLN)
            source, target = ((outputs["features"][side], batch[side][1]) for side in ("source", "target"))
            self.cost.observe(source, target, _sizes(self.pair))
            self._set(pl_module)

    def _set(self, module: JTLN) -> None:
        self.matrix = self.cost.matrix(self.pair.source.classes, self.pair.target.classes)
        if module.transport is not None:
            module.transport.set_cost(self.matrix.to(module.transport.cost))

    def state_dict(self) -> dict[str, Any]:
        return {"cost": self.cost.state_dict(), "matrix": self.matrix}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.cost.load_state_dict(state_dict["cost"])
        self.matrix = state_dict["matrix"]


@torch.no_grad()
def _fit(cost: Cost, pair: Pair, features: Features, source_head: nn.Linear) -> None:
    """One pass over the training images of the tasks that the cost reads."""
    head = SourceHead(lambda rows: _logits(source_head, rows), features.of("source", "val"), source_head.weight)
    cost.fit(features.of("source"), features.of("target"), _sizes(pair), head)


@torch.no_grad()
def _logits(head: nn.Linear, rows: Tensor) -> Tensor:
    return head(rows)


def _sizes(pair: Pair) -> tuple[int, int]:
    return len(pair.source.classes), len(pair.target.classes)
