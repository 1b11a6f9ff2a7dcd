"""The cost that a dataset's own hierarchy knows: how many edges of its tree lie between two classes."""

from __future__ import annotations

import difflib
import warnings
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from jtln.costs.base import Cost
from jtln.errors import UserError
from jtln.names.class_set import ClassSet, read_table
from jtln.storage import given_path

REMEDY = (
    "Give the hierarchy in a CSV file with the columns class,path, where a path is written 'Boeing/Boeing 737': "
    "cost.file=FILE; or choose another cost."
)


class TaxonomyCost(Cost):
    """C[i, j] = edges between source class i and target class j in the tree that their paths span.

    A class is a leaf under the last element of its path: "737-700" under "Boeing 737" under "Boeing". What has the same
    path from the top is one node; the tops hang under one root. Two variants of one family are thus at distance 2, two
    of one maker at 4, and of different makers at 6.

    Args:
        file: a CSV file with the columns ``class`` and ``path``, whose paths count more than those of the dataset;
            lines of other classes are ignored. None takes the dataset's own.
        scale: how the distances are brought to [0, 1], see :class:`Cost`.

    Raises:
        UserError: the file cannot be read or lacks a column.
    """

    def __init__(self, file: str | None = None, scale: str = "max") -> None:
        super().__init__(scale)
        self.file = file
        self._read: dict[str, str] = {}
        if file is not None:
            rows = read_table(given_path(file, "cost.file", "a CSV file or null"), ("class", "path"))
            self._read = {row["class"]: row["path"] for row in rows if row["path"]}

    def distances(self, source: ClassSet, target: ClassSet) -> Tensor:
        """(S, T) float32, whole numbers of edges; 0 for the same node.

        Warns where all are equal, as between the variants of two makers: such a cost knows nothing.

        Raises:
            UserError: a class has no path.
        """
        source_nodes, target_nodes = self._nodes(source, target)
        edges = _edges(source_nodes, target_nodes)
        if edges.min() == edges.max():
            warnings.warn(
                f"the hierarchy has {edges.min()} edges between every source and every target class, so that "
                "cost=taxonomy knows no more than cost=uniform: choose classes of which some share a branch, or a "
                "hierarchy with more levels in cost.file",
                stacklevel=2,
            )
        return torch.from_numpy(edges).float()

    def _nodes(self, *sets: ClassSet) -> list[list[tuple[str, ...]]]:
        """For each set each class's way from the root to its leaf; one error for all classes without one."""
        found = [[self._path(classes, index) for index in range(len(classes))] for classes in sets]
        missing = [
            name
            for classes, paths in zip(sets, found, strict=True)
            for name, path in zip(classes.names, paths, strict=True)
            if path is None
        ]
        if missing:
            names = ", ".join(missing[:5]) + (f" and {len(missing) - 5} more" if len(missing) > 5 else "")
            near = difflib.get_close_matches(missing[0], list(self._read), n=1)
            hint = f" The file {self.file} does not name them" if self._read else ""
            hint += f": is '{near[0]}' there meant for '{missing[0]}'?" if near else "." if hint else ""
            raise UserError(
                f"expected a place in a hierarchy for each class, but {len(missing)} of {sum(map(len, sets))} have "
                f"none: {names}.{hint} {REMEDY}"
            )
        return [
            [(*(path or ()), name) for name, path in zip(classes.names, paths, strict=True)]
            for classes, paths in zip(sets, found, strict=True)
        ]

    def _path(self, classes: ClassSet, index: int) -> tuple[str, ...] | None:
        name = classes.names[index]
        return (
            tuple(part.strip() for part in self._read[name].split("/")) if name in self._read else classes.path(index)
        )


def _edges(source: Sequence[tuple[str, ...]], target: Sequence[tuple[str, ...]]) -> np.ndarray:
    """(S, T) edges between nodes of a tree that are given by their ways from the root."""
    levels = max(map(len, [*source, *target]))
    ids: dict[tuple[str, ...], int] = {}

    def codes(nodes: Sequence[tuple[str, ...]]) -> np.ndarray:
        """(N, levels): a number for the node at each level of the way, unique in the tree; -1 below its end."""
        table = np.full((len(nodes), levels), -1)
        for row, node in zip(table, nodes, strict=True):
            row[: len(node)] = [ids.setdefault(node[: level + 1], len(ids)) for level in range(len(node))]
        return table

    s, t = codes(source), codes(target)
    shared = sum(((s[:, None, k] == t[None, :, k]) & (s[:, None, k] >= 0)).astype(np.int64) for k in range(levels))
    depth_s, depth_t = (s >= 0).sum(axis=1), (t >= 0).sum(axis=1)
    return depth_s[:, None] + depth_t[None, :] - 2 * shared
