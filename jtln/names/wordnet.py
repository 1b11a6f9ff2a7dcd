"""WordNet 3.0's noun taxonomy: look-up of synsets, and similarities between lists of synsets.

A synset is written as its WordNet 3.0 offset, ``"n02084071"``, which is ImageNet's id. NLTK's name ``"dog.n.01"`` (the
synset's first lemma and its rank among that lemma's senses) is accepted as well.
"""

from __future__ import annotations

import functools
import math
import re
from bisect import bisect_left
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from jtln.errors import UserError, unknown

METRICS = ("path", "wup", "lch", "lin", "jcn", "res")
TABLE = Path(__file__).parents[1] / "assets" / "wordnet" / "nouns.npz"
BLOCK = 2048  # synsets at once: all 21,841 of ImageNet would need gigabytes
FAR = 1000  # edges to a node that is no ancestor: more than any path has, and twice that fits in int16


class Nouns:
    """The noun table, whose parts are read on first use. Synsets are rows 0..N-1 in order of offset."""

    def __init__(self, path: Path = TABLE) -> None:
        self._path = path

    def _read(self, part: str) -> np.ndarray:
        with np.load(self._path) as table:  # The file is opened each time, so forked workers share no handle.
            return table[part]

    @functools.cached_property
    def offsets(self) -> np.ndarray:
        """The synsets' offsets (N,), ascending."""
        return np.cumsum(self._read("offsets"), dtype=np.int32)

    @functools.cached_property
    def _sorted(self) -> list[int]:
        return self.offsets.tolist()  # Looking up one offset is 20 times faster in a list than in the array.

    @functools.cached_property
    def _edges(self) -> tuple[np.ndarray, np.ndarray]:
        ends = np.cumsum(self._read("hypernym_counts"), dtype=np.int64)
        return np.concatenate([[0], ends]), self._read("hypernyms")

    def hypernyms(self, row: int) -> list[int]:
        """Return the rows directly above, instance hypernyms included, in WordNet's order."""
        starts, above = self._edges
        return above[starts[row] : starts[row + 1]].tolist()

    @functools.cached_property
    def information(self) -> np.ndarray:
        """The synsets' intrinsic information content (N,) in [0, 1]: 0 for the root, 1 for a leaf.

        Seco, Veale & Hayes 2004: ic(c) = 1 - log(hypo(c) + 1) / log(number of synsets).
        """
        return 1 - np.log(self._read("hyponyms") + 1.0) / math.log(len(self.offsets))

    @functools.cached_property
    def tags(self) -> np.ndarray:
        """The number of occurrences (N,) of each synset in the texts that WordNet's authors tagged; mostly 0."""
        return self._read("tags")

    @functools.cached_property
    def max_depth(self) -> int:
        """The number of edges on the longest path from the root to any synset: 19 in WordNet 3.0."""
        starts, above = self._edges
        child = np.repeat(np.arange(len(self.offsets)), np.diff(starts))
        depth = np.zeros(len(self.offsets), np.int32)
        while True:
            deeper = depth.copy()
            np.maximum.at(deeper, child, depth[above] + 1)
            if np.array_equal(deeper, depth):
                return int(depth.max())
            depth = deeper

    @functools.cached_property
    def lemmas(self) -> list[str]:
        """The lemmas (L,): sorted, lower case, words joined by underscores."""
        return self._read("lemmas").tobytes().decode("ascii").split("\n")

    @functools.cached_property
    def _lemma_rows(self) -> dict[str, int]:
        return {lemma: index for index, lemma in enumerate(self.lemmas)}

    @functools.cached_property
    def _senses(self) -> tuple[np.ndarray, np.ndarray]:
        ends = np.cumsum(self._read("sense_counts"), dtype=np.int64)
        return np.concatenate([[0], ends]), self._read("senses")

    def senses(self, lemma: str) -> list[int]:
        """Return the rows of the senses of ``lemma``, the most frequent first; empty for an unknown lemma."""
        index = self._lemma_rows.get(lemma)
        if index is None:
            return []
        starts, senses = self._senses
        return senses[starts[index] : starts[index + 1]].tolist()

    @functools.cached_property
    def _first(self) -> tuple[np.ndarray, np.ndarray]:
        starts, senses = self._senses
        flags = np.flatnonzero(np.unpackbits(self._read("first"), count=len(senses)))
        lemma = np.searchsorted(starts, flags, side="right") - 1
        first = np.empty((2, len(self.offsets)), np.int64)
        first[:, senses[flags]] = lemma, flags - starts[lemma] + 1
        return first[0], first[1]

    def name(self, row: int) -> tuple[str, int]:
        """Return the synset's first lemma, and the synset's rank (from 1) among that lemma's senses."""
        lemma, rank = self._first
        return self.lemmas[lemma[row]], int(rank[row])

    @functools.cached_property
    def exceptions(self) -> dict[str, list[str]]:
        """Irregular plurals and their singulars: "mice" -> ["mouse"]."""
        lines = self._read("exceptions").tobytes().decode("ascii").split("\n")
        return {plural: singulars for plural, *singulars in map(str.split, lines)}

    def find(self, synset: str) -> int | None:
        """Return the row of ``synset``, an id or a name; None if there is none."""
        if match := re.fullmatch(r"n(\d{8})", synset):
            offset = int(match[1])
            row = bisect_left(self._sorted, offset)
            return row if row < len(self._sorted) and self._sorted[row] == offset else None
        if match := re.fullmatch(r"(.+)\.n\.(\d{1,3})", synset.strip().lower()):
            senses, rank = self.senses(match[1].replace(" ", "_")), int(match[2])
            return senses[rank - 1] if 1 <= rank <= len(senses) else None
        return None

    def id(self, row: int) -> str:
        """Return the synset's id: "n" and its offset in 8 digits."""
        return f"n{self.offsets[row]:08d}"


@functools.cache
def nouns() -> Nouns:
    """Return the one table of this process."""
    return Nouns()


def find_rows(synsets: Iterable[str]) -> list[int]:
    """Return the rows of ``synsets``; raise a UserError that lists those that do not exist."""
    given = list(synsets)
    rows = [nouns().find(synset) for synset in given]
    if missing := [str(synset) for synset, row in zip(given, rows, strict=True) if row is None]:
        raise UserError(
            f"expected WordNet 3.0 noun synsets such as 'n02084071' or 'dog.n.01', but got: {', '.join(missing)}. "
            "Translate ids of another WordNet version first."
        )
    return [row for row in rows if row is not None]


def resolve(synset: str) -> str:
    """Return the canonical id: "dog.n.01" -> "n02084071"; raise a UserError if there is no such synset."""
    return nouns().id(find_rows([synset])[0])


def name(synset: str) -> str:
    """Return NLTK's name of a synset: "n02084071" -> "dog.n.01"; raise a UserError if there is no such synset."""
    lemma, rank = nouns().name(find_rows([synset])[0])
    return f"{lemma}.n.{rank:02d}"


def hypernym_chain(synset: str) -> tuple[str, ...]:
    """Return the ids from ``synset`` up to the root, by the first of several hypernyms.

    Raises:
        UserError: there is no such synset.
    """
    chain = find_rows([synset])
    while above := nouns().hypernyms(chain[-1]):
        chain.append(above[0])
    return tuple(nouns().id(row) for row in chain)


def senses(lemma: str) -> tuple[str, ...]:
    """Return the ids of the senses of ``lemma``, the most frequent first; case and spaces are folded, plurals not."""
    return tuple(nouns().id(row) for row in nouns().senses(lemma.lower().replace(" ", "_")))


class _Closure(NamedTuple):
    """The given synsets and all their ancestors as nodes 0..A-1, with each node's ancestors padded to K.

    Attributes:
        rows: (A,) rows of the table.
        ancestors: (A, K) nodes; the node itself comes first, and is the padding.
        edges: (A, K) fewest edges up to that ancestor; FAR in the padding.
        min_depth, max_depth: (A,) edges on the shortest and the longest path to the root.
    """

    rows: np.ndarray
    ancestors: np.ndarray
    edges: np.ndarray
    min_depth: np.ndarray
    max_depth: np.ndarray


def _close(rows: list[int]) -> tuple[_Closure, dict[int, int]]:
    above: dict[int, list[int]] = {}
    waiting = list(rows)
    while waiting:
        row = waiting.pop()
        if row not in above:
            above[row] = nouns().hypernyms(row)
            waiting.extend(above[row])

    ways: dict[int, dict[int, int]] = {}  # row -> its ancestors' edges
    depths: dict[int, tuple[int, int]] = {}
    waiting = list(above)
    while waiting:  # A row is finished after all rows above it.
        row = waiting[-1]
        todo = [parent for parent in above[row] if parent not in ways]
        if todo:
            waiting.extend(todo)
            continue
        waiting.pop()
        if row in ways:
            continue
        way = {row: 0}
        for parent in above[row]:
            for ancestor, steps in ways[parent].items():
                way[ancestor] = min(way.get(ancestor, FAR), steps + 1)
        ways[row] = way
        parents = [depths[parent] for parent in above[row]] or [(-1, -1)]
        depths[row] = 1 + min(p[0] for p in parents), 1 + max(p[1] for p in parents)

    node = {row: index for index, row in enumerate(ways)}
    width = max(map(len, ways.values()))
    ancestors = np.tile(np.arange(len(ways))[:, None], (1, width))
    edges = np.full((len(ways), width), FAR, np.int16)
    for index, way in enumerate(ways.values()):
        ancestors[index, : len(way)] = [node[ancestor] for ancestor in way]
        edges[index, : len(way)] = list(way.values())
    low, high = np.array([depths[row] for row in ways]).T
    return _Closure(np.array(list(ways)), ancestors, edges, low, high), node


def similarity(source: Sequence[str], target: Sequence[str], metric: str = "path") -> np.ndarray:
    """Return the similarities of all pairs of synsets, equal to those of NLTK's ``Synset.*_similarity``.

    d is the fewest edges from one synset up to a common hypernym and down to the other. ic is the intrinsic information
    content of Seco, Veale & Hayes 2004 (:attr:`Nouns.information`), and ic(lcs) its largest value over the common
    hypernyms:

    - ``path`` 1 / (d + 1), in (0, 1]
    - ``wup`` 2 depth(lcs) / (len1 + len2), in (0, 1]. As in NLTK, the lcs is the common hypernym with the greatest
      *shortest* path to the root, its depth is its *longest* path to the root (the root has depth 1), and len is that
      depth + the path distance to the lcs. With several hypernyms this can be below 1 for a synset and itself, and
      with tied hypernyms it can depend on the order of the two.
    - ``lch`` -log((d + 1) / (2 * 19)), in [0, log 38 = 3.64]; 19 is the depth of the noun taxonomy
    - ``res`` ic(lcs), in [0, 1]
    - ``lin`` 2 ic(lcs) / (ic1 + ic2), in [0, 1]; 1 for the root and itself, where NLTK divides by zero
    - ``jcn`` 1 / (ic1 + ic2 - 2 ic(lcs)), in [0, inf]; ``inf`` for a synset and itself, where NLTK has 1e300, and 0
      for the root and any other, as in NLTK

    Args:
        source: S synsets.
        target: T synsets.
        metric: one of :data:`METRICS`.

    Returns:
        (S, T) float64.

    Raises:
        UserError: the metric is unknown or a synset does not exist.
    """
    if metric not in METRICS:
        raise unknown("WordNet metric", metric, METRICS)
    source_rows, target_rows = find_rows(source), find_rows(target)
    if max(len(source), len(target)) > BLOCK:
        starts = range(0, len(source), BLOCK), range(0, len(target), BLOCK)
        return np.block(
            [[similarity(source[i : i + BLOCK], target[j : j + BLOCK], metric) for j in starts[1]] for i in starts[0]]
        )
    if not source_rows or not target_rows:
        return np.zeros((len(source_rows), len(target_rows)))
    closure, node = _close(source_rows + target_rows)
    s, t = np.array([node[row] for row in source_rows]), np.array([node[row] for row in target_rows])
    if metric in ("path", "lch"):
        d = _path_edges(closure, s, t)
        return 1 / (d + 1) if metric == "path" else -np.log((d + 1) / (2.0 * nouns().max_depth))
    if metric == "wup":
        return _wup(closure, s, t)
    ic = nouns().information[closure.rows]  # (A,)
    ic_sum = ic[s][:, None] + ic[t][None, :]
    ic_lcs = ic[_best_common(closure, s, t, np.argsort(np.argsort(ic, kind="stable")))]
    same = s[:, None] == t[None, :]
    if metric == "res":
        return ic_lcs
    with np.errstate(divide="ignore", invalid="ignore"):
        if metric == "lin":
            return np.where(same, 1.0, 2 * ic_lcs / ic_sum)
        root = (ic[s][:, None] == 0) | (ic[t][None, :] == 0)
        return np.where(same, np.inf, np.where(root, 0.0, 1 / (ic_sum - 2 * ic_lcs)))


def _edges_up(closure: _Closure, nodes: np.ndarray) -> np.ndarray:
    """Return the fewest edges (A, n) from each of ``nodes`` up to each node of the closure; FAR if it is not above."""
    up = np.full((len(closure.rows), len(nodes)), FAR, np.int16)
    columns = np.arange(len(nodes))
    for k in reversed(range(closure.ancestors.shape[1])):  # k = 0 comes last, because the node itself is the padding.
        up[closure.ancestors[nodes, k], columns] = closure.edges[nodes, k]
    return up


def _path_edges(closure: _Closure, s: np.ndarray, t: np.ndarray) -> np.ndarray:
    """Return the fewest edges (S, T) between two synsets through a common hypernym."""
    up = _edges_up(closure, t)
    d = np.full((len(s), len(t)), 2 * FAR, np.int16)
    for k in range(closure.ancestors.shape[1]):
        np.minimum(d, closure.edges[s, k][:, None] + up[closure.ancestors[s, k]], out=d)
    return d


def _best_common(closure: _Closure, s: np.ndarray, t: np.ndarray, rank: np.ndarray) -> np.ndarray:
    """Return the common ancestor (S, T) with the largest ``rank`` (A,), which is a permutation."""
    above = np.where(_edges_up(closure, t) < FAR, rank[:, None], -1).astype(np.int32)  # (A, T)
    best = np.full((len(s), len(t)), -1, np.int32)
    for k in range(closure.ancestors.shape[1]):
        np.maximum(best, above[closure.ancestors[s, k]], out=best)
    return np.argsort(rank)[best]


def _wup(closure: _Closure, s: np.ndarray, t: np.ndarray) -> np.ndarray:
    names = ["{}.n.{:02d}".format(*nouns().name(row)) for row in closure.rows.tolist()]
    # NLTK takes the hypernym of greatest shortest depth, and on ties the first by name.
    worst_first = sorted(sorted(range(len(names)), key=names.__getitem__, reverse=True), key=closure.min_depth.item)
    rank = np.empty(len(names), np.int64)
    rank[worst_first] = np.arange(len(names))
    lcs = _best_common(closure, s, t, rank)  # (S, T)
    # On ties NLTK prefers the source synset itself.
    over = _edges_up(closure, t)[s] < FAR  # the source synset is above the target synset
    tie = over & (closure.min_depth[s][:, None] == closure.min_depth[lcs])
    lcs = np.where(tie, s[:, None], lcs)

    depth = closure.max_depth[lcs] + 1
    s_index, t_index = np.arange(len(s))[:, None], np.arange(len(t))[None, :]
    len1 = depth + _edges_to_ancestors(closure, s)[s_index, lcs]
    len2 = depth + _edges_to_ancestors(closure, t)[t_index, lcs]
    return 2.0 * depth / (len1 + len2)


def _edges_to_ancestors(closure: _Closure, nodes: np.ndarray) -> np.ndarray:
    """Return the path distances (n, A) from each of ``nodes`` to each node above it; other entries are meaningless.

    These are not the edges straight up: with several hypernyms a path over a higher node can be shorter.
    """
    up = _edges_up(closure, nodes).T  # (n, A)
    distance = np.full(up.shape, FAR, np.int16)
    index = np.arange(len(nodes))[:, None]  # (n, 1)
    above = closure.ancestors[nodes]  # (n, K)
    shortest = np.full(above.shape, 2 * FAR, np.int16)
    for k in range(above.shape[1]):
        np.minimum(shortest, closure.edges[above, k] + up[index, closure.ancestors[above, k]], out=shortest)
    distance[index, above] = shortest
    return distance


def distance(source: Sequence[str], target: Sequence[str], metric: str = "path") -> np.ndarray:
    """Return the distances of all pairs of synsets: 1 - similarity, with the similarity scaled to [0, 1].

    ``path``, ``wup``, ``lin`` and ``res`` (with intrinsic information content) are in [0, 1] already; ``lch`` is
    divided by its value for a synset and itself, log 38; ``jcn`` is 1 - (ic1 + ic2 - 2 ic(lcs)) / 2, the form in which
    Seco, Veale & Hayes 2004 turn Jiang and Conrath's distance into a similarity. A synset and itself have distance 0 in
    every metric, even if the similarity is below 1 (``wup`` with several hypernyms, ``res`` of an inner node). The
    distance is symmetric: of NLTK's two values of ``wup`` the larger similarity counts.

    Args:
        source: S synsets.
        target: T synsets.
        metric: one of :data:`METRICS`.

    Returns:
        (S, T) float64, in [0, 1] (``lch`` may exceed 1 by at most log(39) / log(38) - 1).

    Raises:
        UserError: the metric is unknown or a synset does not exist.
    """
    return _distance(tuple(source), tuple(target), metric).copy()


@functools.lru_cache(maxsize=2)  # A study needs the same distances for many runs in one process.
def _distance(source: tuple[str, ...], target: tuple[str, ...], metric: str) -> np.ndarray:
    if metric == "jcn":
        ic_s, ic_t = nouns().information[find_rows(source)], nouns().information[find_rows(target)]
        d = (ic_s[:, None] + ic_t[None, :]) / 2 - similarity(source, target, "res")
    elif metric == "lch":
        d = 1 - similarity(source, target, "lch") / math.log(2 * nouns().max_depth)
    else:
        d = 1 - similarity(source, target, metric)
        if metric == "wup":
            d = np.minimum(d, 1 - similarity(target, source, metric).T)
    d[np.equal.outer(find_rows(source), find_rows(target))] = 0.0
    return np.maximum(d, 0.0)
