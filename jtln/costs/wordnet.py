"""The WordNet cost: the distance between the synsets of two classes."""

from __future__ import annotations

import torch
from torch import Tensor

from jtln.costs.base import Cost, Unknown
from jtln.errors import unknown
from jtln.names.class_set import ClassSet
from jtln.names.linking import REMEDY, UNKNOWN, Found, Link, link
from jtln.names.senses import SENSES
from jtln.names.wordnet import METRICS, distance


class WordNetCost(Cost):
    """C[i, j] = 1 - similarity of the WordNet 3.0 noun synsets of source class i and target class j.

    Args:
        metric: the similarity: "path", "wup", "lch", "lin", "jcn" or "res" (see
            :func:`jtln.names.wordnet.similarity`, and :func:`jtln.names.wordnet.distance` for the distance).
        scale: how the distances are scaled to [0, 1], see :class:`Cost`.
        senses: the choice among several senses of a name: "context", "pictured" or "first"
            (:func:`jtln.names.linking.link`).
        unknown_names: the treatment of names that are neither in WordNet, nor a misspelling, nor a compound with a
            known head noun (:func:`jtln.names.linking.link_all`, which warns): "neutral" costs
            (:meth:`Cost.matrix`), or an "error" that lists all of them.

    Attributes:
        source_links, target_links: how the classes were linked to synsets, after the first :meth:`distances`.

    Raises:
        UserError: the metric or another choice is unknown.
    """

    remedy = REMEDY

    def __init__(
        self, metric: str = "wup", scale: str = "max", senses: str = "context", unknown_names: str = "neutral"
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
        self.source_links: tuple[Found, ...] = ()
        self.target_links: tuple[Found, ...] = ()
        self._linked: tuple[ClassSet, ClassSet] | None = None  # the class sets of these links

    def unknown(self, source: ClassSet, target: ClassSet) -> Unknown:
        """Return the classes that are not linked to a synset; raise the errors of :meth:`distances`."""
        self._link(source, target)
        return Unknown(
            *(
                tuple(index for index, each in enumerate(links) if not isinstance(each, Link))
                for links in (self.source_links, self.target_links)
            )
        )

    def distances(self, source: ClassSet, target: ClassSet) -> Tensor:
        """Return the distances (S, T) float32 in [0, 1]; 0 for the same synset, NaN for a class without one.

        Raises:
            UserError: a given synset does not exist, or names are unknown and ``unknown_names`` is "error".
        """
        self._link(source, target)
        found = [
            [(index, each.synset) for index, each in enumerate(links) if isinstance(each, Link)]
            for links in (self.source_links, self.target_links)
        ]
        rows, columns = ([index for index, _ in side] for side in found)
        synsets = [[synset for _, synset in side] for side in found]
        result = torch.full((len(source), len(target)), torch.nan)
        known = torch.from_numpy(distance(synsets[0], synsets[1], self.metric)).float()
        result[torch.tensor(rows, dtype=torch.long)[:, None], torch.tensor(columns, dtype=torch.long)] = known
        return result

    def _link(self, source: ClassSet, target: ClassSet) -> None:
        """Link the classes, with one warning, unless they were linked last."""
        if self._linked == (source, target):
            return
        found = link({"source": source, "target": target}, self.senses, self.unknown_names)
        self.source_links, self.target_links = found["source"], found["target"]
        self._linked = source, target
