"""The cosine distance between the weight vectors of both tasks' linear classifiers."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn

from jtln.costs.base import Batch, Cost, SourceHead
from jtln.distributed import accumulation_dtype, class_sums
from jtln.errors import UserError, unknown
from jtln.names.class_set import ClassSet

UPDATES = ("once", "epoch")


class WeightsCost(Cost):
    """C[i, j] = 1 - cos(u_i, v_j) of the weight vectors of source class i and target class j.

    u_i is row i of the source head's weight. v_j is the mean feature vector of target class j's labelled images, the
    weight vector of a nearest-mean classifier. Both are centred over the classes, because a constant in all rows of a
    linear classifier's weight does not change its predictions. No source image is read.

    Args:
        update: "once", from a pass over the target's labelled images before the first step; "epoch", from such a pass
            before each epoch, with the source head at that time.
        scale: see :class:`Cost`.
    """

    needs_source_head = True
    source_weight: Tensor
    target_weight: Tensor

    def __init__(self, update: str = "once", scale: str = "max") -> None:
        super().__init__(scale)
        if update not in UPDATES:
            raise unknown("weights update", update, UPDATES)
        self.updates = update
        # Centred weights; a class without an image has zeros.
        self.register_buffer("source_weight", torch.zeros(0, 0))  # (S, D)
        self.register_buffer("target_weight", torch.zeros(0, 0))  # (T, D)

    def prepare(self, sizes: tuple[int, int], dim: int) -> None:
        self.source_weight = self.source_weight.new_zeros(sizes[0], dim)
        self.target_weight = self.target_weight.new_zeros(sizes[1], dim)

    @torch.no_grad()
    def fit(
        self,
        source: Iterable[Batch],
        target: Iterable[Batch],
        sizes: tuple[int, int],
        head: SourceHead | None = None,
    ) -> None:
        """Read the source head's weight and the target's labelled images; source images are not read."""
        if head is None:
            raise UserError("expected the source head for the weights cost, but got none: give fit() a SourceHead")
        sums, counts = class_sums(target, sizes[1])
        weight = head.weight.detach().float()
        if weight.shape != (sizes[0], sums.shape[1]):
            raise UserError(
                f"expected a source head with a weight of shape (S, D) = {(sizes[0], sums.shape[1])}, but got "
                f"{tuple(weight.shape)}: choose another cost for such a head"
            )
        seen = counts > 0
        means = sums / counts.clamp_min(1)[:, None]  # (T, D)
        self.source_weight = weight - weight.mean(0)
        self.target_weight = torch.where(seen[:, None], means - means[seen].mean(0), 0.0)

    def distances(self, source: ClassSet, target: ClassSet) -> Tensor:
        """Return the distances (S, T) in [0, 2]; 1 for a zero vector, such as that of a task's only class."""
        if not self.source_weight.numel():
            raise UserError("expected the classifiers' weights, but got none: call fit() first")
        # The accumulation dtype, float64 where available, keeps autocast and TF32 from rounding the products.
        kind = accumulation_dtype(self.source_weight)
        u, v = (nn.functional.normalize(each.to(kind)) for each in (self.source_weight, self.target_weight))
        return (1 - u @ v.T).clamp_min(0)
