"""The cost that WordNet knows: how far apart the synsets of two classes lie."""

from __future__ import annotations

import torch
from torch import Tensor

from jtln.costs.base import Cost
from jtln.errors import unknown
from jtln.names.class_set import ClassSet
from jtln.names.linking import UNKNOWN, Link, link
from jtln.names.senses import SENSES
from jtln.names.wordnet import METRICS, distance


class WordNetCost(Cost):
    """C[i, j] = 1 - similarity of the WordNet 3.0 noun synsets of source class i and target class j.

    Args:
        metric: the similarity: "path", "wup", "lch", "lin", "jcn" or "res" (see
            :func:`jtln.names.wordnet.similarity`, and :func:`jtln.names.wordnet.distance` for the distance).
        scale: how the distances are brought to [0, 1], see :class:`Cost`.
        senses: which of several meanings is taken, "context", "pictured" or "first"
            (:func:`jtln.names.linking.link`).
        unknown_names: "error", or "head" to link a name that is unknown as a whole to the thing it names a kind of.

    Attributes:
        source_links, target_links: how the classes were linked to synsets, after the first :meth:`distances`.

    Raises:
        UserError: the metric or another choice is unknown.
    """

    def __init__(
        self, metric: str = "wup", scale: str = "max", senses: str = "context", unknown_names: str = "error"
    ) -> None:
        super().__init__(scale)
        for kind, got, choices in (
            ("WordNet metric", metric, METRICS),
            ("choice of senses", senses, SENSES),
            ("treatment of unknown names", unknown_names, UNKNOWN),
        ):
            if got not in choices:
                raise unknown(kind, got, choices)
        self.metric = metric
        self.senses = senses
        self.unknown_names = unknown_names
        self.source_links: tuple[Link, ...] = ()
        self.target_links: tuple[Link, ...] = ()

    def distances(self, source: ClassSet, target: ClassSet) -> Tensor:
        """(S, T) float32 in [0, 1]; 0 for the same synset. Raises a UserError where a class has no synset."""
        self.source_links = link(source, self.senses, self.unknown_names)
        self.target_links = link(target, self.senses, self.unknown_names)
        source_synsets = [each.synset for each in self.source_links]
        target_synsets = [each.synset for each in self.target_links]
        return torch.from_numpy(distance(source_synsets, target_synsets, self.metric)).float()
