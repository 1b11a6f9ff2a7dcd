"""Long passes over many files: threaded, with a progress message, and by one process at a time."""

from __future__ import annotations

import os
import sys
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar

from filelock import FileLock, Timeout
from tqdm import tqdm

PATIENCE = 2.0  # seconds without a message
Item = TypeVar("Item")
Result = TypeVar("Result")


def cores() -> int:
    """Return the number of processor cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def in_order(function: Callable[[Item], Result], items: Iterable[Item], threads: int) -> Iterator[Result]:
    """Yield the function's value for each item, in order, computed slightly ahead by several threads."""
    waiting: deque[Future[Result]] = deque()
    with ThreadPoolExecutor(threads) as pool:
        for item in items:
            waiting.append(pool.submit(function, item))
            if len(waiting) > 8 * threads:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()


@contextmanager
def one_at_a_time(lock: Path, message: str, patience: float = PATIENCE) -> Iterator[None]:
    """Hold a lock among processes; print the message if another process holds it longer than ``patience``.

    Raises:
        OSError: the lock file cannot be created.
    """
    file = FileLock(lock)
    try:
        held = file.acquire(timeout=patience)
    except Timeout:
        print(message, file=sys.stderr, flush=True)
        held = file.acquire()
    with held:
        yield


class Watch:
    """The progress of a long pass: a bar on a terminal, otherwise one line.

    Args:
        what: the pass does, for the message.
        total: number of steps.
        patience: seconds until the first message.
    """

    def __init__(self, what: str, total: int, patience: float = PATIENCE) -> None:
        self.what, self.total, self.done = what, total, 0
        self.started = time.monotonic()
        self.silent_until = self.started + patience
        self.bar = tqdm(total=total, desc=what, delay=patience, leave=False, disable=not sys.stderr.isatty())

    def __enter__(self) -> Watch:
        return self

    def __exit__(self, *_: object) -> None:
        self.bar.close()

    def step(self, count: int = 1) -> None:
        """Count steps."""
        self.done += count
        self.bar.update(count)
        if self.bar.disable and (now := time.monotonic()) > self.silent_until:
            seconds = (now - self.started) * self.total / self.done
            print(f"{self.what}: {self.total}, in about {seconds:.0f} s", file=sys.stderr, flush=True)
            self.silent_until = float("inf")
