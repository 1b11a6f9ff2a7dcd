"""Joint transfer learning with an optimal-transport loss: the LightningModule and its objective.

    L = lambda_target CE(t(x_t), y_t) + lambda_source CE(s(x_s), y_s)
        + lambda_ot OT_eps(s(x), t(x); C) + lambda_label OT(s(x_t), y_t; C) / eps
        + keep KL(s_0(x_t) || s(x_t)) + penalty

One trunk F is shared by two tasks, with a linear head for each: s(x) over the S source classes, t(x) over the T target
classes. A transported prior, alpha log q(x), may stand beside the target head (:mod:`jtln.transport.prior`). The
transport loss compares the two heads' predictions on the same image under a cost matrix C (S, T) between the classes.
After Lu, Chen & Saidi, arXiv 1709.02995, of which the abstract was read: which images feed the transport terms, where
the gradient goes, the term on labels and the schedule are settings of ours. s_0 is the source head before training
(:mod:`jtln.methods.keep`). The penalty is a baseline's.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import pytorch_lightning as pl
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torchmetrics import MetricCollection
from torchmetrics.classification import MulticlassConfusionMatrix

from jtln.data.features import Features
from jtln.errors import UserError
from jtln.heads import Cosine, Discriminant, FreeLunch, Logistic
from jtln.methods import Method, TargetBatch
from jtln.methods.keep import Pretrained, kept
from jtln.methods.method import IMAGES
from jtln.metrics import classification_metrics
from jtln.schedules import Constant, Schedule
from jtln.transport import TransportedPrior, TransportLoss
from jtln.trunks import Trunk
from jtln.trunks.rebuild import rebuilt, trunk_weights

HEADS = ("target", "source")  # in the order of the evaluation loaders

Batch = dict[str, tuple[Tensor, Tensor]]  # "source", "target", in this order: images (B, 3, H, W), labels (B,)


class Logits(NamedTuple):
    """Both heads' logits for the same images."""

    source: Tensor  # (B, S)
    target: Tensor  # (B, T)


class Term(NamedTuple):
    """One weighted term of the objective."""

    name: str  # logged as train/NAME
    weight: float  # > 0
    images: tuple[str, ...]  # the tasks whose images it reads
    value: Callable[[dict[str, Tensor], Batch], Tensor]  # from the features (B, D) of each task, and the batch
    schedule: Schedule = Constant()  # factor of the weight over training


@dataclass(frozen=True)
class Optimization:
    """The optimizer and its learning rates.

    Attributes:
        optimizer: from parameter groups to an optimizer; its rate is the heads'.
        trunk_lr_factor: >= 0, the trunk's learning rate over the heads'.
        schedule: factor of all learning rates over training.
    """

    optimizer: Callable[[Iterable[dict[str, Any]]], torch.optim.Optimizer]
    trunk_lr_factor: float = 0.1
    schedule: Schedule = field(default_factory=Constant)

    def __post_init__(self) -> None:
        if not self.trunk_lr_factor >= 0:
            raise UserError(f"expected trunk_lr_factor >= 0, but got {self.trunk_lr_factor}")


def _sgd(groups: Iterable[dict[str, Any]]) -> torch.optim.Optimizer:
    return torch.optim.SGD(groups, lr=0.01, momentum=0.9, nesterov=True, weight_decay=5e-4)


class JTLN(pl.LightningModule):
    """One trunk, two heads, and the objective above as a list of weighted terms.

    Trains with any data module whose training batches are ``{"source": (images, labels), "target": (images, labels)}``
    (a side that no term reads may be missing) and whose evaluation loaders give ``(images, labels)``, of the target
    first and, if you like, of the source. What reads features outside of the batches (penalties that compare with the
    network before training, costs, heads, calibration) wants :class:`jtln.data.features.ImageSource` of it as well.

    Args:
        trunk: (B, 3, H, W) -> (B, trunk.dim); with ``trunk.frozen`` it stays as it is, its dropout and batch norms as
            in evaluation.
        source_classes, target_classes: S and T.
        method: the terms and their weights.
        transport: the transport loss with its cost (S, T); needed where the method has a transport term.
        optimization: by default SGD.
        source_head: D -> S, where a trained one is at hand; by default a new one.
        prior: alpha log q(x), which is added to the target logits; None: nothing.

    Attributes:
        terms: the objective.
        latest: each term's value in the current step with its graph, and the features, for callbacks.

    Raises:
        UserError: the method has a transport term and there is no transport loss.
    """

    def __init__(
        self,
        trunk: Trunk,
        source_classes: int,
        target_classes: int,
        method: Method,
        transport: TransportLoss | None = None,
        optimization: Optimization | None = None,
        source_head: nn.Linear | None = None,
        prior: TransportedPrior | None = None,
    ) -> None:
        super().__init__()
        if method.uses_transport and transport is None:
            raise UserError(f"expected a transport loss for the method {method.name}, but got None")
        self.trunk, self.method = trunk, method
        self.source_head = source_head or nn.Linear(trunk.dim, source_classes)
        self.target_head: nn.Module = nn.Linear(trunk.dim, target_classes)
        self.prior = prior
        self.transport = transport if method.uses_transport else None
        self.optimization = optimization or Optimization(_sgd)
        self.penalty = method.penalty
        self.pretrained = Pretrained(trunk, self.source_head) if method.keep > 0 else None
        self.terms = self._terms()
        self.latest: dict[str, Tensor] = {}
        self.trunk.requires_grad_(not trunk.frozen)
        learns = self.transport.learns if self.transport is not None and method.lambda_ot > 0 else ()
        reads = self.penalty is not None and self.penalty.needs_source_head
        source_learns = method.keeps_source or method.lambda_label > 0 or reads or "source" in learns
        self.source_head.requires_grad_(source_learns)
        self.target_head.requires_grad_(method.lambda_target > 0 or "target" in learns)
        if self.penalty is not None:
            self.penalty.setup(self)
        self.metrics = nn.ModuleDict(
            {
                f"{split}_{head}": classification_metrics(size, f"{split}/{head}/", whole=split != "train")
                for split in ("train", "val", "test")
                for head, size in (("source", source_classes), ("target", target_classes))
            }
        )
        self.confusion = MulticlassConfusionMatrix(target_classes)
        self.train(self.training)

    @classmethod
    def load_from_checkpoint(  # type: ignore[override]
        cls,
        checkpoint_path: str | Path,
        map_location: Any = "cpu",
        trunk: Trunk | None = None,
        method: Method | None = None,
        transport: TransportLoss | None = None,
        optimization: Optimization | None = None,
    ) -> JTLN:
        """Return the network of a checkpoint: trunk, source head, the head that the run ended with, and its prior.

        Args:
            checkpoint_path: a ``best.ckpt`` of a run, or what a Trainer of your own has written.
            map_location: where the weights go.
            trunk: the network to load the trunk's weights into, where this package cannot make it again.
            method: to go on training with; None: the target's cross-entropy.
            transport: likewise; None: no transport loss.
            optimization: likewise; None: SGD.

        Raises:
            UserError: the file is no such checkpoint, or needs ``trunk``.
        """
        try:
            checkpoint = torch.load(checkpoint_path, map_location=map_location, weights_only=True)
            state, said = checkpoint["state_dict"], checkpoint.get("hyper_parameters", {}).get("model", {})
            weights = {side: state[f"{side}_head.weight"] for side in HEADS}
        except OSError:
            raise
        except Exception as error:
            raise UserError(
                f"expected a checkpoint of a JTLN module in {checkpoint_path}, but got {error!r}"
            ) from error
        trunk = trunk or rebuilt(said.get("trunk", {}), said.get("image_size", 0))
        prior = TransportedPrior(state["prior.rows"]) if "prior.rows" in state else None
        source, target = len(weights["source"]), len(said["target"]) if said else len(weights["target"])
        module = cls(trunk, source, target, method or Method("loaded"), transport, optimization, prior=prior)
        fitted = checkpoint.get("head")
        module.target_head = _made_head(fitted, trunk.dim, target) if fitted else module.target_head
        trunk.load_state_dict(trunk_weights(checkpoint, said.get("trunk", {}), said.get("image_size", 0)))
        parts = {"source_head.": module.source_head, "target_head.": module.target_head}
        for prefix, part in {**parts, **({} if prior is None else {"prior.": prior})}.items():
            own = {name.removeprefix(prefix): value for name, value in state.items() if name.startswith(prefix)}
            part.load_state_dict(fitted["state"] if fitted and prefix == "target_head." else own)
        return module

    # The objective.

    def _terms(self) -> tuple[Term, ...]:
        """Every term of positive weight, in the order of the formula."""
        method, transport = self.method, self.transport
        ot = 0.0 if transport is None else method.ot_weight(transport.epsilon)
        every = (
            Term("target_loss", method.lambda_target, ("target",), self._target_loss),
            Term("source_loss", method.lambda_source, ("source",), self._source_loss),
            Term("ot", ot, IMAGES[method.ot_images], self._transport, method.ot_schedule),
            Term("ot_to_labels", method.lambda_label, ("target",), self._transport_to_labels),
            Term("keep", method.keep, ("target",), self._keep),
            Term("penalty", float(method.penalty is not None), ("target",), self._penalty),
        )
        return tuple(term for term in every if term.weight > 0)

    def _target_loss(self, features: dict[str, Tensor], batch: Batch) -> Tensor:
        return self._cross_entropy("target", self.target_logits(features["target"]), batch["target"][1])

    def _source_loss(self, features: dict[str, Tensor], batch: Batch) -> Tensor:
        return self._cross_entropy("source", self.source_head(features["source"]), batch["source"][1])

    def _transport(self, features: dict[str, Tensor], batch: Batch) -> Tensor:
        assert self.transport is not None
        x = torch.cat([features[side] for side in batch if side in IMAGES[self.method.ot_images]])
        return self.transport(self.source_head(x), self.target_logits(x))

    def _transport_to_labels(self, features: dict[str, Tensor], batch: Batch) -> Tensor:
        assert self.transport is not None
        return self.transport.to_labels(self.source_head(features["target"]), batch["target"][1])

    def _keep(self, features: dict[str, Tensor], batch: Batch) -> Tensor:
        assert self.pretrained is not None
        before = self.pretrained(TargetBatch(*batch["target"], features["target"]))
        return kept(self.source_head(features["target"]), before)

    def _penalty(self, features: dict[str, Tensor], batch: Batch) -> Tensor:
        assert self.penalty is not None
        return self.penalty(self, TargetBatch(*batch["target"], features["target"]))

    def _cross_entropy(self, head: str, logits: Tensor, labels: Tensor) -> Tensor:
        self._metrics("train", head).update(logits.detach(), labels)
        return cross_entropy(logits, labels)

    def training_step(self, batch: Batch, batch_idx: int) -> dict[str, Any]:
        images = torch.cat([batch[side][0] for side in batch])  # one pass through the trunk for both tasks
        features = dict(zip(batch, self.trunk(images).split([len(batch[side][1]) for side in batch]), strict=True))
        self.latest = {term.name: term.value(features, batch) for term in self.terms}
        weights = {term.name: term.weight * term.schedule(self.progress) for term in self.terms}
        loss = sum((weights[name] * value for name, value in self.latest.items()), images.new_zeros(()))
        self._log_terms(loss, weights)
        self.latest |= {f"features/{side}": rows for side, rows in features.items()}
        return {"loss": loss, "features": {side: rows.detach() for side, rows in features.items()}}

    # The network.

    def forward(self, images: Tensor) -> Logits:
        """Return logits (B, S), (B, T) of images (B, 3, H, W), normalised as ``trunk.mean`` and ``trunk.std`` say."""
        features = self.trunk(images)  # (B, D)
        return Logits(self.source_head(features), self.target_logits(features))

    def target_logits(self, features: Tensor) -> Tensor:
        """Return the target's logits with the prior: features (B, D) -> (B, T)."""
        logits: Tensor = self.target_head(features)
        return logits if self.prior is None else logits + self.prior(self.source_head(features))

    @property
    def log_prior(self) -> Callable[[Tensor], Tensor] | None:
        """The prior's logits: features (B, D) -> (B, T); None where there is no prior."""
        prior = self.prior
        return None if prior is None else lambda features: prior(self.source_head(features))

    def reads(self, side: str) -> bool:
        """Return True if a term reads the training images of this task, "source" or "target"."""
        return any(side in term.images for term in self.terms)

    @property
    def progress(self) -> float:
        """Steps done over all steps, in [0, 1]; 0 outside a trainer."""
        if self._trainer is None:
            return 0.0
        return self.trainer.global_step / max(1, self.trainer.estimated_stepping_batches)

    def train(self, mode: bool = True) -> JTLN:
        super().train(mode)
        if self.trunk.frozen:
            self.trunk.eval()
        return self

    def configure_optimizers(self) -> Any:
        # What goes on training the pre-trained source head on target images does so at the trunk's rate.
        slow = self.pretrained is not None or (self.penalty is not None and self.penalty.needs_source_head)
        heads: list[nn.Module] = [self.target_head] if slow else [self.source_head, self.target_head]
        optimizer = self.optimization.optimizer([{"params": _learning(*heads), "name": "heads"}])
        rate = optimizer.param_groups[0]["lr"] * self.optimization.trunk_lr_factor
        pretrained = _learning(self.trunk, self.source_head) if slow else _learning(self.trunk)
        if pretrained:
            optimizer.add_param_group({"params": pretrained, "lr": rate, "name": "trunk"})
        if self.penalty is not None and self.penalty.replaces_weight_decay:
            for group in optimizer.param_groups:
                group["weight_decay"] = 0.0
        steps, factor = max(1, int(self.trainer.estimated_stepping_batches)), self.optimization.schedule
        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: factor(min(1.0, step / steps)))
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    def on_train_start(self) -> None:
        if self.global_step > 0:  # a resumed run has the state from before training already
            return
        if self.pretrained is not None:
            self.pretrained.take(self.trunk, self.source_head)
        if self.penalty is not None:
            data: Any = self.trainer.datamodule  # type: ignore[attr-defined]
            training = self.trunk.training
            self.trunk.eval()
            with torch.no_grad():
                self.penalty.on_fit_start(self, Features(self.trunk, data, self.device))
            self.trunk.train(training)

    def on_train_batch_end(self, *_: Any) -> None:
        self.latest = {}

    # Metrics. The target's evaluation loader comes first, then the source's.

    def _metrics(self, split: str, head: str) -> MetricCollection:
        metrics = self.metrics[f"{split}_{head}"]
        assert isinstance(metrics, MetricCollection)
        return metrics

    def _log_terms(self, loss: Tensor, weights: dict[str, float]) -> None:
        if self._trainer is None:
            return
        self.log("train/loss", loss, prog_bar=True, sync_dist=True, batch_size=1)
        for name, value in self.latest.items():
            self.log(f"train/{name}", value, sync_dist=True, batch_size=1)
        if "ot" in weights:
            self.log("train/lambda_ot", weights["ot"], batch_size=1)

    def _evaluate(self, split: str, batch: tuple[Tensor, Tensor], dataloader_idx: int) -> Tensor:
        images, labels = batch  # (B, 3, H, W) or features (B, D); (B, V, ...) with several views of each
        head = HEADS[dataloader_idx]
        views = images.unsqueeze(1) if images.ndim in (2, 4) else images
        # Probabilities: of logits that all happen to lie in [0, 1] the calibration error would not know what they are.
        predictions = getattr(self(views.flatten(0, 1)), head).float().softmax(1)
        predictions = predictions.unflatten(0, views.shape[:2]).mean(1)
        if not bool(predictions.isfinite().all()):
            raise UserError(
                f"expected finite logits of the {head} head on its {split} images, but got others after step "
                f"{self.global_step}: lower the learning rate (optimizer.lr or pretrain.optimizer.lr)"
            )
        self._metrics(split, head).update(predictions, labels)
        if (split, head) == ("test", "target"):
            self.confusion.update(predictions, labels)
        return predictions  # (B, T), or (B, S)

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

    def validation_step(self, batch: tuple[Tensor, Tensor], batch_idx: int, dataloader_idx: int = 0) -> None:
        self._evaluate("val", batch, dataloader_idx)

    def on_validation_epoch_end(self) -> None:
        self._report("val")

    def test_step(self, batch: tuple[Tensor, Tensor], batch_idx: int, dataloader_idx: int = 0) -> Tensor:
        return self._evaluate("test", batch, dataloader_idx)

    def on_test_epoch_end(self) -> None:
        self.test_confusion = self.confusion.compute()  # (T, T) counts, true class in rows
        self.confusion.reset()
        self._report("test")


def _made_head(fitted: dict[str, Any], dim: int, classes: int) -> nn.Module:
    """Return the classifier of a head of this package that was fitted after training, without its weights."""
    known = {f"{kind.__module__}.{kind.__qualname__}": kind for kind in (Cosine, Discriminant, FreeLunch, Logistic)}
    if fitted["kind"] not in known:
        raise UserError(f"expected a head of this package, but got {fitted['kind']}: jtln.inference.load loads it")
    return known[fitted["kind"]](**fitted["settings"]).classifier(dim, classes)


def _learning(*modules: nn.Module) -> list[nn.Parameter]:
    return [p for module in modules for p in module.parameters() if p.requires_grad]


def not_finite(state: dict[str, Any]) -> str | None:
    """Return the name of a tensor with NaN or infinity in a state dict; None where all are finite."""
    tensors = {name: value for name, value in state.items() if isinstance(value, Tensor) and value.is_floating_point()}
    return next((name for name, value in tensors.items() if not bool(value.isfinite().all())), None)
