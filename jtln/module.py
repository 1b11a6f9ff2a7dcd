"""Joint transfer learning with an optimal-transport loss: the model and its training step.

    L = lambda_target * CE(t(x_t), y_t) + lambda_source * CE(s(x_s), y_s)
        + lambda_ot * OT_eps(s(x), t(x); C) + lambda_label * OT(s(x_t), y_t; C) / eps + penalty

A trunk shared by two tasks, a linear head for each: s(x) over the S source classes, t(x) over the T target classes.
The transport loss compares the two heads' predictions on the same image under a cost matrix C (S, T), which says how
the two sets of categories are related; on target images, with the true label in place of the target head's prediction
as well. After Lu, Chen & Saidi, arXiv 1709.02995; only its abstract was read: which images feed the terms, where the
gradient goes and how the weight changes are ours. The penalty is a baseline's own.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import pytorch_lightning as pl
import torch
from pytorch_lightning.trainer.states import TrainerFn
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torchmetrics import MetricCollection
from torchmetrics.classification import MulticlassConfusionMatrix

from jtln.costs import Cost, SourceHead
from jtln.costs.calibration import calibrated
from jtln.errors import UserError, unknown
from jtln.heads.discriminant import Discriminant
from jtln.methods import Penalty, Seen
from jtln.metrics import classification_metrics
from jtln.names.class_set import ClassSet
from jtln.schedules import Constant, Schedule
from jtln.transport.loss import TransportLoss
from jtln.trunks.base import Trunk

HEADS = ("target", "source")  # in the order of the evaluation loaders
IMAGES = ("source", "target", "both")
UNITS = ("1/epsilon", "1")

Features = Iterator[tuple[Tensor, Tensor]]  # images (B, 3, H, W) or features (B, D), labels (B,)
Batch = dict[str, tuple[Tensor, Tensor]]  # "source", "target", in this order: images (B, 3, H, W), labels (B,)


class Logits(NamedTuple):
    """Both heads' logits for the same images."""

    source: Tensor  # (B, S)
    target: Tensor  # (B, T)


class JTLN(pl.LightningModule):
    """One trunk, two heads, and a transport loss between their predictions.

    Args:
        trunk: (B, 3, H, W) -> (B, trunk.dim).
        source, target: the two label sets.
        transport: called with (source_logits (B, S), target_logits (B, T)), returns a scalar; None leaves the term out.
        cost: the metric that keeps the transport's matrix up to date while features change; None if it never changes.
        penalty: a baseline's own term, with its weight; None adds none.
        head_end: what becomes of the target head once it is trained, with the transport's cost; None leaves it.
        calibrate: whether the transport's cost becomes, before the first step, what the labelled images bear out of
            it (jtln.costs.calibration): for a cost that has not seen their labels, and a pre-trained source head.
        freeze_trunk: whether the trunk stays as it is, its dropout and batch norms as in evaluation.
        lambda_target, lambda_source, lambda_ot, lambda_label: the weights of the terms, >= 0.
        lambda_ot_unit: "1/epsilon" multiplies lambda_ot by 1/epsilon, so that it weighs the soft labels which the
            transport teaches alike at every epsilon; "1" takes it as it is.
        ot_schedule: factor of lambda_ot over training.
        on: whose images feed the transport term: "source", "target" or "both".
        optimizer: from parameter groups to an optimizer.
        trunk_lr_factor: the trunk's learning rate over the heads'.
        lr_schedule: factor of all learning rates over training.
    """

    transport: TransportLoss | None
    cost: Cost | None
    penalty: Penalty | None
    head_found: Tensor
    calibration: Tensor
    given_cost: Tensor | None
    confusion: MulticlassConfusionMatrix
    metrics: nn.ModuleDict
    cost_is_set: Tensor

    def __init__(
        self,
        trunk: Trunk,
        source: ClassSet,
        target: ClassSet,
        transport: TransportLoss | None = None,
        cost: Cost | None = None,
        penalty: Penalty | None = None,
        *,
        head_end: Discriminant | None = None,
        calibrate: bool = False,
        freeze_trunk: bool = False,
        lambda_target: float = 1.0,
        lambda_source: float = 1.0,
        lambda_ot: float = 1.0,
        lambda_label: float = 0.0,
        lambda_ot_unit: str = "1/epsilon",
        ot_schedule: Schedule | None = None,
        on: str = "source",
        optimizer: Callable[[Iterable[dict[str, Any]]], torch.optim.Optimizer] | None = None,
        trunk_lr_factor: float = 0.1,
        lr_schedule: Schedule | None = None,
    ) -> None:
        super().__init__()
        weights = {"lambda_target": lambda_target, "lambda_source": lambda_source, "lambda_ot": lambda_ot}
        for name, value in (weights | {"lambda_label": lambda_label, "trunk_lr_factor": trunk_lr_factor}).items():
            if not value >= 0:
                raise UserError(f"expected {name} >= 0, but got {value}")
        if on not in IMAGES:
            raise unknown("choice of images for the transport term (on)", on, IMAGES)
        if lambda_ot_unit not in UNITS:
            raise unknown("lambda_ot_unit", lambda_ot_unit, UNITS)
        self.trunk = trunk
        self.source_head = nn.Linear(trunk.dim, len(source))
        self.target_head = nn.Linear(trunk.dim, len(target))
        self.transport = transport
        self.cost, self.penalty = cost, penalty
        self.head_end = head_end
        self.calibrate = calibrate and transport is not None
        self.freeze_trunk = freeze_trunk
        self.source, self.target, self.sizes = source, target, (len(source), len(target))
        self.lambda_target, self.lambda_source = lambda_target, lambda_source
        unit = 1.0 if transport is None or lambda_ot_unit == "1" else 1.0 / transport.epsilon
        self.lambda_ot = lambda_ot * unit if transport is not None else 0.0
        self.lambda_label = lambda_label if transport is not None else 0.0
        self.on, self.ot_schedule = on, ot_schedule or Constant()
        self.optimizer = optimizer or _default_optimizer
        self.trunk_lr_factor = trunk_lr_factor
        self.lr_schedule = lr_schedule or Constant()
        reads_both = on != "target" or (cost is not None and cost.updates == "ema")
        self.uses_source = lambda_source > 0 or (self.lambda_ot > 0 and reads_both)  # else no source image need be read
        of_target = self.lambda_label > 0 or penalty is not None
        self.uses_target = lambda_target > 0 or of_target or (self.lambda_ot > 0 and on != "source")
        self.trunk.requires_grad_(not freeze_trunk)
        reads = self.lambda_label > 0 or (penalty is not None and penalty.needs_source_head)
        learns = transport.learns if transport is not None and self.lambda_ot > 0 else ()
        self.source_head.requires_grad_(self.uses_source or "source" in learns or reads)
        self.target_head.requires_grad_(self.uses_target or "target" in learns)
        self.register_buffer("given_cost", None if transport is None else transport.cost.clone(), persistent=False)
        self.register_buffer("cost_is_set", torch.tensor(cost is None or cost.updates == "never"))
        self.register_buffer("head_found", torch.full((5,), -1.0))  # HeadEnd, once the head has ended
        self.register_buffer("calibration", torch.full((2,), -1.0))  # Calibration, once the cost has been calibrated
        if cost is not None:
            cost.prepare(self.sizes, trunk.dim)
        if penalty is not None:
            penalty.prepare(self)
        self.confusion = MulticlassConfusionMatrix(len(target))
        self.metrics = nn.ModuleDict(
            {
                f"{split}_{head}": classification_metrics(size, f"{split}/{head}/", whole=split != "train")
                for split in ("train", "val", "test")
                for head, size in zip(("source", "target"), self.sizes, strict=True)
            }
        )
        self.train(self.training)

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Of an earlier version, too: its target head had a start and no end, or one around the source's middle."""
        checkpoint["state_dict"].pop("head_evidence", None)
        checkpoint["state_dict"].setdefault("calibration", torch.zeros(2))  # begun before there was any: it has none
        found = checkpoint["state_dict"].get("head_found", torch.full((4,), -1.0))
        checkpoint["state_dict"]["head_found"] = torch.cat([found, found.new_zeros(1)])[:5]

    def train(self, mode: bool = True) -> JTLN:
        super().train(mode)
        if self.freeze_trunk:
            self.trunk.eval()
        return self

    def forward(self, images: Tensor) -> Logits:
        """images (B, 3, H, W), normalised as ``trunk.mean`` and ``trunk.std`` say -> logits (B, S) and (B, T)."""
        features = self.trunk(images)  # (B, D)
        return Logits(self.source_head(features), self.target_head(features))

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        images = torch.cat([batch[side][0] for side in batch])  # one pass through the trunk for both tasks
        features = dict(zip(batch, self.trunk(images).split([len(batch[side][1]) for side in batch]), strict=True))
        target_loss = source_loss = transport = to_labels = penalty = zero = images.new_zeros(())
        if "target" in batch:
            logits, labels = self.target_head(features["target"]), batch["target"][1]
            target_loss = cross_entropy(logits, labels)
            self._metrics("train", "target").update(logits.detach(), labels)
        if "source" in batch:
            logits, labels = self.source_head(features["source"]), batch["source"][1]
            source_loss = cross_entropy(logits, labels)
            self._metrics("train", "source").update(logits.detach(), labels)
        weight = self.lambda_ot * self.ot_schedule(self.progress)
        if weight > 0 or self.lambda_label > 0:
            self._follow_features(features, batch)
        alone = self.lambda_ot > 0 and not self.uses_source  # has the source head: in DDP every step needs all weights
        if self.transport is not None and (weight > 0 or alone):
            x = torch.cat([features[side] for side in batch if self.on in (side, "both")])
            transport = self.transport(self.source_head(x), self.target_head(x))
        if self.transport is not None and self.lambda_label > 0:
            to_labels = self.transport.to_labels(self.source_head(features["target"]), batch["target"][1])
        if self.penalty is not None:
            penalty = self.penalty(self, Seen(*batch["target"], features["target"]))

        cross_entropies = self.lambda_target * target_loss + self.lambda_source * source_loss
        loss = cross_entropies + weight * transport + self.lambda_label * to_labels + penalty
        self._log_losses(batch, loss, weight, (target_loss, source_loss, transport, to_labels, penalty))
        if transport is not zero and self._is_logged_step:
            self._log_transport(cross_entropies, weight * transport, list(features.values()))
        return loss

    @property
    def progress(self) -> float:
        """Steps done over all steps, in [0, 1]; 0 outside a trainer."""
        if self._trainer is None:
            return 0.0
        return self.trainer.global_step / max(1, self.trainer.estimated_stepping_batches)

    def configure_optimizers(self) -> Any:
        # A penalty that goes on training the pre-trained source head does so at the trunk's rate.
        slow = self.penalty is not None and self.penalty.needs_source_head
        heads: list[nn.Module] = [self.target_head] if slow else [self.source_head, self.target_head]
        optimizer = self.optimizer([{"params": _learning(*heads), "name": "heads"}])
        rate = optimizer.param_groups[0]["lr"] * self.trunk_lr_factor
        pretrained = _learning(self.trunk, self.source_head) if slow else _learning(self.trunk)
        if pretrained:
            optimizer.add_param_group({"params": pretrained, "lr": rate, "name": "trunk"})
        if self.penalty is not None and self.penalty.replaces_weight_decay:
            for group in optimizer.param_groups:
                group["weight_decay"] = 0.0
        steps = max(1, int(self.trainer.estimated_stepping_batches))
        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: self.lr_schedule(min(1.0, step / steps)))
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    def on_train_start(self) -> None:
        self.head_found.fill_(-1.0)
        if self.penalty is not None and not bool(self.penalty.started):
            with self._as_evaluated():
                self.penalty.start(self)
            self.penalty.started.fill_(True)
        if self.cost is not None and self.cost.updates in ("once", "epoch") and not bool(self.cost_is_set):
            self._read_features()
        if self.calibrate and self.transport is not None and bool(self.calibration[0] < 0):
            with self._as_evaluated():
                seen = ((self.source_head(rows), labels) for rows, labels in self.features_of("target"))
                cost, found = calibrated(self.transport.cost, self.transport.epsilon, seen)
            self.transport.set_cost(cost)
            self.calibration.copy_(torch.tensor(found))

    def on_train_epoch_start(self) -> None:
        if self.cost is not None and self.cost.updates == "epoch" and self.current_epoch > 0:
            self._read_features()

    def _set_cost(self) -> None:
        assert self.cost is not None
        assert self.transport is not None
        self.transport.set_cost(self.cost.matrix(self.source, self.target).to(self.transport.cost))
        self.cost_is_set.fill_(True)

    def _follow_features(self, features: dict[str, Tensor], batch: Batch) -> None:
        if self.cost is not None and self.cost.updates == "ema" and len(batch) == 2:
            seen = {side: (features[side].detach(), batch[side][1]) for side in batch}
            self.cost.observe(seen["source"], seen["target"], self.sizes)
            self._set_cost()

    def _read_features(self) -> None:
        """One pass over the training images of the tasks that the cost reads."""
        assert self.cost is not None
        with self._as_evaluated():
            head = SourceHead(self.source_head, self.features_of("source", "val"))
            self.cost.fit(self.features_of("source"), self.features_of("target"), self.sizes, head)
        self._set_cost()

    @contextmanager
    def _as_evaluated(self) -> Iterator[None]:
        training = self.trunk.training
        self.trunk.eval()
        with torch.no_grad():
            yield
        self.trunk.train(training)

    def images_of(self, side: str, part: str = "train", at_most: int | None = None) -> Features:
        """This process's share of a task's images as the evaluation sees them, each once: (B, 3, H, W), labels (B,).

        Args:
            side: "source" or "target".
            part: "train" or "val".
            at_most: of the training images; about that many, evenly spread over them. None: all.
        """
        data = self.trainer.datamodule  # type: ignore[attr-defined]
        loader = data.feature_dataloader_of(side, at_most) if part == "train" else data.val_dataloader_of(side)
        for images, labels in loader:
            yield data.transform_eval(images.to(self.device)), labels.to(self.device)

    def features_of(self, side: str, part: str = "train", at_most: int | None = None) -> Features:
        """The same through the trunk as it is now: (B, D), labels (B,)."""
        for images, labels in self.images_of(side, part, at_most):
            yield self.trunk(images), labels

    # What is logged.

    @property
    def log_every(self) -> int:
        """Steps from one look at the transport term to the next: the trainer's own pace."""
        return max(1, int(getattr(self.trainer, "log_every_n_steps", 1)))

    @property
    def _is_logged_step(self) -> bool:
        return self._trainer is not None and (self.global_step + 1) % self.log_every == 0

    def _log_losses(self, batch: Batch, loss: Tensor, weight: float, terms: tuple[Tensor, ...]) -> None:
        if self._trainer is None:
            return
        self.log("train/loss", loss, prog_bar=True, sync_dist=True, batch_size=1)
        there = {
            "target_loss": "target" in batch,
            "source_loss": "source" in batch,
            "ot": self.transport is not None,
            "ot_to_labels": self.lambda_label > 0,
            "penalty": self.penalty is not None,
        }
        for (name, logged), term in zip(there.items(), terms, strict=True):
            if logged:
                self.log(f"train/{name}", term, sync_dist=True, batch_size=1)
        if self.transport is not None:
            self.log("train/lambda_ot", weight, batch_size=1)

    def _log_transport(self, cross_entropies: Tensor, term: Tensor, features: list[Tensor]) -> None:
        """How much the transport term does, and whether its solver converged."""
        assert self.transport is not None
        values = {f"train/{name}": value for name, value in self.transport.readings().items()}
        if features[0].requires_grad:  # not where the trunk is frozen
            pulls = [_gradient_norm(part, features) for part in (term, cross_entropies)]
            values["train/ot_gradient_ratio"] = pulls[0] / pulls[1].clamp_min(1e-12)
        self.log_dict(values, sync_dist=True, batch_size=1)

    # Evaluation: the target's loader first, then the source's.

    def _metrics(self, split: str, head: str) -> MetricCollection:
        metrics = self.metrics[f"{split}_{head}"]
        assert isinstance(metrics, MetricCollection)
        return metrics

    def _evaluate(self, split: str, batch: tuple[Tensor, Tensor], dataloader_idx: int) -> None:
        images, labels = batch  # (B, 3, H, W), or (B, V, 3, H, W) with several views of each
        head = HEADS[dataloader_idx]
        views = images.unsqueeze(1) if images.ndim == 4 else images
        # Probabilities: of logits that all happen to lie in [0, 1] the calibration error would not know what they are.
        predictions = getattr(self(views.flatten(0, 1)), head).float().softmax(1)
        predictions = predictions.unflatten(0, views.shape[:2]).mean(1)
        self._metrics(split, head).update(predictions, labels)
        if (split, head) == ("test", "target"):
            self.confusion.update(predictions, labels)

    def _report(self, split: str) -> None:
        for head in HEADS:
            metrics = self._metrics(split, head)
            if metrics["accuracy"].update_called:
                values = metrics.compute()
                self.log_dict(values)
                if (split, head) == ("val", "target"):
                    # What the checkpoint is chosen by: of equals the later one, which has been annealed further.
                    self.log("val/target/selection", values["val/target/accuracy"] + 1e-5 * self.progress)
                metrics.reset()

    def on_train_epoch_end(self) -> None:
        self._report("train")

    def on_validation_start(self) -> None:
        """After training, with the weights that validation chose: what becomes of the target head."""
        if self.head_end is None or bool(self.head_found[0] >= 0) or self.trainer.state.fn != TrainerFn.VALIDATING:
            return
        with self._as_evaluated():
            self.head_found.copy_(torch.tensor(self.head_end.end(self)))

    def validation_step(self, batch: tuple[Tensor, Tensor], batch_idx: int, dataloader_idx: int = 0) -> None:
        self._evaluate("val", batch, dataloader_idx)

    def on_validation_epoch_end(self) -> None:
        self._report("val")

    def test_step(self, batch: tuple[Tensor, Tensor], batch_idx: int, dataloader_idx: int = 0) -> None:
        self._evaluate("test", batch, dataloader_idx)

    def on_test_epoch_end(self) -> None:
        self.test_confusion = self.confusion.compute()  # (T, T) counts, true class in rows
        self.confusion.reset()
        self._report("test")


def _learning(*modules: nn.Module) -> list[nn.Parameter]:
    return [p for module in modules for p in module.parameters() if p.requires_grad]


def _gradient_norm(value: Tensor, inputs: list[Tensor]) -> Tensor:
    gradients = torch.autograd.grad(value, inputs, retain_graph=True, allow_unused=True)
    return torch.linalg.vector_norm(torch.cat([each.flatten() for each in gradients if each is not None]))


def _default_optimizer(groups: Iterable[dict[str, Any]]) -> torch.optim.Optimizer:
    return torch.optim.SGD(groups, lr=0.01, momentum=0.9, nesterov=True, weight_decay=5e-4)
