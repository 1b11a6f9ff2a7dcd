"""The cost that a dataset's own hierarchy knows: how many edges of its tree lie between two classes."""

from __future__ import annotations

import difflib
import warnings
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from jtln.costs.base import MOST_NAMES, Cost, Unknown
from jtln.errors import UserError, unknown
from jtln.names.class_set import ClassSet, read_table
from jtln.storage import given_path

UNKNOWN = ("neutral", "error")
REMEDY = (
    "Give the hierarchy in a CSV file with the columns class,path, where a path is written 'Boeing/Boeing 737': "
    "cost.file=FILE; or choose another cost."
)


class TaxonomyCost(Cost):
    """C[i, j] = edges between source class i and target class j in the tree of their paths.

    A class is a leaf under the last node of its path: "737-700" under "Boeing 737" under "Boeing". Equal paths from the
    top are one node, and all top nodes have a common root. Two variants of one family are thus at distance 2, two of
    one maker at 4, and of different makers at 6.

    Args:
        file: a CSV file with the columns ``class`` and ``path``, whose paths override those of the dataset; other
            classes in it are ignored. None: the dataset's own paths.
        scale: how the distances are scaled to [0, 1], see :class:`Cost`.
        unknown_names: the treatment of classes without a path: "neutral" costs (:meth:`Cost.matrix`) with a warning,
            or an "error".

    Raises:
        UserError: the file cannot be read or lacks a column, or ``unknown_names`` is unknown.
    """

    remedy = REMEDY

    def __init__(self, file: str | None = None, scale: str = "max", unknown_names: str = "neutral") -> None:
        super().__init__(scale)
        if unknown_names not in UNKNOWN:
            raise unknown("treatment of unknown names", unknown_names, UNKNOWN)
        self.file, self.unknown_names = file, unknown_names
        self._read: dict[str, str] = {}
        if file is not None:
            rows = read_table(given_path(file, "cost.file", "a CSV file or null"), ("class", "path"))
            self._read = {row["class"]: row["path"] for row in rows if row["path"]}

    def unknown(self, source: ClassSet, target: ClassSet) -> Unknown:
        """Return the classes without a path; raise a UserError for them if ``unknown_names`` is "error"."""
        nodes = self._nodes(source), self._nodes(target)
        found = Unknown(*(tuple(index for index in range(len(each)) if each[index] is None) for each in nodes))
        if self.unknown_names == "error" and (found.source or found.target):
            raise UserError(self._message(source, target, found))
        return found

    def distances(self, source: ClassSet, target: ClassSet) -> Tensor:
        """Return the numbers of edges (S, T) float32; 0 for the same node, NaN for a class without a path.

        A warning is issued for classes without a path, and if all distances are equal, as between the variants of two
        makers, because such a cost is uninformative.

        Raises:
            UserError: a class has no path, and ``unknown_names`` is "error".
        """
        missing = self.unknown(source, target)
        if missing.source or missing.target:
            warnings.warn(self._message(source, target, missing), stacklevel=2)
        result = torch.full((len(source), len(target)), torch.nan)
        known = [
            [(index, node) for index, node in enumerate(self._nodes(classes)) if node is not None]
            for classes in (source, target)
        ]
        if not all(known):
            return result
        edges = _edges(*([node for _, node in side] for side in known))
        if edges.min() == edges.max():
            warnings.warn(
                f"the hierarchy has {edges.min()} edges between every source and every target class, so that "
                "cost=taxonomy is as uninformative as cost=uniform: choose classes of which some share a branch, or a "
                "hierarchy with more levels in cost.file",
                stacklevel=2,
            )
        rows, columns = (torch.tensor([index for index, _ in side]) for side in known)
        result[rows[:, None], columns] = torch.from_numpy(edges).float()
        return result

    def _nodes(self, classes: ClassSet) -> list[tuple[str, ...] | None]:
        """Return each class's path from the root to its leaf; None for a class without a path."""
        paths = [self._path(classes, index) for index in range(len(classes))]
        return [None if path is None else (*path, name) for name, path in zip(classes.names, paths, strict=True)]

    def _message(self, source: ClassSet, target: ClassSet, found: Unknown) -> str:
        missing = [source.names[index] for index in found.source] + [target.names[index] for index in found.target]
        names = ", ".join(missing[:MOST_NAMES])
        names += f" and {len(missing) - MOST_NAMES} more" if len(missing) > MOST_NAMES else ""
        near = difflib.get_close_matches(missing[0], list(self._read), n=1)
        hint = f" They are not in the file {self.file}" if self._read else ""
        hint += f": is '{near[0]}' meant for '{missing[0]}'?" if near else "." if hint else ""
        return (
            f"expected a place in a hierarchy for each class, but {len(missing)} of {len(source) + len(target)} have "
            f"none: {names}.{hint} {REMEDY}"
        )

    def _path(self, classes: ClassSet, index: int) -> tuple[str, ...] | None:
        name = classes.names[index]
        return (
            tuple(part.strip() for part in self._read[name].split("/")) if name in self._read else classes.path(index)
        )


def _edges(source: Sequence[tuple[str, ...]], target: Sequence[tuple[str, ...]]) -> np.ndarray:
    """Return the edges (S, T) between nodes of a tree that are given by their paths from the root."""
    levels = max(map(len, [*source, *target]))
    ids: dict[tuple[str, ...], int] = {}

    def codes(nodes: Sequence[tuple[str, ...]]) -> np.ndarray:
        """Return a number (N, levels) for the node at each level of the path, unique in the tree; -1 below its end."""
        table = np.full((len(nodes), levels), -1)
        for row, node in zip(table, nodes, strict=True):
            row[: len(node)] = [ids.setdefault(node[: level + 1], len(ids)) for level in range(len(node))]
        return table

    s, t = codes(source), codes(target)
    shared = sum(((s[:, None, k] == t[None, :, k]) & (s[:, None, k] >= 0)).astype(np.int64) for k in range(levels))
    depth_s, depth_t = (s >= 0).sum(axis=1), (t >= 0).sum(axis=1)
    return depth_s[:, None] + depth_t[None, :] - 2 * shared
