"""Choosing among the senses of class names: by what pictures show, and by what the other classes of the set are."""

from __future__ import annotations

import functools
from collections.abc import Sequence

import numpy as np

from jtln.errors import unknown
from jtln.names.spelling import below, rows_of
from jtln.names.wordnet import find_rows, nouns, similarity

SENSES = ("context", "pictured", "first")
# The weights of "context", in units of log frequency
CONTEXT = 5.5  # for the similarity, in [0, 1], to the nearest classes
NEAREST = 10  # classes, or all others of a smaller set
NAMED = 2.0  # for a synset that WordNet calls by this name first: ray.n.07, the fish, against beam.n.04
KIND = 1.0  # against each step from things to people, see _rank
BLOCK = 1024  # senses at once, so that thousands of ambiguous names need no more than the memory of their scores
# What the classes of an image data set are, first to last.
_THINGS = ("animal.n.01", "artifact.n.01", "produce.n.01", "body_part.n.01")
_PEOPLE = ("person.n.01",)
_REST = (
    "plant.n.02",
    "fungus.n.01",
    "matter.n.03",
    "part.n.03",
    "location.n.01",
    "constellation.n.02",
)  # trees, dishes, furs, places
_PHYSICAL = ("physical_entity.n.01",)


def order(classes: Sequence[Sequence[str]], choice: str = "context") -> list[tuple[str, ...]]:
    """Return the senses of each class, the most probable first.

    "first" leaves them as they are, "pictured" puts animals, things, produce and parts of the body before plants,
    dishes, materials and places, these before people, and people before what cannot be seen.

    "context" lets the other classes say more: beside a squirrel and a hamster the beaver is the rodent and not its fur.
    By itself a sense scores log(1 + its occurrences in WordNet's tagged texts) + NAMED if it is a synset's first name
    - KIND times the rank of its kind, which is the order of "pictured". To that is added what the nearest NEAREST other
    classes give on average, each by whichever of its senses gives the most: CONTEXT times the similarity (Lin's, see
    ``names.wordnet.similarity``), less what that sense falls short of the best of its class by itself, so that two
    furs do not make each other likely. Nothing depends on the order of the classes; of senses that tie, the first given
    comes first. A set of one class has no context.

    How many of the chosen senses are those of the reviewed tables in jtln/assets, by name alone, of the names with
    several senses of which one is the table's, without its makeshifts (hypernyms, shared synsets):

    ==========  =====  =====  ========  =======
    table       names  first  pictured  context
    ==========  =====  =====  ========  =======
    caltech101     42     21        31       38
    caltech256     69     45        59       62
    cifar10         6      6         6        6
    cifar100       73     48        59       67
    office31       13      4         9       12
    pets            5      1         4        5
    cub200          6      2         4        5
    dtd             1      1         0        0
    flowers102     16      8         6       11
    food101         8      4         4        7
    imagenet      305    100       191      244
    places365      73     43        49       57
    pictograms     95     62        75       83
    ==========  =====  =====  ========  =======

    The first six tables chose the weights (of 144 on a grid, these and three others have 190 of their 208 right), and
    the others confirm them: 407 of 504, where "pictured" has 329. Chosen on all tables but one, for each in turn, they
    are always the same. The form of the score, though, was thought out with all tables in view. Of all 712 names it has
    597 right, without context 535, and with the order of the senses in place of the tagged texts about 575.

    Args:
        classes: for each of S classes the ids of its senses, the most frequent first; none for an unknown class.
        choice: one of :data:`SENSES`.

    Returns:
        S tuples with the same ids.

    Raises:
        UserError: the choice is unknown.
    """
    if choice not in SENSES:
        raise unknown("choice of senses", choice, SENSES)
    if choice == "first":
        return [tuple(ids) for ids in classes]
    if choice == "pictured":
        return [tuple(sorted(ids, key=_rank)) for ids in classes]
    scores = _scores(classes)
    return [tuple(sorted(ids, key=lambda each: -round(own[each], 9))) for ids, own in zip(classes, scores, strict=True)]


def _scores(classes: Sequence[Sequence[str]]) -> list[dict[str, float]]:
    """Return the score of each sense of each class, in units of the log of its frequency; 0 of what has no rival."""
    scores = [{each: _prior(each, ids) if len(ids) > 1 else 0.0 for each in ids} for ids in classes]
    known = [index for index, ids in enumerate(classes) if ids]
    count = min(NEAREST, len(known) - 1)
    asked = [(index, each) for index in known for each in classes[index] if len(classes[index]) > 1]
    if count < 1 or not asked:
        return scores
    senses = [each for index in known for each in classes[index]]
    lacks = np.array([max(scores[index].values()) - scores[index][each] for index in known for each in classes[index]])
    starts = np.cumsum([0, *(len(classes[index]) for index in known[:-1])])
    ids = {each: column for column, each in enumerate(dict.fromkeys(senses))}
    columns = [ids[each] for each in senses]
    place = {index: column for column, index in enumerate(known)}
    for first in range(0, len(asked), BLOCK):
        block = asked[first : first + BLOCK]
        alike = CONTEXT * similarity([each for _, each in block], list(ids), "lin")[:, columns] - lacks
        best = np.maximum.reduceat(alike, starts, axis=1)  # (senses, classes)
        best[np.arange(len(block)), [place[index] for index, _ in block]] = -np.inf  # its own class
        means = np.sort(best, axis=1)[:, -count:].mean(axis=1)
        for (index, each), mean in zip(block, means.tolist(), strict=True):
            scores[index][each] += mean
    return scores


def _prior(synset: str, among: Sequence[str]) -> float:
    """Return a sense's score without the other classes."""
    (row,) = rows_of([synset])
    named = set(rows_of(among)) <= set(nouns().senses(nouns().name(row)[0]))
    return float(np.log1p(nouns().tags[row])) + NAMED * named - KIND * _rank(synset)


@functools.cache
def _rank(synset: str) -> int:
    """Return a sense's kind by how often pictures are of that kind: 0 (a thing) to 3 (nothing visible)."""
    row = rows_of([synset])
    if not below(row, _rows(_PHYSICAL)):
        return 3
    for rank, kinds in ((0, _THINGS), (2, _PEOPLE), (1, _REST)):
        if below(row, _rows(kinds)):
            return rank
    return 0


@functools.cache
def _rows(synsets: tuple[str, ...]) -> tuple[int, ...]:
    return tuple(find_rows(synsets))
