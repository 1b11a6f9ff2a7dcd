"""What is done already: the run folders below a folder, known by the hash of their settings."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from jtln.study.job import Job


class Ledger:
    """The finished and the unfinished runs in one folder, which several studies may share at the same time.

    Args:
        folder: holds a run folder for each run; made when the first run is.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        found = (read_result(path) for path in folder.glob("*/result.json"))
        self._results = {each["settings"]["run"]: each for each in found if each and "run" in each["settings"]}
        self._locks: dict[str, FileLock] = {}

    def result(self, job: Job) -> dict[str, Any] | None:
        """What came of ``job``, where it was finished when last looked at."""
        return self._results.get(job.settings)

    def look(self, job: Job) -> dict[str, Any] | None:
        """What came of ``job``, where it is finished by now."""
        result = read_result(self.folder_of(job) / "result.json")
        if result is not None and result["settings"].get("run") == job.settings:
            self._results[job.settings] = result
        return self.result(job)

    def folder_of(self, job: Job) -> Path:
        """The run folder of ``job``: the one that it was begun in, under whatever name of its row, or a new one."""
        begun = sorted(self.folder.glob(f"*_{job.settings}"))
        return begun[0] if begun else self.folder / job.folder_name

    def cut_off(self, job: Job) -> bool:
        """Whether there is a checkpoint to go on from."""
        folder = self.folder_of(job)
        return all((folder / name).is_file() for name in ("checkpoints/last.ckpt", "overrides.yaml"))

    def claim(self, job: Job) -> bool:
        """Take ``job`` for this process; False while another study is at it."""
        path = self.folder / ".locks" / f"{job.settings}.lock"
        path.parent.mkdir(parents=True, exist_ok=True)
        lock = FileLock(path)
        try:
            lock.acquire(timeout=0)
        except Timeout:
            return False
        self._locks[job.settings] = lock
        return True

    def release(self, job: Job) -> None:
        if (lock := self._locks.pop(job.settings, None)) is not None:
            lock.release()


def read_results(folder: Path) -> Iterator[tuple[Path, dict[str, Any]]]:
    """Every readable result below ``folder``, at any depth, with its path; the trials of a tuning are passed over."""
    for path in _result_files(folder):
        if (result := read_result(path)) is not None:
            yield path, result


def broken_results(folder: Path) -> list[Path]:
    """The other results."""
    return [path for path in _result_files(folder) if read_result(path) is None]


def _result_files(folder: Path) -> list[Path]:
    return [path for path in sorted(folder.rglob("result.json")) if "trials" not in path.relative_to(folder).parts]


def read_result(path: Path) -> dict[str, Any] | None:
    """A run's result.json; None where there is none, half of one, or one that holds no accuracy."""
    try:
        result = json.loads(path.read_text(encoding="utf-8"))
        parts = [result["target"][split] for split in ("test", "val")]
        figures = [float(part["accuracy"]) for part in parts if part is not None]
        if parts[0] is None or not all(map(math.isfinite, figures)):
            return None
        result["seed"]
    except (OSError, ValueError, KeyError, TypeError):
        return None
    result.setdefault("settings", {})
    return result
