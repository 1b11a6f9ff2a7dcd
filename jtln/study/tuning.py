"""The same search for the hyper-parameters of every row: Optuna's TPE, on validation accuracy.

With few validation images the best of many trials is mostly the luckiest. The values as configured, which are the first
trial, therefore stay unless another is better by more than two standard errors of a difference between two accuracies
over that many images. Those are taken as if each had images of its own; in truth both see the same, and differ by less.
"""

from __future__ import annotations

import hashlib
import json
import math
import zlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import fmean
from typing import Any

from jtln.errors import UserError
from jtln.study.job import Job
from jtln.study.launch import Done

STARTUP_TRIALS = 8  # drawn at random before the sampler models what it saw, however many follow: so more can be added
Values = Mapping[str, Any]


@dataclass(frozen=True)
class Tuned:
    """The result of the search for a row.

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
    """The search of one row, one trial after another; a trial's runs (its seeds) are one batch.

    Trials are kept in Optuna's storage, and their runs in the ledger, from which a search goes on. Each trial has a
    sampler of its own seed, so the same trials follow from the same history.

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
        storage: of :func:`storage_in`; None keeps the trials in memory.
    """

    row: str
    space: Mapping[str, Any]
    current: Values
    trials: int
    jobs: Callable[[int, Values], list[Job]]
    seed: int = 0
    margin: float = 2.0
    storage: Any = None
    _done: list[tuple[dict[str, Any], float | None]] = field(default_factory=list)
    _scores: list[float | None] = field(default_factory=list)
    _images: dict[int, int] = field(default_factory=dict)  # seed -> its validation images, whatever is labelled

    def __post_init__(self) -> None:
        optuna = _optuna()
        self._space = {key: _distribution(optuna, key, values) for key, values in self.space.items()}
        known = {key: self.current[key] for key in self._space if self.current.get(key) is not None}
        held = {key: value for key, value in known.items() if _holds(self._space[key], value)}
        self._starts_as_configured = len(known) == len(self._space)
        self._configured = dict(known) if self._starts_as_configured and held != known else None  # beside the sampler
        self._study = optuna.create_study(
            storage=self.storage, study_name=f"{self.row} {self._key(known)}", load_if_exists=True, direction="maximize"
        )
        if held and self._configured is None and not self._study.get_trials(deepcopy=False):
            self._study.enqueue_trial(held)

    def _key(self, known: Values) -> str:
        """Return the hash of what the trials depend on: the runs with the values as configured, and the space."""
        facts = [[job.settings for job in self.jobs(0, known)], dict(self.space), self.seed]
        return hashlib.sha256(json.dumps(facts, sort_keys=True, default=str).encode()).hexdigest()[:8]

    def ask(self) -> list[Job]:
        """Return the runs of the next trial; none where all trials are done."""
        number = len(self._done)
        if number >= self.trials:
            return []
        if self._configured is not None and number == 0:
            self._trial, self._values = None, self._configured
        else:
            self._trial, params = self._next(number - (self._configured is not None))
            self._values = {key: _rounded(value) for key, value in params.items()}
        self._scores, self._left = [], self.jobs(number, self._values)
        return list(self._left)

    def _next(self, number: int) -> tuple[int, Values]:
        """Return number and parameters of the trial that is kept under ``number``, or else of a new one."""
        optuna = _optuna()
        state = optuna.trial.TrialState
        kept = self._study.get_trials(deepcopy=False, states=(state.RUNNING, state.COMPLETE, state.FAIL))
        if number < len(kept):
            return kept[number].number, kept[number].params
        seed = (zlib.crc32(self.row.encode()) + self.seed + number) % 2**32
        self._study.sampler = optuna.samplers.TPESampler(n_startup_trials=STARTUP_TRIALS, seed=seed)
        trial = self._study.ask(self._space)
        return trial.number, trial.params

    def take(self, done: Done) -> None:
        """Take the end of a run into account; the last one of a trial ends the trial."""
        self._left.remove(done.job)
        seen = None if done.result is None else done.result["target"]["val"]
        self._scores.append(None if seen is None else seen["accuracy"])
        if seen is not None:
            self._images[done.job.seed] = seen["n"]
        if self._left:
            return
        scores = [score for score in self._scores if score is not None]
        score = fmean(scores) if len(scores) == len(self._scores) else None
        if self._trial is not None:
            state = _optuna().trial.TrialState.FAIL if score is None else None
            self._study.tell(self._trial, score, state=state, skip_if_finished=True)
        self._done.append((self._values, score))

    @property
    def succeeded(self) -> bool:
        """True if any trial has succeeded."""
        return any(score is not None for _, score in self._done)

    def tuned(self) -> Tuned:
        """Return the best of the trials that succeeded, of which there must be one, and the first of equals.

        The configured values are kept where no trial is better by the margin.
        """
        scored = [(values, score) for values, score in self._done if score is not None]
        values, score = max(scored, key=lambda each: each[1])
        theirs = self._done[0][1]
        if self._starts_as_configured and theirs is not None:
            images = sum(self._images.values())
            error = math.sqrt(_variance(score, images) + _variance(theirs, images))
            if score - theirs <= self.margin * error:
                return Tuned({key: self.current[key] for key in self._space}, theirs, self._done, kept=True)
        return Tuned(values, score, self._done)


def run_searches(searches: Iterable[Search], make: Callable[[Sequence[Job]], list[Done]]) -> dict[str, Tuned]:
    """Run all searches side by side, a trial of each at a time. A row of which every trial failed is left out.

    Args:
        searches: one for each row.
        make: makes the runs of jobs: :meth:`Runs.make`.
    """
    by_row = {search.row: search for search in searches}
    while jobs := [job for search in by_row.values() for job in search.ask()]:
        for done in make(jobs):
            by_row[done.job.row].take(done)
    return {row: search.tuned() for row, search in by_row.items() if search.succeeded}


def storage_in(folder: Path) -> Any:
    """Return the storage ``tuning.log`` in ``folder``: ``optuna-dashboard FOLDER/tuning.log`` shows it.

    A journal, and no SQLite file: a network file system may damage the latter where several machines write to it.
    """
    optuna = _optuna()
    folder.mkdir(parents=True, exist_ok=True)
    return optuna.storages.JournalStorage(optuna.storages.journal.JournalFileBackend(str(folder / "tuning.log")))


def _variance(accuracy: float, images: int) -> float:
    """Return the variance of an accuracy over so many images, with one more right and one more wrong.

    Without these two the variance were 0 where all are right.
    """
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
    """Return True if a configured value lies in the searched range or choices."""
    try:
        return bool(distribution._contains(distribution.to_internal_repr(value)))
    except ValueError:  # none of the choices, zero on a logarithmic scale
        return False


def _rounded(value: Any) -> Any:
    """Four significant digits: what is written down is what was tried."""
    return float(f"{value:.4g}") if isinstance(value, float) else value
