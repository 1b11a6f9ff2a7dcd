"""Maximum mean discrepancy between the feature distributions of two classes.

With a kernel k, x, x' drawn from source class i and y, y' from target class j, all independently,

    MMD^2 = E k(x, x') + E k(y, y') - 2 E k(x, y).

The biased estimate takes means over all pairs of a class, including each image with itself, and is >= 0; the unbiased
one leaves these pairs out. k is the mean of Gaussian kernels exp(-|x - y|^2 / (2 s^2)) of several widths s, so that
0 <= MMD^2 <= 2. The statistic is Gretton et al.'s (2012); their paper was not read.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from numbers import Real

import torch
from torch import Tensor

from jtln.costs.base import Batch, Cost, SourceHead
from jtln.distributed import accumulation_dtype, all_gather, all_reduce_sum, process
from jtln.errors import UserError, unknown
from jtln.names.class_set import ClassSet

ESTIMATORS = ("biased", "unbiased")
UPDATES = ("once", "epoch")
BANDWIDTHS = (0.25, 0.5, 1.0, 2.0, 4.0)
SAMPLE = 500  # images of each task for the median distance
BLOCK = 2**20  # kernel values at once: 8 MiB each for distances and two temporaries


class MMDCost(Cost):
    """C[i, j] = MMD^2 of source class i's and target class j's features under Gaussian kernels.

    The cost is the square, because the unbiased estimate is one of the square, and because the root has an infinite
    slope at 0, where the nearest classes are.

    Args:
        estimator: "biased", or "unbiased", whose negative values become 0 and which needs two images in each class.
        bandwidths: the kernels' widths, as multiples > 0 of the median distance between any two of up to 500 images of
            each task, evenly spread over its training images.
        images: the largest number of images of a class, the first in the training set's order; None: all. Work grows
            with the product of both tasks' images, memory with their sum.
        update: "once", from a pass over both training sets before the first step; "epoch", from such a pass before
            each epoch.
        scale: see :class:`Cost`.

    Raises:
        UserError: a value is not one of these; on :meth:`fit`, a class has no image, or only one for the unbiased
            estimator.
    """

    reads_source = True
    discrepancy: Tensor

    def __init__(
        self,
        estimator: str = "biased",
        bandwidths: Sequence[float] = BANDWIDTHS,
        images: int | None = 100,
        update: str = "once",
        scale: str = "max",
    ) -> None:
        super().__init__(scale)
        if estimator not in ESTIMATORS:
            raise unknown("MMD estimator", estimator, ESTIMATORS)
        if update not in UPDATES:
            raise unknown("MMD update", update, UPDATES)
        widths = [] if isinstance(bandwidths, Real | str) else list(bandwidths)
        if not widths or not all(isinstance(width, Real) and 0 < width < math.inf for width in widths):
            raise UserError(f"expected a list of numbers > 0 for bandwidths, but got {bandwidths!r}")
        if images is not None and not (isinstance(images, int) and images >= 1):
            raise UserError(f"expected a whole number >= 1 or null for images, but got {images!r}")
        self.estimator, self.updates, self.images = estimator, update, images
        self.bandwidths = tuple(float(width) for width in widths)
        self.register_buffer("discrepancy", torch.zeros(0, 0))  # (S, T)

    def prepare(self, sizes: tuple[int, int], dim: int) -> None:
        self.discrepancy = self.discrepancy.new_zeros(sizes)

    @torch.no_grad()
    def fit(
        self,
        source: Iterable[Batch],
        target: Iterable[Batch],
        sizes: tuple[int, int],
        head: SourceHead | None = None,
    ) -> None:
        """Estimate all pairs' MMD^2 from one pass over each training set."""
        x, x_labels = class_samples(source, sizes[0], self.images)
        y, y_labels = class_samples(target, sizes[1], self.images)
        least = 2 if self.estimator == "unbiased" else 1
        for side, labels, size in (("source", x_labels, sizes[0]), ("target", y_labels, sizes[1])):
            counts = torch.bincount(labels, minlength=size)
            if few := int((counts < least).sum()):
                remedy = ": choose estimator=biased, or more images" if least == 2 else ""
                raise UserError(
                    f"expected {least} or more images in each class for the {self.estimator} MMD, but {few} of {size} "
                    f"{side} classes have {int(counts.min())}{remedy}"
                )
        centre = y.mean(0)  # Centring keeps the distances and reduces rounding errors.
        x -= centre
        y -= centre
        width = median_distance(x, y)
        widths = [width * multiple for multiple in self.bandwidths]
        squared = squared_mmd((x, x_labels), (y, y_labels), sizes, widths, self.estimator == "unbiased")
        self.discrepancy = squared.clamp_min(0).float()

    def distances(self, source: ClassSet, target: ClassSet) -> Tensor:
        """Return the distances (S, T) in [0, 2]."""
        if not self.discrepancy.numel():
            raise UserError("expected the classes' features, but got none: call fit() first")
        return self.discrepancy


def class_samples(batches: Iterable[Batch], classes: int, most: int | None) -> Batch:
    """Return the first ``most`` images of every class and their labels, sorted by label, of all processes.

    The result is the same as in one process: process r of W has every W-th image, starting with the r-th.

    Args:
        batches: rows (B, D) and labels (B,) in [0, C), this process's share of them.
        classes: C.
        most: None for all.

    Returns:
        (N, D) float32 and (N,), the same in every process.

    Raises:
        UserError: there is no batch.
    """
    rank, processes = process()
    rows, labels, places = [], [], []
    counts, position = [0] * classes, rank
    for batch, batch_labels in batches:
        kept = []
        for index, label in enumerate(batch_labels.tolist()):
            if most is None or counts[label] < most:
                counts[label] += 1
                kept.append(index)
        chosen = torch.tensor(kept, dtype=torch.long, device=batch.device)
        rows.append(batch.detach()[chosen].float())
        labels.append(batch_labels.to(batch.device)[chosen])
        places.append(position + processes * chosen)
        position += processes * len(batch)
    if not rows:
        raise UserError("expected at least one batch of features, but got none")
    their_labels, their_places = (torch.cat(all_gather(torch.cat(parts))) for parts in (labels, places))
    order = their_places.argsort()
    order = order[their_labels[order].argsort(stable=True)]  # by label, then in the order of the training set
    in_order = their_labels[order]
    starts = torch.searchsorted(in_order, torch.arange(classes, device=order.device))
    number = torch.arange(len(order), device=order.device) - starts[in_order]  # of the image in its class
    kept_ones = order if most is None else order[number < most]
    parts = all_gather(torch.cat(rows))
    rows.clear()
    return (parts[0] if len(parts) == 1 else torch.cat(parts))[kept_ones], their_labels[kept_ones]


def median_distance(x: Tensor, y: Tensor) -> float:
    """Return the median distance of any two of the rows, of up to SAMPLE rows evenly spread over each of x and y.

    Args:
        x: (N, D), not empty.
        y: (M, D), not empty.

    Returns:
        > 0; 1 if the median is 0, because most images have the same features.
    """
    parts = [each[torch.linspace(0, len(each) - 1, min(SAMPLE, len(each))).round().long()].cpu() for each in (x, y)]
    median = float(torch.pdist(torch.cat(parts).double()).quantile(0.5))
    return median if median > 0 else 1.0


def squared_mmd(
    source: Batch, target: Batch, sizes: tuple[int, int], widths: Sequence[float], unbiased: bool
) -> Tensor:
    """Return the estimate of MMD^2 for each source and target class; the processes share the work.

    Args:
        source: features (N, D), sorted by label, and their labels, the same in every process; at least one image in a
            class, or two for the unbiased estimate.
        target: the same of the target, features (M, D).
        sizes: (S, T).
        widths: of the Gaussian kernels, whose mean is taken.
        unbiased: whether to leave out the pairs of an image with itself; values may be negative.

    Returns:
        (S, T). The memory in addition to features and result is a few BLOCK values.
    """
    (x, x_labels), (y, y_labels) = source, target
    rank, processes = process()
    kind = accumulation_dtype(x)
    cross = x.new_zeros(sizes, dtype=kind)
    within = [x.new_zeros(size, dtype=kind) for size in sizes]
    columns = max(1, min(len(y), BLOCK))
    for number, rows in enumerate(_blocks(len(x), max(1, BLOCK // columns))):
        if number % processes != rank:
            continue
        for block in _blocks(len(y), columns):
            sums = x.new_zeros(rows.stop - rows.start, sizes[1], dtype=kind)
            sums.index_add_(1, y_labels[block], _kernel(x[rows], y[block], widths))
            cross.index_add_(0, x_labels[rows], sums)
    counts = []
    for sums, (features, labels), size in zip(within, (source, target), sizes, strict=True):
        count = torch.bincount(labels, minlength=size)
        counts.append(count.to(kind))
        for label, of_class in enumerate(features.split(count.tolist())):
            if label % processes == rank:
                for rows in _blocks(len(of_class), max(1, BLOCK // len(of_class))):
                    sums[label] += _kernel(of_class[rows], of_class, widths).sum()
    for sums in (cross, *within):
        all_reduce_sum(sums)
    means = [
        (sums - count) / (count * (count - 1)) if unbiased else sums / count.square()  # k(x, x) = 1
        for sums, count in zip(within, counts, strict=True)
    ]
    return means[0][:, None] + means[1] - 2 * cross / torch.outer(*counts)


def _kernel(x: Tensor, y: Tensor, widths: Sequence[float]) -> Tensor:
    """Return the mean (B, C) of the Gaussian kernels of (B, D) and (C, D).

    The accumulation dtype, float64 where available, keeps autocast and TF32 from rounding the products.
    """
    x, y = x.to(accumulation_dtype(x)), y.to(accumulation_dtype(y))
    squared = torch.addmm(x.square().sum(1)[:, None] + y.square().sum(1), x, y.T, alpha=-2).clamp_min_(0)
    kernel = torch.zeros_like(squared)
    for width in widths:
        kernel += (squared * (-0.5 / width**2)).exp_()
    return kernel / len(widths)


def _blocks(count: int, size: int) -> list[slice]:
    return [slice(start, min(start + size, count)) for start in range(0, count, size)]
