"""The folder that a run writes into is its own, also where several are started in the same second."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from itertools import chain, count
from pathlib import Path
from typing import Any

from filelock import Timeout
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import OmegaConf, read_write

from jtln.errors import UserError
from jtln.study.ledger import held

_RANKS = ("RANK", "LOCAL_RANK", "SLURM_PROCID", "JSM_NAMESPACE_RANK")  # where Lightning looks for a process's number


AUTO = "auto"  # the value of resume= that goes on where the folder holds a checkpoint, and starts where it has none


@contextmanager
def own_folder(resume: str | None = None) -> Iterator[None]:
    """Hold the run's folder until the end; one that is called after the time gets a number where it is taken.

    Args:
        resume: the value of the key.

    Raises:
        UserError: another run that is under way writes into the folder that the user named, or the folder holds a run
            that this one would replace, or resume=auto has no folder to find a run in.
    """
    hydra: Any = HydraConfig.get()
    if hydra.mode == RunMode.MULTIRUN or any(os.environ.get(name, "0") != "0" for name in _RANKS):
        yield
        return
    wanted = Path(hydra.runtime.output_dir)
    given: Any = OmegaConf.to_container(hydra.overrides.hydra, resolve=False)  # as typed: ${now:...}
    named = [str(each) for each in given if str(each).lstrip("+~").startswith("hydra.run.dir=")]
    is_named = bool(named) and "${now" not in named[-1]
    if resume == AUTO and not is_named:
        raise UserError(
            "expected the folder of the run with resume=auto, but each start has a new one: give hydra.run.dir=DIR"
        )
    if resume is None and is_named:
        _check_new(wanted, "hydra.run.dir")
    with ExitStack() as lock:
        for folder in [wanted] if is_named else _numbered(wanted):
            folder.mkdir(parents=True, exist_ok=True)
            try:
                lock.enter_context(held(folder))
            except Timeout:
                continue
            lock.callback((folder / ".lock").unlink, missing_ok=True)
            if is_named or not (folder / "overrides.yaml").is_file():
                break
            lock.close()
        else:
            raise UserError(
                f"expected a folder that no other run writes into, but one is under way in {wanted}: wait until it has "
                "ended, or give this one another with hydra.run.dir=DIR"
            )
        if folder != wanted:
            with read_write(hydra):
                hydra.run.dir = hydra.runtime.output_dir = str(folder)
        yield


def is_under_way(folder: Path) -> bool:
    """Return True if the folder holds a checkpoint to go on from."""
    return (folder / "checkpoints" / "last.ckpt").is_file()


def check_new_sweep(folder: str) -> None:
    """Raise a UserError where the folder of a multirun, as the user gave it, holds runs that would be replaced."""
    path = Path(folder.strip("\"'"))
    if "${" not in folder:
        for file in sorted([*path.rglob("result.json"), *path.rglob("last.ckpt")]):
            _check_new(file.parents[file.name == "last.ckpt"], "hydra.sweep.dir")


def _check_new(folder: Path, key: str) -> None:
    if is_under_way(folder) or (folder / "result.json").is_file():
        raise UserError(
            f"expected a folder without a run for {key}, but there is one in {folder}: give resume=auto to go on with "
            "it, or another folder"
        )


def new_sweep_folder() -> Path:
    """Make a new folder for a multirun, named after the time."""
    for folder in _numbered(Path("multirun", time.strftime("%Y-%m-%d_%H-%M-%S"))):
        try:
            folder.mkdir(parents=True)
        except FileExistsError:
            continue
        return folder
    raise AssertionError


def _numbered(folder: Path) -> Iterator[Path]:
    """Return the folder, and then the same with -2, -3, ... at its end."""
    return chain([folder], (folder.with_name(f"{folder.name}-{number}") for number in count(2)))
