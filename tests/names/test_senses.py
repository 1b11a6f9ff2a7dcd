"""Which of several senses a name is taken in: by the other classes of its set, by kind, by frequency."""

from __future__ import annotations

import math
import random
from pathlib import Path

import numpy as np
import pytest

import jtln
from jtln.errors import UserError
from jtln.names import senses as module
from jtln.names.class_set import ClassSet
from jtln.names.senses import CONTEXT, KIND, NAMED, SENSES, order
from jtln.names.spelling import read
from jtln.names.wordnet import name, nouns, resolve, senses, similarity

CLASSES = Path(jtln.__file__).parent / "assets" / "classes"


def meanings(names: list[str]) -> list[tuple[str, ...]]:
    return [reading.senses if (reading := read(each)) else () for each in names]


def chosen(*names: str) -> list[str]:
    return [name(ids[0]) if ids else "" for ids in order(meanings([*names]))]


@pytest.mark.parametrize(
    ("names", "synset"),
    [
        ("crane heron stork", "crane.n.05"),  # the bird
        ("crane bulldozer excavator", "crane.n.04"),  # the machine
        ("bat owl fox", "bat.n.01"),
        ("bat racket golf_club", "bat.n.05"),  # the club
        ("mouse hamster squirrel", "mouse.n.01"),
        ("mouse trackball electronic_device", "mouse.n.04"),
        ("seal walrus dolphin whale", "seal.n.09"),
        ("seal otter", "seal.n.09"),  # not the furs of both
        ("seal envelope stamp", "seal.n.02"),
        ("beaver squirrel hamster", "beaver.n.07"),
        ("beaver bowler_hat bonnet", "beaver.n.06"),
        ("bass trout salmon", "bass.n.08"),
        ("bass guitar drum violin", "bass.n.07"),
        ("turkey duck goose", "turkey.n.01"),
        ("turkey france spain greece", "turkey.n.02"),
        ("kite eagle hawk vulture", "kite.n.04"),
        ("kite doll balloon", "kite.n.03"),
        ("boxer beagle poodle", "boxer.n.04"),
        ("boxer wrestler swimmer", "boxer.n.01"),
        ("pitcher cup bowl", "pitcher.n.02"),
        ("pitcher catcher umpire", "pitcher.n.01"),
        ("ray shark trout flatfish", "ray.n.07"),
    ],
)
def test_the_other_classes_determine_the_sense(names: str, synset: str) -> None:
    assert chosen(*names.split())[0] == synset


def test_a_set_of_cifar_100_is_understood() -> None:
    names = ClassSet.from_csv(CLASSES / "cifar100.csv").names
    found = dict(zip(names, chosen(*names), strict=True))
    meant = {
        "ray": "ray.n.07",
        "beaver": "beaver.n.07",
        "seal": "seal.n.09",
        "turtle": "turtle.n.02",
        "plate": "plate.n.04",
        "dolphin": "dolphin.n.02",
        "man": "man.n.01",
        "baby": "baby.n.01",
        "castle": "castle.n.02",
        "table": "table.n.02",
        "shrew": "shrew.n.02",
    }
    assert {each: found[each] for each in meant} == meant


@pytest.mark.parametrize(
    ("table", "at_least"), [("caltech256", 60), ("cifar100", 65), ("flowers102", 10), ("places365", 55)]
)
def test_by_name_alone_the_reviewed_tables_are_met(table: str, at_least: int) -> None:
    """The numbers of the docstring's table, which are larger than by kind and by frequency."""
    given = ClassSet.from_csv(CLASSES / f"{table}.csv")
    truth = [resolve(each) if each else "" for each in given.synsets or ()]
    candidates = meanings([*given.names])
    right = {
        choice: sum(
            len(ids) > 1 and ids[0] == synset for ids, synset in zip(order(candidates, choice), truth, strict=True)
        )
        for choice in SENSES
    }
    assert right["context"] >= at_least
    assert right["context"] > max(right["pictured"], right["first"])


def test_the_order_of_the_classes_does_not_matter() -> None:
    names = [*ClassSet.from_csv(CLASSES / "cifar100.csv").names]
    first = order(meanings(names))
    assert order(meanings(names)) == first
    shuffled = random.Random(0).sample(range(len(names)), len(names))
    again = order(meanings([names[index] for index in shuffled]))
    assert again == [first[index] for index in shuffled]


@pytest.mark.slow
def test_blocks_make_no_difference(monkeypatch: pytest.MonkeyPatch) -> None:
    candidates = meanings([*ClassSet.from_csv(CLASSES / "cifar100.csv").names])
    whole = order(candidates)
    monkeypatch.setattr(module, "BLOCK", 7)
    assert order(candidates) == whole


@pytest.mark.parametrize("choice", SENSES)
def test_small_sets(choice: str) -> None:
    assert order([], choice) == []
    assert order([()], choice) == [()]
    assert order([(), senses("zebra"), ()], choice) == [(), senses("zebra"), ()]
    (crane,) = order([senses("crane")], choice)
    assert set(crane) == set(senses("crane"))
    assert name(crane[0]) == ("crane.n.01" if choice == "first" else "crane.n.04")
    # Neither an unknown class nor the same class again has an influence.
    assert order([senses("crane"), ()], choice)[0] == crane
    assert order([senses("crane")] * 2, choice) == [crane] * 2


def test_the_score_is_that_of_the_docstring() -> None:
    """Each sense against the formula, for a class of two senses, an unambiguous and an ambiguous class."""
    boar, zebra, mouse = senses("boar"), senses("zebra"), senses("mouse")
    found = module._scores([boar, zebra, mouse])

    def prior(synset: str, lemma: str) -> float:
        row = nouns().find(synset)
        assert row is not None
        named = nouns().name(row)[0] == lemma
        return math.log(1 + int(nouns().tags[row])) + NAMED * named - KIND * module._rank(synset)

    lacks = [max(prior(m, "mouse") for m in mouse) - prior(m, "mouse") for m in mouse]
    for each in boar:
        to_zebra = CONTEXT * similarity([each], zebra, "lin")[0, 0]
        to_mouse = max(CONTEXT * similarity([each], mouse, "lin")[0] - np.array(lacks))
        assert found[0][each] == pytest.approx(prior(each, "boar") + (to_zebra + to_mouse) / 2)
    assert found[1] == {zebra[0]: 0.0}  # nothing to choose, nothing computed


def test_an_unknown_choice() -> None:
    with pytest.raises(UserError, match=r"senses 'contxt'.*'context'"):
        order([senses("crane")], "contxt")


def test_how_often_a_sense_occurs() -> None:
    """The animal was tagged 42 times, and the cad (dog.n.04) once."""
    rows = [nouns().find(each) for each in senses("dog")]
    assert [int(nouns().tags[row]) for row in rows if row is not None][:4] == [42, 0, 0, 1]
    assert nouns().tags.shape == nouns().offsets.shape
    assert nouns().tags.argmax() == nouns().find("person.n.01")
