"""The value that a run returns to Hydra's sweeper, which may optimise it (hydra/sweeper=optuna, for one)."""

from __future__ import annotations

from typing import Any

from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode

from jtln.errors import UserError, unknown
from jtln.reporting.numbers import GOALS

_BASIC = "hydra._internal.core_plugins.basic_sweeper.BasicSweeper"


def is_optimized() -> bool:
    """Return True if a sweeper reads what this run returns, as any does but Hydra's basic one."""
    hydra = HydraConfig.get()
    return hydra.mode == RunMode.MULTIRUN and hydra.sweeper.get("_target_") != _BASIC


def check_objective(metric: str, validates: bool) -> None:
    """Raise a UserError where the sweeper could not optimise the metric, or would optimise the opposite.

    Args:
        metric: one of GOALS.
        validates: whether the run has validation images.
    """
    if metric not in GOALS:
        raise unknown("optimized_metric", metric, GOALS)
    if not is_optimized():
        return
    if not validates:
        raise UserError(
            f"expected validation images, whose {metric} the sweeper optimises, but got dataset.validation=0: set "
            "dataset.validation to a number > 0, or leave out hydra/sweeper"
        )
    direction = HydraConfig.get().sweeper.get("direction")
    if direction is not None and (got := getattr(direction, "name", str(direction))) != GOALS[metric]:
        raise UserError(
            f"expected hydra.sweeper.direction={GOALS[metric]} for optimized_metric={metric}, but got {got}"
        )


def objective(metric: str, result: dict[str, Any]) -> float | None:
    """Return the metric of the target's validation images; None where there are none.

    Args:
        metric: its name.
        result: the content of ``result.json``.
    """
    values = result["target"]["val"]
    return None if values is None else float(values[metric])
