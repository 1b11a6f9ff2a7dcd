"""The finished runs: run folders below a folder, found by the hash of their settings."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from contextlib import contextmanager
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

    def result(self, job: Job) -> dict[str, Any] | None:
        """Return the result of ``job``, where it was finished when last looked at."""
        return self._results.get(job.settings)

    def look(self, job: Job) -> dict[str, Any] | None:
        """Return the result of ``job``, where it is finished by now."""
        if job.settings not in self._results and (result := result_of(self.folder_of(job))) is not None:
            self._results[job.settings] = result
        return self.result(job)

    def folder_of(self, job: Job) -> Path:
        """Return the run folder of ``job``: the one that it was begun in, under whatever row's name, or a new one."""
        folder = self.folder / job.folder_name
        return folder if folder.is_dir() else next(iter(sorted(self.folder.glob(f"*_{job.settings}"))), folder)

    def is_under_way(self, job: Job) -> bool:
        """Return True if a living process makes ``job``: see :func:`held`."""
        try:
            with held(self.folder_of(job)):
                return False
        except Timeout:
            return True


@contextmanager
def held(folder: Path) -> Iterator[None]:
    """Hold the folder of a run, for the process that makes the run, as long as it lives.

    The lock is the operating system's (flock) on ``folder/.lock``, so the end of a process frees it, SIGKILL included.
    On a network file system it excludes other machines where flock does: on NFS from Linux 2.6.12 on (not with the
    mount options ``nolock`` or ``local_lock``), on Lustre when mounted with ``flock``. Elsewhere two studies
    on two machines may make the same run twice; files are replaced whole, so one result of the two stays.

    Raises:
        Timeout: another process holds it.
    """
    lock = FileLock(folder / ".lock")
    try:
        if folder.is_dir():
            lock.acquire(timeout=0.3)  # longer than another process tests whether it is held
    except Timeout:
        raise
    except (NotImplementedError, OSError):  # no locks here, or nothing may be written, which the run will say
        pass
    try:
        yield
    finally:
        lock.release()


def result_of(folder: Path) -> dict[str, Any] | None:
    """Return the result in the folder of a study's run; None where it has none of the settings that it is named for."""
    result = read_result(folder / "result.json")
    return result if result is not None and result["settings"].get("run") == folder.name.rpartition("_")[2] else None


def read_results(folder: Path) -> Iterator[tuple[Path, dict[str, Any]]]:
    """Every readable result below ``folder``, at any depth, with its path; the trials of a tuning are passed over."""
    for path in _result_files(folder):
        if (result := read_result(path)) is not None:
            yield path, result


def broken_results(folder: Path) -> list[Path]:
    """Return the result files that :func:`read_result` cannot read."""
    return [path for path in _result_files(folder) if read_result(path) is None]


def _result_files(folder: Path) -> list[Path]:
    return [path for path in sorted(folder.rglob("result.json")) if "trials" not in path.relative_to(folder).parts]


def read_result(path: Path) -> dict[str, Any] | None:
    """Read a run's result.json; None where there is none, half of one, or one that holds no accuracy."""
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
