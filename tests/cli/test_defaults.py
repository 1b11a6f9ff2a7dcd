"""What dataset/source=classifier chooses where the command line does not."""

from __future__ import annotations

import pytest

from jtln.cli.defaults import OF_CLASSIFIER, OF_PHOTOGRAPHS, WITHOUT_IMAGES, with_defaults

CHOSEN = "dataset/source=classifier"


def test_other_sources_change_nothing() -> None:
    assert with_defaults(["cost=uniform", "dataset/source=imagenet"]) == ["cost=uniform", "dataset/source=imagenet"]


def test_a_published_classifier_as_the_source() -> None:
    assert with_defaults([CHOSEN]) == [*OF_CLASSIFIER, CHOSEN]


@pytest.mark.parametrize(
    ("given", "left_out"),
    [
        ("head.prior=0", {"head.prior=0.5"}),
        ("pretrain=source", {"pretrain=none"}),
        ("method.lambda_source=1", {"++method.lambda_source=0.0"}),
        ("method=linear_probe", {"head=linear"}),
        ("cost=uniform", {"cost=wordnet", "cost.metric=path"}),
        ("cost.metric=wup", {"cost.metric=path"}),
    ],
)
def test_what_the_command_line_sets_stays(given: str, left_out: set[str]) -> None:
    found = with_defaults([CHOSEN, given])
    assert set(OF_CLASSIFIER) - set(found) == left_out
    assert found[-2:] == [CHOSEN, given]
    assert with_defaults(found) == found


@pytest.mark.parametrize(
    ("given", "added"),
    [
        ([], {*OF_PHOTOGRAPHS}),
        ([CHOSEN], {*OF_PHOTOGRAPHS}),  # which it chooses itself
        (["cost=uniform"], {"head.power=0.5"}),
        (["cost=permuted"], {"head.power=0.5", "cost.of.metric=path"}),
        (["head=cosine"], {"cost.metric=path"}),
        (["head=linear", "cost.metric=wup"], set()),
        (["head=logistic", "head.power=1"], {"cost.metric=path"}),
        (["method=jtln"], {*OF_PHOTOGRAPHS, *WITHOUT_IMAGES}),
    ],
)
def test_photographs_set_what_their_own_cost_and_head_have(given: list[str], added: set[str]) -> None:
    arguments = ["experiment=photographs", *given]
    found = with_defaults(arguments)
    assert set(found) - set(arguments) == added
    assert found[-len(arguments) :] == arguments
    assert with_defaults(found) == found
