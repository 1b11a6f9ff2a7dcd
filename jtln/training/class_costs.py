"""The cost matrix of a run: read before training, calibrated, and kept up to date while features change."""

from __future__ import annotations

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
from jtln.methods import Method
from jtln.module import JTLN
from jtln.transport import TransportLoss, TransportSettings


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
    used, calibration = calibrate(given.to(features.device), settings.epsilon, logits)
    return RunCost(given, used.cpu(), calibration)


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
