"""Jobs onto workers until none is left."""

from __future__ import annotations

import queue
import shutil
import signal
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple, Protocol

from jtln.reporting.numbers import clock
from jtln.study.job import Job
from jtln.study.ledger import Ledger
from jtln.study.workers import last_words

_POLL = 0.5  # seconds between looks at what others do: the trunk of a run, the run of another study


class Worker(Protocol):
    """Makes one run at a time: :mod:`jtln.study.workers`."""

    def start(self, arguments: Sequence[str], log: Path, done: Callable[[int], None]) -> None: ...

    def stop(self) -> None: ...


class Done(NamedTuple):
    """How a job ended: with a result, or with an error message."""

    job: Job
    result: dict[str, Any] | None
    error: str | None = None


class Schedule:
    """Gives jobs to workers, the first first, and says so a line for each.

    Jobs that start from the same pre-trained trunk wait for the first of them to have trained it.

    Args:
        ledger: knows what is done and where runs lie.
        workers: each makes one run at a time.
        extra: arguments that every run gets but that are not its settings (--config-dir).
        show_test: whether the lines show test accuracies; not while hyper-parameters are chosen.
    """

    def __init__(
        self, ledger: Ledger, workers: Sequence[Worker], extra: Sequence[str] = (), show_test: bool = True
    ) -> None:
        self.ledger, self.extra, self.show_test = ledger, list(extra), show_test
        self.idle = list(workers)
        self.workers = list(workers)
        self.running: dict[str, tuple[Job, Worker, bool]] = {}  # settings -> job, its worker, whether it was resumed
        self.trained: set[str] = set()  # trunks that are in the cache
        self.training: dict[str, Job] = {}  # trunks that a job is at now
        self.finished: queue.Queue[tuple[str, int]] = queue.Queue()

    def run(
        self, jobs: Iterable[Job], total: int, then: Callable[[Done], Iterable[Job]] = lambda done: ()
    ) -> list[Done]:
        """Make all jobs and return how each ended, in the order in which they did.

        Args:
            jobs: the first jobs.
            total: how many there will be in all.
            then: called when a job has ended; gives the jobs that follow from it.
        """
        started, waiting, ended, made = time.perf_counter(), list(jobs), list[Done](), list[Done]()

        def end(done: Done) -> None:
            ended.append(done)
            waiting.extend(then(done))

        with _interruptible():
            try:
                while waiting or self.running:
                    replayed = False  # what follows from a finished job is looked at without a wait
                    for job in list(waiting):
                        if (result := self.ledger.result(job)) is not None:
                            replayed = True
                            waiting.remove(job)
                            end(Done(job, result))
                        elif self.idle and self._may_start(job) and self.ledger.claim(job):
                            if self.ledger.look(job) is None:  # another study may just have finished it
                                waiting.remove(job)
                                self._start(job)
                            else:
                                self.ledger.release(job)
                    for done in self._ended(wait=not replayed and bool(waiting or self.running)):
                        made.append(done)
                        seconds = time.perf_counter() - started
                        self._tell(done, len(ended) + 1, total, seconds, seconds / len(made))
                        end(done)
            finally:
                for worker in self.workers:
                    worker.stop()
                for job, _, _ in self.running.values():
                    self.ledger.release(job)
        return ended

    def _may_start(self, job: Job) -> bool:
        if job.settings in self.running:
            return False
        if job.trunk is None or job.trunk in self.trained or job.trunk not in self.training:
            return True
        leader = self.ledger.folder_of(self.training[job.trunk])
        if (leader / "checkpoints" / "last.ckpt").is_file():  # its own training is under way
            self.trained.add(job.trunk)
        return job.trunk in self.trained

    def _start(self, job: Job, fresh: bool = False) -> None:
        folder = self.ledger.folder_of(job)
        resumed = not fresh and self.ledger.cut_off(job)
        if not resumed:
            shutil.rmtree(folder / "checkpoints", ignore_errors=True)
        folder.mkdir(parents=True, exist_ok=True)
        where = f'resume="{folder.resolve()}"' if resumed else f'hydra.run.dir="{folder}"'
        if job.trunk is not None and job.trunk not in self.trained:
            self.training.setdefault(job.trunk, job)
        worker = self.idle.pop(0)
        self.running[job.settings] = (job, worker, resumed)
        arguments = [*self.extra, *job.overrides, where]
        worker.start(arguments, folder / "log.txt", lambda code: self.finished.put((job.settings, code)))

    def _ended(self, wait: bool) -> Iterator[Done]:
        try:
            settings, code = self.finished.get(timeout=_POLL if wait else 0)
        except queue.Empty:
            return
        job, worker, resumed = self.running.pop(settings)
        self.idle.append(worker)
        folder = self.ledger.folder_of(job)
        result = self.ledger.look(job)
        if job.trunk is not None and self.training.get(job.trunk) is job:
            del self.training[job.trunk]
            if result is not None:
                self.trained.add(job.trunk)
        if result is None and resumed:  # the checkpoint may be half of one: once more from the start
            self._start(job, fresh=True)
            return
        self.ledger.release(job)
        if result is not None:
            # Half of a run's bytes, of use to nobody any more: a study has hundreds of runs.
            (folder / "checkpoints" / "last.ckpt").unlink(missing_ok=True)
            yield Done(job, result)
        else:
            said = f"ended by signal {-code}" if code < 0 else last_words(folder / "log.txt")
            if code == 0:
                said = "it ended without a result of the settings that it was given"
            yield Done(job, None, f"{said} (see {folder / 'log.txt'})")

    def _tell(self, done: Done, count: int, total: int, seconds: float, each: float) -> None:
        job, left = done.job, (total - count) * each
        width = len(str(total))
        what = f"{job.row}, {job.labels}, seed {job.seed}" + ("" if job.trial is None else f", trial {job.trial}")
        remaining = f"about {clock(left)} left" if count < total else f"all in {clock(seconds)}"
        if done.result is None:
            figures = f"FAILED: {done.error}"
        else:
            target = done.result["target"]
            figures = f"validation {100 * target['val']['accuracy']:5.1f} %"
            if self.show_test:
                figures = f"test {100 * target['test']['accuracy']:5.1f} %"
            figures += f"  in {clock(done.result.get('seconds_in_all', done.result['seconds']))}"
        print(f"[{count:>{width}}/{total}] {what:<42} {figures}  {remaining}", flush=True)


@contextmanager
def _interruptible() -> Iterator[None]:
    """SIGTERM (a batch system's, a closed terminal's) ends a study like Ctrl-C, so that no worker is left behind."""

    def interrupt(*_: Any) -> None:
        raise KeyboardInterrupt

    try:
        before = {number: signal.signal(number, interrupt) for number in (signal.SIGTERM, signal.SIGINT)}
    except ValueError:  # not the main thread
        yield
        return
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
