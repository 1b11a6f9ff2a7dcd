"""Distance of the class centroids in trunk features: a cost from the images."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn

from jtln.costs.base import Batch, Cost, SourceHead
from jtln.distributed import class_sums
from jtln.errors import UserError, unknown
from jtln.names.class_set import ClassSet

METRICS = ("euclidean", "sqeuclidean", "cosine")
UPDATES = ("once", "epoch", "ema")


class CentroidCost(Cost):
    """C[i, j] = distance of source class i's and target class j's mean feature vectors.

    Args:
        metric: "euclidean", "sqeuclidean", or "cosine" (1 - cos, in [0, 2]); before scaling.
        update: "once", from a pass over both training sets before the first step; "epoch", from such a pass before
            each epoch; "ema", an exponential moving average of the features in the training batches, without extra
            passes.
        momentum: for "ema", the weight in [0, 1) of a class's earlier batches when it occurs again.
        scale: see :class:`Cost`.

    The distances of a class without any image so far (possible only with "ema") are the mean of the others, and thus
    uninformative.
    """

    reads_source = True

    source_sum: Tensor
    source_weight: Tensor
    target_sum: Tensor
    target_weight: Tensor

    def __init__(
        self, metric: str = "euclidean", update: str = "once", momentum: float = 0.9, scale: str = "max"
    ) -> None:
        super().__init__(scale)
        if metric not in METRICS:
            raise unknown("centroid metric", metric, METRICS)
        if update not in UPDATES:
            raise unknown("centroid update", update, UPDATES)
        if not 0 <= momentum < 1:
            raise UserError(f"expected momentum in [0, 1), but got {momentum}")
        self.metric, self.updates, self.momentum = metric, update, momentum
        # A centroid is a weighted sum of features over the sum of the weights.
        self.register_buffer("source_sum", torch.zeros(0, 0))  # (S, D)
        self.register_buffer("source_weight", torch.zeros(0))  # (S,)
        self.register_buffer("target_sum", torch.zeros(0, 0))  # (T, D)
        self.register_buffer("target_weight", torch.zeros(0))  # (T,)

    def prepare(self, sizes: tuple[int, int], dim: int) -> None:
        for side, size in zip(("source", "target"), sizes, strict=True):
            weight = getattr(self, f"{side}_weight")
            setattr(self, f"{side}_sum", weight.new_zeros(size, dim))
            setattr(self, f"{side}_weight", weight.new_zeros(size))

    def fit(
        self,
        source: Iterable[Batch],
        target: Iterable[Batch],
        sizes: tuple[int, int],
        head: SourceHead | None = None,
    ) -> None:
        """Compute the centroids in one pass over each training set."""
        self.source_sum, self.source_weight = class_sums(source, sizes[0])
        self.target_sum, self.target_weight = class_sums(target, sizes[1])

    @torch.no_grad()
    def observe(self, source: Batch, target: Batch, sizes: tuple[int, int]) -> None:
        """Update the centroids of the classes in one training batch ("ema")."""
        if not self.source_sum.numel():
            self.prepare(sizes, source[0].shape[1])
        for side, batch, size in zip(("source", "target"), (source, target), sizes, strict=True):
            total, count = class_sums([batch], size)
            if not bool(torch.isfinite(total).all()):
                return  # The step has overflowed, and a gradient scaler skips it as well.
            keep = 1 - (1 - self.momentum) * (count > 0).float()  # (C,)
            mean = total / count.clamp_min(1)[:, None]  # (C, D)
            setattr(self, f"{side}_sum", torch.lerp(mean, getattr(self, f"{side}_sum"), keep[:, None]))
            setattr(
                self,
                f"{side}_weight",
                torch.lerp(torch.ones_like(keep), getattr(self, f"{side}_weight"), keep),
            )

    def distances(self, source: ClassSet, target: ClassSet) -> Tensor:
        if not self.source_sum.numel():
            raise UserError("expected class centroids, but got no features: call fit() or observe() first")
        x = self.source_sum / self.source_weight.clamp_min(1e-12)[:, None]  # (S, D)
        y = self.target_sum / self.target_weight.clamp_min(1e-12)[:, None]  # (T, D)
        if self.metric == "cosine":
            x, y = nn.functional.normalize(x), nn.functional.normalize(y)  # then 1 - cos is |x - y|^2 / 2
        # Differences are exact, while products x y^T are rounded to bfloat16 in autocast and to TF32 on some GPUs.
        distance = torch.cdist(x, y, compute_mode="donot_use_mm_for_euclid_dist")  # (S, T)
        if self.metric == "sqeuclidean":
            distance = distance.square()
        elif self.metric == "cosine":
            distance = distance.square() / 2
        seen = (self.source_weight > 0)[:, None] & (self.target_weight > 0)  # (S, T)
        average = distance[seen].mean() if bool(seen.any()) else distance.new_tensor(1.0)
        return torch.where(seen, distance, average)
