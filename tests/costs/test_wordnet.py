"""The WordNet cost: shape, scale, links, and the order of related classes."""

from __future__ import annotations

import pytest
import torch

from jtln.costs import WordNetCost
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


def test_unknown_metric_and_unlinked_class() -> None:
    with pytest.raises(UserError, match=r"metric 'paths'.*'path'"):
        WordNetCost("paths")
    with pytest.raises(UserError, match="scale 'min'"):
        WordNetCost(scale="min")
    with pytest.raises(UserError, match="xyzzyx"):
        WordNetCost().matrix(SOURCE, ClassSet(["xyzzyx"]))
