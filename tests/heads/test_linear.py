"""The linear head is the trained one."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from jtln.heads import HeadInputs, Linear


class Unread:
    """Features that must not be read."""

    def of(self, *arguments: Any, **options: Any) -> Any:
        raise AssertionError("the linear head reads no features")


def test_fit_leaves_the_trained_head_as_it_is() -> None:
    head, trained = Linear(), nn.Linear(5, 3)
    before = {name: value.clone() for name, value in trained.state_dict().items()}
    classifier, chosen, _ = head.fit(trained, HeadInputs(Unread(), (4, 3), torch.rand(4, 3)))
    assert classifier is trained
    assert chosen == {}
    assert all(torch.equal(value, before[name]) for name, value in trained.state_dict().items())
    assert (head.name, head.uses_cost, head.replaces) == ("linear", False, False)


def test_a_state_dict_fills_an_empty_classifier() -> None:
    trained = nn.Linear(5, 3)
    again = Linear(**Linear().settings()).classifier(5, 3)
    again.load_state_dict(trained.state_dict())
    rows = torch.randn(2, 5)
    assert torch.equal(again(rows), trained(rows))
