"""The permuted cost: the columns of another cost, shuffled, as a control."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import torch
from torch import Tensor

from jtln.costs.base import Batch, Cost, SourceHead, Unknown
from jtln.errors import UserError
from jtln.names.class_set import ClassSet


class PermutedCost(Cost):
    """C[i, j] = D[i, p(j)], with another cost's matrix D and a seeded permutation p without fixed points.

    The permuted matrix has the same values, scale and sharpness, but its information on the target classes is wrong.
    With a single target class the permutation is the identity.

    Args:
        of: the other cost, with its own scale and updates.
        seed: >= 0, of the permutation.
    """

    def __init__(self, of: Cost, seed: int = 0) -> None:
        super().__init__(scale="none")
        if not isinstance(of, Cost):
            raise UserError(f"expected cost.of to be a cost, but got {of!r}: choose one with cost@cost.of=wordnet")
        if not isinstance(seed, int) or seed < 0:
            raise UserError(f"expected a whole number >= 0 for cost.seed, but got {seed!r}")
        self.of, self.seed = of, seed
        self.updates, self.needs_source_head, self.reads_source = of.updates, of.needs_source_head, of.reads_source
        self.remedy = of.remedy

    def prepare(self, sizes: tuple[int, int], dim: int) -> None:
        self.of.prepare(sizes, dim)

    def fit(
        self,
        source: Iterable[Batch],
        target: Iterable[Batch],
        sizes: tuple[int, int],
        head: SourceHead | None = None,
    ) -> None:
        self.of.fit(source, target, sizes, head)

    def observe(self, source: Batch, target: Batch, sizes: tuple[int, int]) -> None:
        self.of.observe(source, target, sizes)

    def unknown(self, source: ClassSet, target: ClassSet) -> Unknown:
        """Return the other cost's unknown source classes, and the target classes that receive its unknown columns."""
        other = self.of.unknown(source, target)
        order = derangement(len(target), self.seed).tolist()
        return Unknown(other.source, tuple(place for place, index in enumerate(order) if index in other.target))

    def distances(self, source: ClassSet, target: ClassSet) -> Tensor:
        return self.of.distances(source, target)[:, derangement(len(target), self.seed)]

    def matrix(self, source: ClassSet, target: ClassSet) -> Tensor:
        """Return the other cost's matrix (S, T), scaled and with neutral costs, with permuted columns."""
        return self.of.matrix(source, target)[:, derangement(len(target), self.seed)]


def derangement(size: int, seed: int) -> Tensor:
    """Return a uniformly drawn permutation (size,) of 0 ... size - 1 without fixed points; the identity for size 1."""
    random = np.random.default_rng(seed)
    places = np.arange(size)
    order = random.permutation(size)
    while size > 1 and (order == places).any():  # e draws on average
        order = random.permutation(size)
    return torch.from_numpy(order)
