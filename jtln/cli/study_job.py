"""One job of a study, in whatever process Hydra's launcher makes it."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import threading
import traceback
from collections.abc import Callable, Iterator
from functools import partial
from itertools import cycle
from pathlib import Path
from typing import Any, NamedTuple

from filelock import FileLock, Timeout
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig

from jtln.cli import run
from jtln.cli.overrides import config_dir_given, overrides_given
from jtln.cli.user_errors import explain
from jtln.cli.user_warnings import in_words
from jtln.errors import UserError
from jtln.study.launch import LOCKED
from jtln.study.ledger import held, result_of

_locks: list[FileLock] = []  # that this process holds as long as it lives
_RESUMED = ("checkpoints/last.ckpt", "overrides.yaml")  # what an interrupted run goes on from
_child: subprocess.Popen[bytes] | None = None  # that makes a run on several devices


class Machine(NamedTuple):
    """The resources that the processes of a study share on one machine.

    Attributes:
        folder: holds the locks by which they find each other.
        workers: the number of processes at a time.
        threads: the number of threads of each process.
        gpus: as CUDA_VISIBLE_DEVICES names them; each process takes one.
    """

    folder: Path
    workers: int
    threads: int
    gpus: tuple[str, ...] = ()

    def join(self) -> None:
        """Make this process one of them: it takes its share, and ends when the study's main process does."""
        if _locks:
            return
        os.environ.setdefault("OMP_NUM_THREADS", str(self.threads))  # read when PyTorch is imported
        os.environ.setdefault("MKL_NUM_THREADS", str(self.threads))
        for place in cycle(range(self.workers)):
            lock = FileLock(self.folder / f"worker-{place}")
            with contextlib.suppress(Timeout):
                lock.acquire(timeout=0.1)
                _locks.append(lock)
                break
        if self.gpus:
            os.environ["CUDA_VISIBLE_DEVICES"] = self.gpus[place % len(self.gpus)]
        threading.Thread(target=self._end_with_the_study, daemon=True).start()

    def _end_with_the_study(self) -> None:
        """Wait for the lock of the main process, which its end frees, SIGKILL included."""
        with contextlib.suppress(OSError):  # the folder is deleted: the same
            FileLock(self.folder / "main").acquire(poll_interval=0.5)
        _end_child()
        os._exit(1)


def make(config: DictConfig, machine: Machine | None = None) -> str | None:
    """Make the run that ``config`` describes in the folder of this Hydra job, where ``log.txt`` gets its output.

    A finished run is left alone, an interrupted one goes on from its last checkpoint, or from the start where that
    cannot be read.

    Args:
        config: the composed configuration.
        machine: what the processes of the study share; None where the launcher sees to that.

    Returns:
        ``LOCKED`` where another process makes the run.

    Raises:
        RuntimeError: the run failed; the message is one line.
    """
    if machine is not None:
        machine.join()
    hydra = HydraConfig.get()
    folder = Path(hydra.runtime.output_dir)
    with in_words(), _output_in(folder / "log.txt"):
        try:
            return _make(config, folder)
        except Exception as error:
            message = explain(error, overrides_given(hydra))
            if message is None:
                traceback.print_exception(error)
                message = repr(error)
            print(f"error: {message}", file=sys.stderr)
    raise RuntimeError(f"{message} (see {folder / 'log.txt'})")


def _make(config: DictConfig, folder: Path) -> str | None:
    is_apart = str(config.trainer.devices) != "1"
    train = partial(_train_apart, folder) if is_apart else partial(_train_here, config, folder)
    if config.pretrain.get("only"):
        train()
        return None
    with contextlib.ExitStack() as lock:
        try:
            lock.enter_context(held(folder))
            if result_of(folder) is not None:
                return None
            if is_apart:
                lock.close()  # the process of its own holds the folder itself, as any run does
            if not (all((folder / each).is_file() for each in _RESUMED) and _resumes(train)):
                shutil.rmtree(folder / "checkpoints", ignore_errors=True)
                train()
        except Timeout:
            return LOCKED
        (folder / _RESUMED[0]).unlink(missing_ok=True)  # half of a run's bytes, and of no more use
    return None


def _resumes(train: Callable[..., None]) -> bool:
    try:
        train(resume=True)
    except Timeout:
        raise
    except Exception as error:  # half a checkpoint, or one of other images
        print(f"begun anew, as it cannot go on from its checkpoint: {error}", file=sys.stderr)
        return False
    return True


def _train_here(config: DictConfig, folder: Path, resume: bool = False) -> None:
    if resume:
        config = config.copy()
        config.resume = str(folder)
    run.train(config)


def _train_apart(folder: Path, resume: bool = False) -> None:
    """Make this job's run by ``train`` in a process of its own, so that Lightning starts it once for each device.

    Raises:
        UserError: it failed.
        Timeout: another process makes the run.
    """
    global _child
    hydra: Any = HydraConfig.get()
    search_path = [each for each in hydra.overrides.hydra if "hydra.searchpath" in each]
    arguments = [*config_dir_given(hydra), *search_path, *overrides_given(hydra), f'hydra.run.dir="{folder}"']
    # Without what makes Lightning wait for a cluster to start the other processes.
    kept = {key: value for key, value in os.environ.items() if not key.startswith(("SLURM_", "SUBMITIT_"))}
    _child = subprocess.Popen(
        [sys.executable, "-m", "jtln", "train", *arguments, *([f'resume="{folder}"'] if resume else [])],
        env=kept | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
        start_new_session=True,  # a group, which is ended as one
    )
    try:
        code = _child.wait()
    finally:
        _end_child()
        _child = None
    if code != 0:
        with held(folder):
            lines = (folder / "log.txt").read_text(encoding="utf-8", errors="replace").splitlines()
        errors = [line.removeprefix("error: ") for line in lines if line.startswith("error: ")]
        raise UserError(errors[-1] if errors else f"its process ended with exit code {code}")


def _end_child() -> None:
    if _child is not None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(_child.pid, signal.SIGKILL)


@contextlib.contextmanager
def _output_in(log: Path) -> Iterator[None]:
    """Send what this process prints to ``log``, and what C libraries and further processes print, too."""
    sys.stdout.flush()
    sys.stderr.flush()
    kept = {number: os.dup(number) for number in (1, 2)}
    with open(log, "a", encoding="utf-8") as file:
        for number in kept:
            os.dup2(file.fileno(), number)
    try:
        yield
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        for number, copy in kept.items():
            os.dup2(copy, number)
            os.close(copy)
