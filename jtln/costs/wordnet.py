"""The cost that WordNet knows: how far apart the synsets of two classes lie."""

from __future__ import annotations

import torch
from torch import Tensor

from jtln.classes import ClassSet
from jtln.costs.base import Cost
from jtln.errors import unknown
from jtln.linking import Link, link
from jtln.wordnet import METRICS, distance


class WordNetCost(Cost):
    """C[i, j] = 1 - similarity of the WordNet 3.0 noun synsets of source class i and target class j.

    Args:
        metric: the similarity: "path", "wup", "lch", "lin", "jcn" or "res" (see :func:`jtln.wordnet.similarity`; how
            each becomes a distance, :func:`jtln.wordnet.distance`).
        scale: how the distances are brought to [0, 1], see :class:`Cost`.

    Attributes:
        source_links, target_links: how the classes were linked to synsets, after the first :meth:`distances`.

    Raises:
        UserError: the metric is unknown.
    """

    def __init__(self, metric: str = "wup", scale: str = "max") -> None:
        super().__init__(scale)
        if metric not in METRICS:
            raise unknown("WordNet metric", metric, METRICS)
        self.metric = metric
        self.source_links: tuple[Link, ...] = ()
        self.target_links: tuple[Link, ...] = ()

    def distances(self, source: ClassSet, target: ClassSet) -> Tensor:
        """(S, T) float32 in [0, 1]; 0 for the same synset. Raises a UserError where a class has no synset."""
        self.source_links, self.target_links = link(source), link(target)
        source_synsets = [each.synset for each in self.source_links]
        target_synsets = [each.synset for each in self.target_links]
        return torch.from_numpy(distance(source_synsets, target_synsets, self.metric)).float()
