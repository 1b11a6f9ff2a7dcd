"""The choice among the senses of class names, by what images show and by the other classes of the set."""

from __future__ import annotations

import functools
from collections.abc import Sequence

import numpy as np

from jtln.errors import unknown
from jtln.names.spelling import below, rows_of
from jtln.names.wordnet import find_rows, nouns, similarity

SENSES = ("context", "pictured", "first")
# The weights of "context", in units of log frequency.
CONTEXT = 5.5  # of the similarity, in [0, 1], to the nearest classes
NEAREST = 10  # number of nearest classes; all others in a smaller set
NAMED = 2.0  # bonus of a synset whose first lemma is the name: ray.n.07, the fish, against beam.n.04
KIND = 1.0  # penalty of each step from things to people, see _rank
BLOCK = 1024  # senses scored at once, which bounds the memory for thousands of ambiguous names
# The kinds of classes in image data sets, from the most to the least frequent.
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

    "first" keeps their order. "pictured" puts animals, things, produce and body parts first, then plants, dishes,
    materials and places, then people, and last everything that cannot be seen.

    "context" also uses the other classes: beside a squirrel and a hamster "beaver" is the rodent and not its fur. A
    sense's own score is log(1 + its occurrences in WordNet's tagged texts), plus NAMED if the name is the synset's
    first lemma, minus KIND times the rank of its kind (the order of "pictured"). The mean contribution of the NEAREST
    other classes is added to it. A class contributes, by its best sense, CONTEXT times the similarity (Lin's, see
    ``names.wordnet.similarity``) minus the deficit of that sense's own score to the best of its class, so that two
    furs do not support each other. The result does not depend on the order of the classes; ties keep the given order.
    A set of one class has no context.

    The number of chosen senses that agree with the reviewed tables in jtln/assets, by name alone, over the names with
    several senses of which one is the table's (without hypernyms and shared synsets as substitutes):

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

    The weights were chosen on the first six tables (of 144 on a grid, these and three others have 190 of 208 right);
    on the others they have 407 of 504 right, and "pictured" 329. Leaving out one table at a time gives the same
    weights. The form of the score, however, was chosen with all tables in view. Of all 712 names it has 597 right,
    without context 535, and with the order of the senses in place of the tagged texts about 575.

    Args:
        classes: for each of S classes the ids of its senses, the most frequent first; empty for an unknown class.
        choice: one of :data:`SENSES`.

    Returns:
        S tuples of the same ids.

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
    """Return the score of each sense of each class, in units of log frequency; a class's only sense has 0."""
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
        best[np.arange(len(block)), [place[index] for index, _ in block]] = -np.inf  # excludes the own class
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
    """Return the rank of a sense's kind, by how often images show it: 0 (a thing) to 3 (not visible)."""
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
