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

from jtln.costs import Cost, SourceHead
from jtln.costs.calibration import Calibration, calibrate
from jtln.data.features import Features
from jtln.data.pairs import Pair
from jtln.errors import UserError
from jtln.heads import AUTO, Head, SourcePlan
from jtln.heads.logistic import Logistic, alpha_nll, labelled
from jtln.methods import Method
from jtln.module import JTLN
from jtln.names.class_set import ClassSet
from jtln.transport import TransportedPrior, TransportLoss, TransportSettings, class_plan
from jtln.transport.prior import EPSILONS, RelationFit, fit_relation

SHARES = (0.0, 0.25, 0.5, 1.0, 1.5)  # of the weight that fit_relation finds: candidates for folds


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
    """The transported prior of a run, and what chose it.

    Attributes:
        prior: alpha log q(x).
        alpha: its weight in the fit of the head, whose temperature divides it afterwards.
        relation: R, and how likely the labels are under q.
        shares: (S, T) >= 0, of the source classes in q at the labelled images of each target class.
        folds: with ``head.prior=auto``, the mean negative log-likelihood of labelled images that are left out, at each
            alpha; empty where alpha was given, or every class has one label only.
    """

    prior: TransportedPrior
    alpha: float
    relation: RelationFit
    shares: Tensor
    folds: dict[float, float]

    def described(self) -> dict[str, Any]:
        """Return what ``result.json`` holds of it."""
        fit = self.relation
        return {
            "alpha": self.alpha,
            "epsilon": fit.epsilon,
            "exponent": fit.exponent,
            "nll": fit.nll,
            "chance": fit.chance,
            "explained": fit.explained,
            "folds": {f"{alpha:.3g}": nll for alpha, nll in self.folds.items()},
        }


@torch.no_grad()
def read_prior(
    head: Head,
    cost: Tensor,
    features: Features,
    source_head: nn.Linear,
    settings: TransportSettings,
    calibrates: bool,
    learns: bool,
    unknown_targets: Sequence[int] = (),
) -> RunPrior:
    """Form the prior, and choose its weight where the head asks for that.

    The labelled images choose how sharp the plan is, where it is to be calibrated. With ``prior="auto"`` those that are
    left out in turn choose alpha among shares of what :class:`RelationFit` gives; where every class has one label, it
    is that. It is 0 where the labelled images are no likelier under q than by chance.

    Args:
        head: asks for the prior and its weight.
        cost: (S, T), as the cost has it.
        features: under the trunk as training starts from it.
        source_head: likewise.
        settings: of the cost's use.
        calibrates: whether the labelled images choose epsilon; else it is that of the settings.
        learns: whether the gradient reaches the source head through q.
        unknown_targets: target classes that the cost knows nothing of.
    """
    rows, labels, logits = labelled(features, source_head)
    assert logits is not None
    width = float(cost.max() - cost.min())
    epsilons = [share * width for share in EPSILONS] if calibrates and width > 1e-6 else [settings.epsilon]
    probabilities = (logits.float() / settings.temperature).softmax(1)
    fit = fit_relation(cost.cpu(), probabilities, labels, epsilons, settings.rows, unknown_targets)
    prior = TransportedPrior(fit.rows, 0.0, settings.temperature, learns)
    folds: dict[float, float] = {}
    if head.prior == AUTO:
        alpha = fit.alpha
        if alpha > 0:
            regressed = head if isinstance(head, Logistic) else Logistic()
            folds = alpha_nll(regressed, rows, labels, prior.log_q(logits), [share * alpha for share in SHARES])
        alpha = min(folds, key=lambda each: folds[each]) if folds else alpha
    else:
        alpha = float(head.prior)
    prior.alpha.fill_(alpha)
    of_class = probabilities.new_zeros(len(fit.rows.t()), len(fit.rows)).index_add_(0, labels, probabilities)  # (T, S)
    return RunPrior(prior.to(features.device), alpha, fit, of_class.t() * fit.rows, folds)


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
