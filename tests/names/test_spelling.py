"""Reading names as they are spelled; what whole lists of them are linked to is tested in test_linking.py."""

from __future__ import annotations

import pytest

from jtln.names.spelling import Reading, below, closest, head, look_up, read, rows_of, slips
from jtln.names.wordnet import name, nouns, senses


def named(rows: list[int]) -> list[str]:
    return [name(nouns().id(row)) for row in rows]


def test_a_reading_has_all_senses_or_those_that_the_hint_leaves() -> None:
    assert read("Mouse") == Reading(senses("mouse"))
    assert read("drill (tool)") == Reading((senses("drill")[0],))
    assert read("plane (tool)") == Reading(
        tuple(each for each in senses("plane") if name(each) in ("plane.n.04", "plane.n.05"))
    )
    assert read("jaguar (car)") == Reading(senses("jaguar"), "'car' fits none of its meanings")
    assert read("dog (zzz)") == Reading(senses("dog"))
    nearest = read("crane (machine)")
    assert nearest is not None
    assert nearest.note == "the nearest to 'machine'"
    assert (name(nearest.senses[0]), set(nearest.senses)) == ("crane.n.04", set(senses("crane")))


@pytest.mark.parametrize("text", ["", "!", "101", "-101", "(bird)", "()", "/", "A320", "Boeing 747-400", "qqqq (bird)"])
def test_what_is_no_noun(text: str) -> None:
    assert read(text) is None


def test_one_noun_is_looked_up_as_a_whole() -> None:
    assert named(look_up("T shirts")) == ["jersey.n.03"]
    assert named(look_up("labour_camp")) == ["labor_camp.n.01"]
    assert look_up("polar bears dance") == []


@pytest.mark.parametrize(
    ("plural", "meant"), [("shoes", "shoe.n.01"), ("hands", "hand.n.01"), ("glasses", "spectacles.n.01")]
)
def test_a_plural_whose_own_senses_are_nothing_physical_is_read_as_its_singular(plural: str, meant: str) -> None:
    assert nouns().find(meant) in look_up(plural)


def test_kinds() -> None:
    rows = rows_of(senses("seal"))
    assert named(below(rows, rows_of(["animal.n.01"]))) == ["seal.n.09"]
    assert below(rows_of(["animal.n.01"]), rows_of(["animal.n.01"])) == rows_of(["animal.n.01"])
    assert below(rows_of(["animal.n.01"]), rows_of(["animal.n.01"]), itself=False) == []
    assert rows_of(["dog.n.01", "dog.n.99"]) == [nouns().find("n02084071")]


def test_what_is_close() -> None:
    assert closest("zebbra") == ["zebra"]
    assert closest("Golden_Retreiver")[0] == "golden_retriever"
    assert closest("qqqqzzzz") == []
    assert head("mountain bike helmet") == senses("helmet")
    assert head("statue of liberty replica") == senses("statue")
    assert head("toy (small)") == senses("toy")
    assert head("707-320") == ()


def test_slips() -> None:
    assert slips("water_lilly") == slips("waterlilly") == ["water_lily"]
    assert slips("flamengos") == []  # 8 letters: a dance and a bird
    assert slips("water_lilly", []) == []
