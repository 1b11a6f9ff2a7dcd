"""Processes that make one run after another: starting Python and PyTorch anew takes longer than many a run."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from jtln.errors import UserError

Train = Callable[[list[str]], int]  # the arguments of train.py -> its exit code


class InThisProcess:
    """Makes a run where it is, and returns when it is made. For tests, and to look at a fault with a debugger."""

    def __init__(self, train: Train) -> None:
        self.train = train

    def start(self, arguments: Sequence[str], log: Path, done: Callable[[int], None]) -> None:
        with (
            open(log, "a", encoding="utf-8") as file,
            contextlib.redirect_stdout(file),
            contextlib.redirect_stderr(file),
        ):
            code = self.train(list(arguments))
        if code == 130:
            raise KeyboardInterrupt
        done(code)

    def stop(self) -> None:
        """Nothing is left running."""


class Process:
    """Makes runs in a process of its own, which is started at the first of them.

    Args:
        command: what starts the process: it reads a line of JSON for each run, and answers with a line that holds the
            exit code.
        environment: set for it over this process's environment.
        anew: whether every run gets a new process. A run on several devices leaves its group of processes behind, and
            the next one would wait for members that have ended.
    """

    def __init__(self, command: Sequence[str], environment: Mapping[str, str], anew: bool = False) -> None:
        self.command, self.environment, self.anew = list(command), dict(environment), anew
        self._process: subprocess.Popen[str] | None = None

    def start(self, arguments: Sequence[str], log: Path, done: Callable[[int], None]) -> None:
        """Begin a run; ``done`` is called with its exit code, in another thread."""
        if self._process is None or self._process.poll() is not None:
            self._process = subprocess.Popen(
                self.command,
                env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path)), **self.environment},
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
                start_new_session=True,  # Ctrl-C reaches this process alone, which then ends the others
            )
        message = {"arguments": list(arguments), "log": str(log)}
        threading.Thread(target=lambda: done(self._make(message)), daemon=True).start()

    def _make(self, message: dict[str, Any]) -> int:
        process = self._process
        assert process is not None
        assert process.stdin is not None
        assert process.stdout is not None
        try:
            process.stdin.write(json.dumps(message) + "\n")
            process.stdin.flush()
            answer = process.stdout.readline()
        except (OSError, ValueError):  # the pipe was closed: the process has ended
            answer = ""
        if self.anew:
            with contextlib.suppress(OSError):  # the process has ended already
                process.stdin.close()  # no more to read: it ends
            process.wait()
        return int(answer) if answer.strip() else (process.wait() or 1)

    def stop(self) -> None:
        """End the process and what it has started; a run that it was at can be resumed from its last checkpoint."""
        process = self._process
        if process is None or process.poll() is not None:
            return
        for number in (signal.SIGTERM, signal.SIGKILL):
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, number)
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(timeout=10)
                return


def environments(workers: int | str, accelerator: str, devices: Any) -> list[dict[str, str]]:
    """What each worker process finds in its environment: its share of the cores, and its GPU.

    Args:
        workers: how many; "auto" is one a GPU where the runs use GPUs, and otherwise one a core.
        accelerator, devices: the trainer's. A run on several devices has them all, so there is one worker.

    Raises:
        UserError: ``workers`` is no whole number >= 1 and not "auto".
    """
    if workers != "auto" and (not isinstance(workers, int) or isinstance(workers, bool) or workers < 1):
        raise UserError(f"expected study.workers to be auto or a whole number >= 0, but got {workers!r}")
    cores, gpus = _cores(), _gpus() if accelerator in ("auto", "gpu", "cuda") else []
    if on_several(devices):
        return [{}]
    apple = accelerator == "mps" or (accelerator == "auto" and not gpus and _is_apple())
    count = (len(gpus) or (1 if apple else cores)) if workers == "auto" else int(workers)
    threads = str(max(1, cores // count))
    shares = [{"OMP_NUM_THREADS": threads, "MKL_NUM_THREADS": threads} for _ in range(count)]
    for index, share in enumerate(shares if gpus else []):
        share["CUDA_VISIBLE_DEVICES"] = gpus[index % len(gpus)]
    return shares


def on_several(devices: Any) -> bool:
    """Whether a run with trainer.devices so set may use more than one."""
    return str(devices) != "1"


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _gpus() -> list[str]:
    """As CUDA_VISIBLE_DEVICES names them: one that is set already has the names, by number or by UUID."""
    import torch

    named = [name.strip() for name in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if name.strip()]
    count = torch.cuda.device_count()
    return named[:count] if named else [str(index) for index in range(count)]


def _is_apple() -> bool:
    import torch

    return torch.backends.mps.is_available()


def last_words(log: Path) -> str:
    """The line in which a run said what went wrong: its error message, or the end of its traceback."""
    try:
        lines = [line.strip() for line in log.read_text(encoding="utf-8", errors="replace").splitlines()]
    except OSError:
        lines = []
    errors = [line for line in lines if line.startswith("error: ")]
    return (errors or [line for line in lines if line] or ["it said nothing"])[-1].removeprefix("error: ")
