"""The negative log of Co-Tuning's class posterior as a cost."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor

from jtln.costs.base import Batch, Cost, SourceHead
from jtln.costs.class_posterior import source_given_target
from jtln.errors import UserError, unknown
from jtln.names.class_set import ClassSet
from jtln.temperature import temperature

UPDATES = ("once", "epoch")


class PosteriorCost(Cost):
    """C[i, j] = -log p(i | j), with p(source class i | target class j) under the source head.

    The probabilities are means over the target's labelled training images
    (:func:`jtln.costs.class_posterior.source_given_target`). Unscaled and at epsilon = 1, softmax(-C) over the source
    classes is Co-Tuning's class posterior, the soft label of the source head on an image of target class j.

    Args:
        update: "once", before the first step; "epoch", before each epoch, with the source head at that time.
        smoothing: delta in (0, 1): p is replaced by (1 - delta) p + delta / S, so that no distance exceeds
            log(S / delta).
        calibrate: whether the source head's temperature is first fitted on the source's validation images.
        scale: see :class:`Cost`.
    """

    needs_source_head = True
    relation: Tensor

    def __init__(
        self, update: str = "once", smoothing: float = 1e-3, calibrate: bool = False, scale: str = "max"
    ) -> None:
        super().__init__(scale)
        if update not in UPDATES:
            raise unknown("posterior update", update, UPDATES)
        if not 0 < smoothing < 1:
            raise UserError(f"expected smoothing in (0, 1), but got {smoothing}")
        self.updates, self.smoothing, self.calibrate = update, smoothing, calibrate
        self.register_buffer("relation", torch.zeros(0, 0))  # (T, S)

    def prepare(self, sizes: tuple[int, int], dim: int) -> None:
        self.relation = self.relation.new_full((sizes[1], sizes[0]), 1 / sizes[0])  # uninformative before fit()

    def fit(
        self,
        source: Iterable[Batch],
        target: Iterable[Batch],
        sizes: tuple[int, int],
        head: SourceHead | None = None,
    ) -> None:
        """Estimate the class posterior in one pass over the target's training images; the source's are not read."""
        if head is None:
            raise UserError("expected the source head for the posterior cost, but got none: give fit() a SourceHead")
        tau = 1.0
        if self.calibrate:
            tau = temperature((head.logits(features), labels) for features, labels in head.held_out)
        logits = ((head.logits(features) / tau, labels) for features, labels in target)
        self.relation = source_given_target(logits, sizes[1])

    def distances(self, source: ClassSet, target: ClassSet) -> Tensor:
        """Return the distances (S, T) in [0, log(S / smoothing)]."""
        if not self.relation.numel():
            raise UserError("expected the source head's predictions, but got none: call fit() first")
        smooth = (1 - self.smoothing) * self.relation + self.smoothing / len(source)
        return -smooth.clamp_max(1).log().t()
