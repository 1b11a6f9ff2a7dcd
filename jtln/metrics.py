"""Metrics of a head's predictions: one collection, cloned for every head and split."""

from __future__ import annotations

import torch
from torch import Tensor
from torchmetrics import Metric, MetricCollection
from torchmetrics.classification import MulticlassAccuracy, MulticlassCalibrationError, MulticlassF1Score


class MeanClassAccuracy(Metric):
    """Mean over the classes that occur of the share of their images that are predicted right, in [0, 1].

    torchmetrics' macro accuracy also counts, as 0, a class that was predicted but has no image in the split; in a
    split that does not hold every class this understates the mean.
    """

    full_state_update = False
    correct: Tensor
    total: Tensor

    def __init__(self, classes: int) -> None:
        super().__init__()
        self.add_state("correct", torch.zeros(classes), dist_reduce_fx="sum")
        self.add_state("total", torch.zeros(classes), dist_reduce_fx="sum")

    def update(self, logits: Tensor, labels: Tensor) -> None:
        """Count the right predictions of each class: logits (B, C), labels (B,)."""
        right = (logits.argmax(1) == labels).float()
        self.correct.index_add_(0, labels, right)
        self.total.index_add_(0, labels, torch.ones_like(right))

    def compute(self) -> Tensor:
        present = self.total > 0
        return (self.correct[present] / self.total[present]).mean()


def classification_metrics(classes: int, prefix: str, whole: bool = True) -> MetricCollection:
    """Return accuracy, mean_class_accuracy, macro_f1 and ece (expected calibration error, 15 bins) of (B, classes).

    Args:
        classes: the number of classes.
        prefix: of the metrics' names.
        whole: False leaves out all but the accuracies, for training: the calibration error keeps every prediction. It
            also leaves the labels unchecked, for which a GPU would be waited for at each step; the loss checks them.
    """
    metrics: dict[str, Metric | MetricCollection] = {
        "accuracy": MulticlassAccuracy(classes, average="micro", validate_args=whole),
        "mean_class_accuracy": MeanClassAccuracy(classes),
    }
    if whole:
        metrics["macro_f1"] = MulticlassF1Score(classes, average="macro")
        metrics["ece"] = MulticlassCalibrationError(classes, n_bins=15)
    return MetricCollection(metrics, prefix=prefix, compute_groups=False)
