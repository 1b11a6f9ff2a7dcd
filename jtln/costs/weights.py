"""The cosine distance of the two tasks' linear classifiers' weight vectors."""

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
    """C[i, j] = 1 - cos(u_i, v_j) of source class i's and target class j's weight vectors.

    u_i is row i of the source head's weight, v_j the mean feature vector of target class j's labelled images, which is
    the weight vector of the classifier by the nearest class mean. Both are centred at their mean over the classes:
    what is added to all rows of a linear classifier's weight does not change what it predicts. No source image is read.

    Args:
        update: "once", from a pass over the target's labelled images before the first step; "epoch", from such a pass
            before each epoch, with the source head as it is then.
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
        # Centred; a class without a direction, such as one without an image, has zeros.
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
        """Read the source head's weight, and the target's labelled images; the source's images are not read."""
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
        """(S, T) in [0, 2]; 1 for a class without a direction, such as the only one of its task."""
        if not self.source_weight.numel():
            raise UserError("expected the classifiers' weights, but none were seen: call fit() first")
        # In float64 where there is one: neither autocast nor a GPU's TF32 rounds the products then.
        kind = accumulation_dtype(self.source_weight)
        u, v = (nn.functional.normalize(each.to(kind)) for each in (self.source_weight, self.target_weight))
        return (1 - u @ v.T).clamp_min(0)
