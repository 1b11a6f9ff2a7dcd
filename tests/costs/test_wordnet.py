"""The WordNet cost: shape, scale, links, and the order of related classes."""

from __future__ import annotations

import pytest
import torch

from jtln.costs import Unknown, WordNetCost
from jtln.errors import UserError
from jtln.names.class_set import ClassSet
from jtln.names.linking import AmbiguousClassWarning
from jtln.names.wordnet import METRICS, similarity

SOURCE = ClassSet(["dog", "car", "apple"], ["dog.n.01", "car.n.01", "apple.n.01"])
TARGET = ClassSet(["cat", "truck"], ["cat.n.01", "truck.n.01"])


@pytest.mark.parametrize("metric", METRICS)
def test_matrix_is_scaled_and_relatives_are_nearest(metric: str) -> None:
    matrix = WordNetCost(metric).matrix(SOURCE, TARGET)
    assert matrix.shape == (3, 2)
    assert matrix.dtype == torch.float32
    assert matrix.min() >= 0
    assert matrix.max() == 1
    assert matrix[:, 0].argmin() == 0
    assert matrix[:, 1].argmin() == 1


def test_distances_are_one_minus_wup_by_default() -> None:
    expected = 1 - similarity(["dog.n.01", "car.n.01", "apple.n.01"], ["cat.n.01", "truck.n.01"], "wup")
    torch.testing.assert_close(WordNetCost().distances(SOURCE, TARGET), torch.from_numpy(expected).float())


def test_links_are_kept_for_the_report() -> None:
    cost = WordNetCost()
    assert cost.source_links == ()
    cost.matrix(SOURCE, ClassSet(["zebra"]))
    assert [each.name for each in cost.source_links] == ["dog", "car", "apple"]
    assert [(each.synset, each.how) for each in cost.target_links] == [("n02391049", "lemma")]


def test_a_class_in_both_sets_costs_nothing() -> None:
    cost = WordNetCost("res", scale="none").matrix(SOURCE, SOURCE)
    assert (cost.diagonal() == 0).all()


def test_names_are_linked_where_no_synset_is_given() -> None:
    with pytest.warns(AmbiguousClassWarning, match=r"dog -> dog\.n\.01"):
        by_name = WordNetCost().matrix(ClassSet(["dog", "apple"]), ClassSet(["zebra"]))
    given = WordNetCost().matrix(ClassSet(["a", "b"], ["dog.n.01", "apple.n.01"]), ClassSet(["c"], ["zebra.n.01"]))
    torch.testing.assert_close(by_name, given)


@pytest.mark.parametrize("scale", ["max", "range"])
def test_unknown_classes_have_the_mean_costs(scale: str) -> None:
    """The matrix of the known classes is unchanged."""
    source = ClassSet(["xyzzyx", *SOURCE.names], [None, *(SOURCE.synsets or ())])
    target = ClassSet(["cat", "xyzzzyx", "truck"], ["cat.n.01", None, "truck.n.01"])
    cost = WordNetCost("path", scale)
    with pytest.warns(AmbiguousClassWarning, match=r"(?s)2 of 7 .*source xyzzyx: .*target xyzzzyx: "):
        assert cost.unknown(source, target) == Unknown((0,), (1,))
    matrix, known = cost.matrix(source, target), WordNetCost("path", scale).matrix(SOURCE, TARGET)
    torch.testing.assert_close(matrix[1:][:, [0, 2]], known)
    torch.testing.assert_close(matrix[1:, 1], known.mean(1))
    torch.testing.assert_close(matrix[0, [0, 2]], known.mean(0))
    torch.testing.assert_close(matrix[0, 1], known.mean())
    raw = cost.distances(source, target)
    assert torch.equal(raw.isnan(), torch.tensor([[True] * 3, *[[False, True, False]] * 3]))


def test_unknown_classes_as_an_error() -> None:
    cost = WordNetCost(unknown_names="error")
    with pytest.raises(UserError, match=r"(?s)2 of 5 .*source xyzzyx: .*target zyxxyz: .*dataset\.links=FILE"):
        cost.matrix(ClassSet(["dog", "xyzzyx", "water_lilly"]), ClassSet(["zyxxyz", "zebra"]))


@pytest.mark.filterwarnings("ignore::jtln.names.linking.AmbiguousClassWarning")
def test_a_side_without_any_known_class_is_an_error() -> None:
    with pytest.raises(UserError, match=r"target class.*WordNetCost.*all 2: xyzzyx, zyxxyz.*dataset\.links=FILE"):
        WordNetCost().matrix(SOURCE, ClassSet(["xyzzyx", "zyxxyz"]))
    with pytest.raises(UserError, match=r"source class.*all 7: a1, b1, c1, d1, e1, \.\.\."):
        WordNetCost().matrix(ClassSet([f"{letter}1" for letter in "abcdefg"]), TARGET)


def test_two_classes_of_one_synset() -> None:
    """A compound and its head noun have the same distance from every source class."""
    with pytest.warns(AmbiguousClassWarning, match="desk_lamp -> lamp"):
        matrix = WordNetCost().matrix(SOURCE, ClassSet(["desk_lamp", "lamp", "cat"]))
    assert torch.equal(matrix[:, 0], matrix[:, 1])
    assert matrix.isfinite().all()


def test_unknown_choices() -> None:
    with pytest.raises(UserError, match=r"metric 'paths'.*'path'"):
        WordNetCost("paths")
    with pytest.raises(UserError, match="scale 'min'"):
        WordNetCost(scale="min")
    with pytest.raises(UserError, match=r"unknown names 'head'.*neutral, error"):
        WordNetCost(unknown_names="head")
