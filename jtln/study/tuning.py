"""The same search for the hyper-parameters of every row: Optuna's TPE, on validation accuracy.

With few validation images the best of many trials is mostly the luckiest. The values as configured, which are the first
trial, therefore stay unless another is better by more than two standard errors of a difference between two accuracies
over that many images. Those are taken as if each had images of its own; in truth both see the same, and differ by less.
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from statistics import fmean
from typing import Any

from jtln.errors import UserError
from jtln.study.job import Job
from jtln.study.schedule import Done

STARTUP_TRIALS = 8  # drawn at random before the sampler models what it saw, however many follow: so more can be added
Values = Mapping[str, Any]


@dataclass(frozen=True)
class Tuned:
    """What the search chose for a row.

    Attributes:
        values: key -> value.
        validation: mean validation accuracy with them, in [0, 1], over the tuning's seeds and numbers of labels.
        trials: (values, validation accuracy or None where a run failed), in the order tried.
        kept: whether the values are those configured, as no trial was better by more than the margin.
    """

    values: dict[str, Any]
    validation: float
    trials: list[tuple[dict[str, Any], float | None]]
    kept: bool = False


@dataclass
class Search:
    """The search of one row, one trial after another; a trial's runs (its seeds) are made in parallel.

    Finished runs are replayed from the ledger: the sampler is seeded, so it asks for the same trials again.

    Args:
        row: the row's name.
        space: key -> [low, high], [low, high, log], [low, high, int] or {choices: [...]}.
        current: the values as configured: the first trial, whether or not the space holds them, of which the sampler
            learns where it does. None where a key has no value yet.
        trials: how many.
        jobs: makes the runs of a trial from its number and values.
        seed: of the sampler, with the row's name.
        margin: >= 0; standard errors of the difference by which a trial must be better than the values as configured.
            0: by anything.
    """

    row: str
    space: Mapping[str, Any]
    current: Values
    trials: int
    jobs: Callable[[int, Values], list[Job]]
    seed: int = 0
    margin: float = 2.0
    _done: list[tuple[dict[str, Any], float | None]] = field(default_factory=list)
    _scores: list[float | None] = field(default_factory=list)
    _images: dict[int, int] = field(default_factory=dict)  # seed -> its validation images, whatever is labelled

    def __post_init__(self) -> None:
        optuna = _optuna()
        sampler = optuna.samplers.TPESampler(
            n_startup_trials=STARTUP_TRIALS,
            seed=(zlib.crc32(self.row.encode()) + self.seed) % 2**32,
        )
        self._study = optuna.create_study(direction="maximize", sampler=sampler)
        self._space = {key: _distribution(optuna, key, values) for key, values in self.space.items()}
        known = {key: self.current[key] for key in self._space if self.current.get(key) is not None}
        held = {key: value for key, value in known.items() if _holds(self._space[key], value)}
        self._starts_as_configured = len(known) == len(self._space)
        self._configured = dict(known) if self._starts_as_configured and held != known else None  # beside the sampler
        if held and self._configured is None:
            self._study.enqueue_trial(held)

    def begin(self) -> list[Job]:
        """The runs of the next trial; none where all trials are done."""
        if len(self._done) >= self.trials:
            return []
        if self._configured is not None and not self._done:
            self._trial, self._values = None, self._configured
        else:
            self._trial = self._study.ask(self._space)
            self._values = {key: _rounded(value) for key, value in self._trial.params.items()}
        self._scores, self._left = [], self.jobs(len(self._done), self._values)
        return list(self._left)

    def take(self, done: Done) -> list[Job]:
        """Take the end of a run into account; returns the runs that follow from it, if any."""
        self._left.remove(done.job)
        seen = None if done.result is None else done.result["target"]["val"]
        self._scores.append(None if seen is None else seen["accuracy"])
        if seen is not None:
            self._images[done.job.seed] = seen["n"]
        if self._left:
            return []
        scores = [score for score in self._scores if score is not None]
        # Rounded, so that the sampler sees the same number in whatever order the runs ended.
        score = round(fmean(scores), 9) if len(scores) == len(self._scores) else None
        if self._trial is not None:
            state = _optuna().trial.TrialState.FAIL if score is None else None
            self._study.tell(self._trial, score, state=state)
        self._done.append((self._values, score))
        return self.begin()

    @property
    def succeeded(self) -> bool:
        """Whether any trial has."""
        return any(score is not None for _, score in self._done)

    def tuned(self) -> Tuned:
        """The best of the trials that succeeded, of which there must be one, and the first of equals; the values as
        configured where it is not better by the margin."""
        scored = [(values, score) for values, score in self._done if score is not None]
        values, score = max(scored, key=lambda each: each[1])
        theirs = self._done[0][1]
        if self._starts_as_configured and theirs is not None:
            images = sum(self._images.values())
            error = math.sqrt(_variance(score, images) + _variance(theirs, images))
            if score - theirs <= self.margin * error:
                return Tuned({key: self.current[key] for key in self._space}, theirs, self._done, kept=True)
        return Tuned(values, score, self._done)


def run_searches(searches: Iterable[Search], run: Callable[..., list[Done]], runs_per_trial: int) -> dict[str, Tuned]:
    """All searches side by side; ``run`` is a :meth:`Schedule.run`. A row of which every trial failed is left out."""
    by_row = {search.row: search for search in searches}
    total = sum(search.trials for search in by_row.values()) * runs_per_trial
    first = [job for search in by_row.values() for job in search.begin()]
    run(first, total, lambda done: by_row[done.job.row].take(done))
    return {row: search.tuned() for row, search in by_row.items() if search.succeeded}


def _variance(accuracy: float, images: int) -> float:
    """Of an accuracy over so many images; with one more right and one more wrong, or it were 0 where all are right."""
    share = (accuracy * images + 1) / (images + 2)
    return share * (1 - share) / (images + 2)


def _optuna() -> Any:
    try:
        import optuna
    except ImportError as error:
        raise UserError('tuning needs Optuna: pip install "jtln[tune]", or leave study.tune.trials at 0') from error
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    return optuna


def _distribution(optuna: Any, key: str, values: Any) -> Any:
    kinds = optuna.distributions
    if isinstance(values, Mapping) and set(values) == {"choices"} and values["choices"]:
        return kinds.CategoricalDistribution(list(values["choices"]))
    if isinstance(values, list | tuple) and len(values) in (2, 3):
        low, high, kind = (*values, "linear")[:3]
        numbers = all(isinstance(end, int | float) and not isinstance(end, bool) for end in (low, high))
        if numbers and low < high and kind in ("linear", "log", "int") and (kind != "log" or low > 0):
            if kind == "int":
                return kinds.IntDistribution(int(low), int(high))
            return kinds.FloatDistribution(float(low), float(high), log=kind == "log")
    raise UserError(
        f"expected the tuning space of {key} to be [low, high], [low, high, log], [low, high, int] or "
        f"{{choices: [...]}}, but got {values!r}"
    )


def _holds(distribution: Any, value: Any) -> bool:
    """Whether a value as it is configured lies in what is searched."""
    try:
        return bool(distribution._contains(distribution.to_internal_repr(value)))
    except ValueError:  # none of the choices, zero on a logarithmic scale
        return False


def _rounded(value: Any) -> Any:
    """Four significant digits: what is written down is what was tried."""
    return float(f"{value:.4g}") if isinstance(value, float) else value
