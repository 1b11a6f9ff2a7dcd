"""Jobs through one of Hydra's launchers, in batches, until none is left."""

from __future__ import annotations

import contextlib
import threading
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple, Protocol

from hydra.core.utils import JobReturn, JobStatus

from jtln.reporting.numbers import clock
from jtln.study.job import Job
from jtln.study.ledger import Ledger

LOCKED = "locked"  # what a job returns whose run another process makes
_POLL = 1.0  # seconds between looks at what the others do


class Launcher(Protocol):
    """One of Hydra's launchers, set up to make the run of a study's job: :mod:`jtln.cli.launcher`."""

    def launch(self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int) -> Sequence[JobReturn]:
        """Make a run for each list of overrides; the jobs are numbered from ``initial_job_idx``."""


class Launch(NamedTuple):
    """The launch of a study's jobs: a launcher and its batches.

    Attributes:
        launcher: makes a run for each list of overrides.
        described: the launcher in words.
        batch: how many jobs it gets at once; None: all.
        extra: overrides that every run gets but that are not its settings.
    """

    launcher: Launcher
    described: str
    batch: int | None = None
    extra: tuple[str, ...] = ()


class Done(NamedTuple):
    """The end of a job: a result, or an error message."""

    job: Job
    result: dict[str, Any] | None
    error: str | None = None


class Runs:
    """Makes the runs of jobs, and prints a line for each.

    Pre-trained trunks come first: each that several of the missing runs start from is a job of its own. Results are
    read from the ledger, on whatever machine they were made.

    Args:
        launch: how.
        ledger: knows what is done and where runs lie.
        total: how many jobs there will be in all.
        show_test: whether the lines show test accuracies; not while hyper-parameters are chosen.
    """

    def __init__(self, launch: Launch, ledger: Ledger, total: int, show_test: bool = True) -> None:
        self.launch, self.ledger, self.total, self.show_test = launch, ledger, total, show_test
        self._started, self._count, self._made = time.perf_counter(), 0, 0
        self._errors: dict[str, str] = {}  # settings -> why there is no result
        self._trunks: dict[str, str | None] = {}  # those made or tried -> why there is none

    def make(self, jobs: Sequence[Job]) -> list[Done]:
        """Return how each job ended. A run that another process makes is skipped, and waited for in the end."""
        missing = list({job.settings: job for job in jobs if self.ledger.result(job) is None}.values())
        self._count += len(jobs) - len(missing)
        self._make_trunks(missing)
        for job in missing:
            if job.trunk is not None and (error := self._trunks.get(job.trunk)) is not None:
                self._end(job, f"its pre-training failed: {error}")
        skipped = 0
        while left := [job for job in missing if not self._is_over(job)]:
            if skipped == 0 or not all(map(self.ledger.is_under_way, left)):
                for batch in self._batches(left):
                    self._make_batch(batch)
                left = [job for job in left if not self._is_over(job)]
            if left and skipped != len(left):
                print(f"skipped    {len(left)} runs that other processes make: waiting for their end", flush=True)
            skipped = len(left)
            time.sleep(_POLL if left else 0)
        return [Done(job, self.ledger.result(job), self._errors.get(job.settings)) for job in jobs]

    def _make_trunks(self, jobs: Sequence[Job]) -> None:
        """Make the trunks that several jobs start from, by the first of these jobs each."""
        shared = Counter(job.trunk for job in jobs)
        first = {job.trunk: job for job in reversed(jobs) if job.trunk not in self._trunks and shared[job.trunk] > 1}
        folder = self.ledger.folder.parent / "trunks"
        for batch in self._batches([job for trunk, job in first.items() if trunk is not None]):
            calls = [[*job.overrides, "pretrain.only=true", *self._at(folder / str(job.trunk))] for job in batch]
            self._trunks |= {str(job.trunk): ret[1] for job, ret in zip(batch, self._launch(calls), strict=True)}

    def _make_batch(self, batch: Sequence[Job]) -> None:
        batch = [job for job in batch if not self._is_over(job)]  # another study may just have finished it
        if not batch:
            return
        with self._followed(batch):
            returned = self._launch([[*job.overrides, *self._at(self.ledger.folder_of(job))] for job in batch])
        for job, (value, error) in zip(batch, returned, strict=True):
            if not self._is_over(job) and value != LOCKED:
                self._end(job, error or "it ended without a result of the settings that it was given")

    def _batches(self, jobs: Sequence[Job]) -> Iterator[Sequence[Job]]:
        size = self.launch.batch or max(1, len(jobs))
        return (jobs[start : start + size] for start in range(0, len(jobs), size))

    def _at(self, folder: Path) -> list[str]:
        return [*self.launch.extra, f'hydra.sweep.dir="{folder.parent}"', f'hydra.sweep.subdir="{folder.name}"']

    def _launch(self, calls: Sequence[Sequence[str]]) -> list[tuple[Any, str | None]]:
        """Return what each job returned, and its error message.

        Where the process of a job dies, most launchers lose the whole batch: its jobs are launched again one by one.
        """
        try:
            returned = self.launch.launcher.launch(calls, 0)
        except Exception as error:
            if len(calls) > 1:
                return [each for call in calls for each in self._launch([call])]
            return [(None, f"the launcher failed: {type(error).__name__}: {str(error).strip().partition(chr(10))[0]}")]
        return [
            (None, str(each._return_value)) if each.status == JobStatus.FAILED else (each._return_value, None)
            for each in returned
        ]

    @contextlib.contextmanager
    def _followed(self, batch: Sequence[Job]) -> Iterator[None]:
        """Print the runs of a batch as they end, where the launcher gets more than one at once."""
        over = threading.Event()

        def follow() -> None:
            while not over.wait(_POLL):
                for job in batch:
                    self._is_over(job)

        thread = threading.Thread(target=follow if len(batch) > 1 else over.wait, daemon=True)
        thread.start()
        try:
            yield
        finally:
            over.set()
            thread.join()

    def _is_over(self, job: Job) -> bool:
        """Return True if a job has a result or an error, and print a result."""
        if job.settings in self._errors or self.ledger.result(job) is not None:
            return True
        if self.ledger.look(job) is not None:
            self._end(job)
            return True
        return False

    def _end(self, job: Job, error: str | None = None) -> None:
        """Print how a job ended, and about how long the others will take."""
        self._count, self._made = self._count + 1, self._made + 1
        seconds, result = time.perf_counter() - self._started, self.ledger.result(job)
        if result is None:
            self._errors[job.settings] = error or ""
            figures = f"FAILED: {error}"
        else:
            kind, split = ("test", "test") if self.show_test else ("validation", "val")
            taken = clock(result.get("seconds_in_all", result["seconds"]))
            figures = f"{kind} {100 * result['target'][split]['accuracy']:5.1f} %  in {taken}"
        what = f"{job.row}, {job.labels}, seed {job.seed}" + ("" if job.trial is None else f", trial {job.trial}")
        left = self.total - self._count
        remaining = f"about {clock(left * seconds / self._made)} left" if left > 0 else f"all in {clock(seconds)}"
        print(f"[{self._count:>{len(str(self.total))}}/{self.total}] {what:<42} {figures}  {remaining}", flush=True)
