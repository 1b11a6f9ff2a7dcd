"""Factors that change over training: of the learning rate, and of lambda_ot.

Each maps progress in [0, 1] to a factor.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from jtln.errors import UserError


@dataclass(frozen=True)
class Schedule:
    """Rises linearly from 0 over the first ``warmup`` share of training, then follows ``shape``.

    Args:
        warmup: share of training in [0, 1).
    """

    warmup: float = 0.0

    def __post_init__(self) -> None:
        if not 0 <= self.warmup < 1:
            raise UserError(f"expected warmup in [0, 1), a share of training, but got {self.warmup}")

    def shape(self, progress: float) -> float:
        """Return the factor after warm-up; ``progress`` in [0, 1] counts from the warm-up's end."""
        raise NotImplementedError

    def __call__(self, progress: float) -> float:
        """Return the factor at ``progress`` = steps done / all steps, in [0, 1]."""
        if progress < self.warmup:
            return progress / self.warmup
        return self.shape(min(1.0, (progress - self.warmup) / (1 - self.warmup)))


@dataclass(frozen=True)
class Constant(Schedule):
    """Stays at 1."""

    def shape(self, progress: float) -> float:
        return 1.0


@dataclass(frozen=True)
class Linear(Schedule):
    """Falls linearly from 1 to ``final`` at the share ``until`` of what follows the warm-up, and stays there."""

    until: float = 1.0
    final: float = 0.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 < self.until <= 1:
            raise UserError(f"expected until in (0, 1], a share of training, but got {self.until}")
        _check_final(self.final)

    def shape(self, progress: float) -> float:
        return 1.0 + (self.final - 1.0) * min(1.0, progress / self.until)


@dataclass(frozen=True)
class Cosine(Schedule):
    """Falls from 1 to ``final`` along half a cosine."""

    final: float = 0.0

    def __post_init__(self) -> None:
        super().__post_init__()
        _check_final(self.final)

    def shape(self, progress: float) -> float:
        return self.final + (1.0 - self.final) * 0.5 * (1.0 + math.cos(math.pi * progress))


@dataclass(frozen=True)
class Step(Schedule):
    """Is multiplied by ``gamma`` at each of ``milestones`` (shares of what follows the warm-up)."""

    milestones: Sequence[float] = (0.6, 0.85)
    gamma: float = 0.1

    def __post_init__(self) -> None:
        super().__post_init__()
        if wrong := [each for each in self.milestones if not (isinstance(each, int | float) and 0 < each < 1)]:
            raise UserError(f"expected milestones in (0, 1), shares of training, but got {wrong[0]!r}")
        if not 0 < self.gamma <= 1:
            raise UserError(f"expected gamma in (0, 1], a factor, but got {self.gamma}")

    def shape(self, progress: float) -> float:
        return self.gamma ** sum(progress >= milestone for milestone in self.milestones)


def _check_final(final: float) -> None:
    """Raise a UserError unless ``final`` is a factor to fall to."""
    if not 0 <= final <= 1:
        raise UserError(f"expected final in [0, 1], a factor, but got {final}")
