"""The objective's settings."""

from __future__ import annotations

import math
from typing import Any

import pytest

from jtln.errors import UserError
from jtln.methods import Method


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"ot_images": "sorce"}, "ot_images.*Did you mean 'source'"),
        ({"lambda_ot_unit": "epsilon"}, "lambda_ot_unit.*expected one of 1/epsilon, 1"),
        ({"gradient": "neither"}, "gradient.*both, source, target"),
        ({"lambda_ot": -1.0}, r"lambda_ot >= 0.*-1\.0"),
        ({"lambda_source": math.nan}, "lambda_source >= 0.*nan"),
        ({"lambda_label": math.inf}, "lambda_label >= 0.*inf"),
        ({"lambda_target": None}, "lambda_target >= 0.*None"),
    ],
)
def test_mistakes(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        Method(**settings)


def test_the_transport_loss_weighs_alike_at_every_epsilon() -> None:
    assert Method(lambda_ot=0.5).ot_weight(0.1) == pytest.approx(5.0)
    assert Method(lambda_ot=0.5, lambda_ot_unit="1").ot_weight(0.1) == 0.5
