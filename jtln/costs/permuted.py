"""Wrong knowledge: another cost with its columns shuffled, the control beside it."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import torch
from torch import Tensor

from jtln.costs.base import Batch, Cost, SourceHead, Unknown
from jtln.errors import UserError
from jtln.names.class_set import ClassSet


class PermutedCost(Cost):
    """C[i, j] = D[i, p(j)], D another cost's matrix, p a seeded permutation that leaves no target class in its place.

    What the other cost says of one target class is said of another one: the matrix keeps its values, its scale and its
    sharpness, and loses what they mean. With a single target class there is nothing to shuffle.

    Args:
        of: the other cost, scaled as it scales itself; read and updated as it wants to be.
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
        """Return the other cost's source classes, and the target classes that its unknown columns go to."""
        other = self.of.unknown(source, target)
        order = derangement(len(target), self.seed).tolist()
        return Unknown(other.source, tuple(place for place, index in enumerate(order) if index in other.target))

    def distances(self, source: ClassSet, target: ClassSet) -> Tensor:
        return self.of.distances(source, target)[:, derangement(len(target), self.seed)]

    def matrix(self, source: ClassSet, target: ClassSet) -> Tensor:
        """Permute the columns of the other cost's matrix (S, T); its scale and its costs of unknown classes stay."""
        return self.of.matrix(source, target)[:, derangement(len(target), self.seed)]


def derangement(size: int, seed: int) -> Tensor:
    """Return a uniformly drawn permutation (size,) of 0 ... size - 1 without a fixed point; of one, itself."""
    random = np.random.default_rng(seed)
    places = np.arange(size)
    order = random.permutation(size)
    while size > 1 and (order == places).any():  # e times on average
        order = random.permutation(size)
    return torch.from_numpy(order)
