"""The interface of all cost metrics: two class sets -> a cost matrix."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import NamedTuple

import torch
from torch import Tensor, nn

from jtln.distributed import accumulation_dtype
from jtln.errors import UserError
from jtln.errors import unknown as unknown_choice
from jtln.names.class_set import ClassSet
from jtln.transport.sinkhorn import check_cost

Batch = tuple[Tensor, Tensor]  # features (B, D), labels (B,)
SCALES = ("max", "range", "none")
MOST_NAMES = 5  # class names in a message


def is_constant(cost: Tensor) -> bool:
    """Return True if all entries of a cost matrix (S, T) are equal: such a cost is uninformative."""
    return bool(cost.max() - cost.min() <= 1e-6)


class SourceHead(NamedTuple):
    """The source head's current state, for metrics that read it."""

    logits: Callable[[Tensor], Tensor]  # features (B, D) -> (B, S)
    held_out: Iterable[Batch]  # features (B, D) and labels (B,) of source images that it is not trained on
    weight: Tensor  # (S, D), of a linear head


class Unknown(NamedTuple):
    """The classes for which a cost has no information, by index, ascending."""

    source: tuple[int, ...] = ()
    target: tuple[int, ...] = ()


class Cost(nn.Module):
    """Prior knowledge about the relation of source and target classes, as a matrix C (S, T).

    A metric implements :meth:`distances`. It is a module, so that state such as class centroids moves to the device and
    into checkpoints with the network.

    Args:
        scale: how :meth:`matrix` scales the distances to [0, 1]: "max" divides by the largest; "range" subtracts the
            smallest first, which spreads rows of large distances; "none" does not scale.

    Attributes:
        updates: when training computes features for it: "never", "once" (before the first step), "epoch" (before each
            epoch) or "ema" (from every training batch).
        needs_source_head: whether it reads the source head, which then has to be pre-trained.
        reads_source: whether it reads source images.
        remedy: how to add missing information on a class, for messages.
    """

    updates: str = "never"
    needs_source_head: bool = False
    reads_source: bool = False
    remedy: str = "Choose another cost."

    def __init__(self, scale: str = "max") -> None:
        super().__init__()
        if scale not in SCALES:
            raise unknown_choice("cost scale", scale, SCALES)
        self.scale = scale

    def prepare(self, sizes: tuple[int, int], dim: int) -> None:
        """Allocate the state, if there is any, for (S, T) classes and features of ``dim`` numbers."""

    def fit(
        self,
        source: Iterable[Batch],
        target: Iterable[Batch],
        sizes: tuple[int, int],
        head: SourceHead | None = None,
    ) -> None:
        """Read the features of both training sets, for a metric that ``updates`` "once" or each "epoch".

        Args:
            source: batches of features (B, D) and labels (B,) of source images, this process's share of them.
            target: the same of target images.
            sizes: (S, T), the numbers of classes.
            head: the source head; required if ``needs_source_head``.
        """
        raise NotImplementedError(f"{type(self).__name__} reads no features")

    def observe(self, source: Batch, target: Batch, sizes: tuple[int, int]) -> None:
        """Read the features of one training batch, for a metric that ``updates`` by "ema"."""
        raise NotImplementedError(f"{type(self).__name__} reads no features")

    def distances(self, source: ClassSet, target: ClassSet) -> Tensor:
        """Return distances (S, T) >= 0 in the metric's own unit; any value for a class that is :meth:`unknown`."""
        raise NotImplementedError

    def unknown(self, source: ClassSet, target: ClassSet) -> Unknown:
        """Return the classes for which the metric has no information; :meth:`matrix` gives them neutral costs."""
        return Unknown()

    def matrix(self, source: ClassSet, target: ClassSet) -> Tensor:
        """Return the cost matrix: (S, T) float32, finite, >= 0, scaled by ``scale``, without a gradient.

        The costs of an :meth:`unknown` class are neutral: each entry of its column is the row's mean over the known
        target classes, each entry of its row the column's mean over the known source classes, and the entry of two
        unknown classes the mean over all known pairs.

        Raises:
            UserError: no source class or no target class is known, or the distances are not finite, are negative, or
                have another shape than (S, T).
        """
        unknown = self.unknown(source, target)
        for side, classes, indices in (("source", source, unknown.source), ("target", target, unknown.target)):
            if len(indices) == len(classes):
                names = ", ".join(classes.names[:MOST_NAMES]) + (", ..." if len(classes) > MOST_NAMES else "")
                raise UserError(
                    f"expected a {side} class for which {type(self).__name__} has information, but it has none for all "
                    f"{len(classes)}: {names}. {self.remedy}"
                )
        cost = self.distances(source, target).detach().float().contiguous()
        if cost.shape != (len(source), len(target)):
            raise UserError(
                f"expected distances of shape (S, T) = {(len(source), len(target))} from {type(self).__name__}, "
                f"but got {tuple(cost.shape)}"
            )
        cost = fill_neutral(cost, unknown)
        check_cost(cost)
        if self.updates == "never" and not bool(cost.max() > 0):  # Features may collapse temporarily.
            raise UserError(f"expected a distance above 0 from {type(self).__name__}, but got only zeros")
        if self.scale == "range":
            cost = cost - cost.min()
        if self.scale != "none":
            cost = cost / cost.max().clamp_min(1e-12)
        return cost


def fill_neutral(cost: Tensor, unknown: Unknown) -> Tensor:
    """Return a copy of C (S, T) in which the entries of unknown classes are means of the known entries.

    Args:
        cost: (S, T); any values for unknown classes.
        unknown: fewer than S source and T target classes.
    """
    if not (unknown.source or unknown.target):
        return cost
    rows = torch.ones(cost.shape[0], dtype=torch.bool, device=cost.device)
    columns = torch.ones(cost.shape[1], dtype=torch.bool, device=cost.device)
    rows[list(unknown.source)] = False
    columns[list(unknown.target)] = False
    known = cost[rows][:, columns].to(accumulation_dtype(cost))
    filled = known.mean().to(cost.dtype).expand(cost.shape).clone()
    filled[torch.outer(rows, ~columns)] = known.mean(1).to(cost.dtype).repeat_interleave(int((~columns).sum()))
    filled[torch.outer(~rows, columns)] = known.mean(0).to(cost.dtype).repeat(int((~rows).sum()))
    return torch.where(torch.outer(rows, columns), cost, filled)
