import re

import numpy as np
import pytest

from jtln.data.selection import folded, in_both, select
from jtln.errors import UserError
from jtln.names.class_set import ClassSet

PLANES = ClassSet(
    ["737-200", "737-300", "747-100", "A300", "A310", "DC-3"],
    paths=["Boeing/Boeing 737", "Boeing/Boeing 737", "Boeing/Boeing 747", "Airbus/A300", "Airbus/A310", None],
)
DEEP = ClassSet(
    ["737-200", "747-100", "A330", "A340", "Global Express", "Hawk"],
    paths=[
        "airliner/narrow/Boeing/Boeing 737",
        "airliner/wide/Boeing/Boeing 747",
        "airliner/wide/Airbus/A330",
        "airliner/wide/Airbus/A340",
        "business jet/wide/Bombardier",
        None,
    ],
)
LETTERS = ClassSet([chr(97 + index) for index in range(26)])


def chosen(wanted: object, classes: ClassSet = PLANES, seed: int = 0) -> list[str]:
    return select(classes, wanted, "target_classes", (seed, 0), classes.names)  # type: ignore[arg-type]


def test_names_stay_in_the_order_given() -> None:
    assert chosen(["A310", "737-200"]) == ["A310", "737-200"]
    assert chosen("DC-3") == ["DC-3"]
    assert chosen(["A310", "A310"]) == ["A310"]
    assert chosen([1, 0], ClassSet(["0", "1"])) == ["1", "0"]  # YAML reads a folder's name as a number


def test_a_branch_of_the_hierarchy_stands_for_all_below_it() -> None:
    assert chosen("Boeing/*") == ["737-200", "737-300", "747-100"]
    assert chosen(["Boeing/Boeing 737/*", "DC-3"]) == ["737-200", "737-300", "DC-3"]
    assert chosen(["737-300", "Boeing/*"]) == ["737-300", "737-200", "747-100"]


@pytest.mark.parametrize(
    ("branch", "names"),
    [
        ("airliner/*", ["737-200", "747-100", "A330", "A340"]),  # the top
        ("Boeing/*", ["737-200", "747-100"]),  # in two branches
        ("A340/*", ["A340"]),  # the bottom
        ("wide/*", ["747-100", "A330", "A340", "Global Express"]),
        ("wide/Airbus/*", ["A330", "A340"]),
        ("airliner/wide/Boeing/Boeing 747/*", ["747-100"]),
    ],
)
def test_a_branch_may_begin_at_any_level(branch: str, names: list[str]) -> None:
    assert chosen(branch, DEEP) == names


@pytest.mark.parametrize(
    ("branch", "meant"),
    [
        ("wide/Airbuss/*", "wide/Airbus/"),
        ("airliner/Boeing/*", "airliner/"),  # not consecutive
        ("Boein/*", "Boeing/"),  # part of a component only
        ("airliner/wide/Airbus/A340/A340-300/*", "airliner/wide/Airbus/A340/"),  # more levels than there are
    ],
)
def test_a_branch_that_is_none_is_explained(branch: str, meant: str) -> None:
    with pytest.raises(UserError, match=f"{re.escape(branch)}.*'{meant}"):
        chosen(branch, DEEP)


def test_all_and_rest_are_those_that_are_free() -> None:
    for word in ("all", "rest"):
        assert select(PLANES, word, "source_classes", (0, 1), ["A300", "DC-3"]) == ["A300", "DC-3"]


@pytest.mark.parametrize("count", [2, 13, 26])
def test_a_number_is_drawn_in_order(count: int) -> None:
    drawn = chosen(count, LETTERS)
    assert len(drawn) == count
    assert drawn == sorted(drawn)
    assert drawn == chosen(count, LETTERS)


def test_draws_are_nested_and_seeded() -> None:
    assert set(chosen(5, LETTERS)) < set(chosen(6, LETTERS))
    assert chosen(0.5, LETTERS) == chosen(13, LETTERS)
    assert chosen(5, LETTERS, seed=1) != chosen(5, LETTERS)
    often = np.zeros(26)
    for seed in range(200):
        often[[LETTERS.index(name) for name in chosen(13, LETTERS, seed=seed)]] += 1
    assert (abs(often - 100) < 4 * 50**0.5).all()  # four standard deviations of a fair coin


@pytest.mark.parametrize(
    ("wanted", "message"),
    [
        (["A31"], "'A31'.*'A310'"),
        ("Boing/*", r"'Boing/\*'.*Airbus/\*.*'Boeing/\*'"),
        ("Boeing/Boing 747/*", "'Boeing/Boeing 747/"),
        (1, "2 to 6 "),
        (7, "2 to 6 "),
        (1.5, r"1\.5"),
        (0.01, r"0\.01"),
        (True, "target_classes.*True"),
        (None, "target_classes.*None"),
    ],
)
def test_mistakes_are_explained(wanted: object, message: str) -> None:
    with pytest.raises(UserError, match=message):
        chosen(wanted)


def test_a_branch_needs_a_hierarchy() -> None:
    with pytest.raises(UserError, match=r"x/\*"):
        chosen("x/*", LETTERS)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("golden_retriever", "Golden Retriever"),
        ("003.backpack", "back pack"),
        ("T-shirt/top", "t shirt top"),
        ("sneaker-101", "Sneaker"),
        ("n02129604_tiger", "tiger"),
    ],
)
def test_names_are_folded(one: str, other: str) -> None:
    assert folded(one) == folded(other)


def test_names_that_differ_stay_apart() -> None:
    assert len({folded(name) for name in ("737-200", "737-300", "A300", "B52", "0", "1", "++", "--")}) == 8


def test_in_both_goes_by_synset_and_by_name() -> None:
    source = ClassSet(
        ["tabby", "n02084071-toy", "back pack", "crane", "owl"], ["cat.n.01", None, None, "crane.n.04", None]
    )
    target = ClassSet(
        ["house cat", "dog", "003.backpack", "crane (bird)"], ["cat.n.01", "dog.n.01", None, "crane.n.05"]
    )
    assert in_both(source, target) == ("tabby", "n02084071-toy", "back pack")
