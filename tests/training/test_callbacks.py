"""A training that diverges ends with a message, and nothing of it is kept."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch

from jtln.errors import UserError
from jtln.methods import Method
from jtln.module import JTLN, Optimization, not_finite
from jtln.trunks.base import Trunk

Fit = Callable[..., Any]


def test_a_loss_that_is_not_finite_is_named_with_its_step(make_trunk: Callable[..., Trunk], fit: Fit) -> None:
    optimization = Optimization(partial(torch.optim.SGD, lr=1e38), 1.0)
    module = JTLN(make_trunk(), 4, 3, Method(lambda_source=1.0), optimization=optimization)
    named = r"(target_loss|source_loss) (nan|inf).* at step \d.*optimizer\.lr"
    with pytest.raises(UserError, match=named):
        fit(module, steps=8)


def test_weights_that_are_not_finite_end_it_before_the_validation(make_trunk: Callable[..., Trunk], fit: Fit) -> None:
    """Of the last step, whose loss was finite."""
    module = JTLN(make_trunk(), 4, 3, Method(), optimization=Optimization(partial(torch.optim.SGD, lr=math.inf)))
    with pytest.raises(UserError, match=r"weights \w+.*step 1"):
        fit(module, steps=1)


def test_the_first_tensor_that_is_not_finite() -> None:
    state = {"whole": torch.tensor([1]), "fine": torch.ones(2), "half": torch.tensor([1.0, math.nan]), "text": "nan"}
    assert not_finite(state) == "half"
    assert not_finite({"fine": torch.ones(2)}) is None
