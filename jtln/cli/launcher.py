"""The launcher of a study: which one, how many runs at a time, and how they share this machine."""

from __future__ import annotations

import atexit
import os
from collections.abc import Sequence
from functools import cache, partial
from pathlib import Path
from shutil import rmtree
from tempfile import mkdtemp
from typing import Any

from filelock import FileLock
from hydra._internal.callbacks import Callbacks
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.core.plugins import Plugins
from hydra.types import HydraContext, RunMode
from omegaconf import DictConfig

from jtln.cli.overrides import at_least, key_of
from jtln.cli.study_job import Machine, make
from jtln.errors import UserError
from jtln.study.launch import Launch

_locks: list[FileLock] = []  # else the garbage collector would free them
_OVERLAP = 16  # jobs in a batch for each worker: the workers wait for each other at its end


def study_launch(config: DictConfig, runs: Path, extra: Sequence[str]) -> Launch:
    """Return Hydra's launcher for the runs of a study, to be called inside Hydra.

    The user's choice (``hydra/launcher=...``), or joblib where several runs are made at a time, else Hydra's basic one.

    Args:
        config: of the study.
        runs: the folder of the run folders.
        extra: overrides that every run gets but that are not its settings.
    """
    hydra: Any = HydraConfig.get()
    given = [str(each) for each in hydra.overrides.hydra]
    keys = {key_of(each) for each in given}
    if "hydra.launcher.n_jobs" in keys:
        raise UserError("a study sets hydra.launcher.n_jobs itself: give study.workers=N in place of it")
    accelerator, devices = str(config.trainer.accelerator), config.trainer.devices
    workers, gpus = _shares(config.study.workers, accelerator, devices)
    name = str(hydra.runtime.choices["hydra/launcher"])
    if "hydra/launcher" not in keys:
        name = "joblib" if workers > 1 else "basic"
        given.append(f"hydra/launcher={name}")
    if name == "joblib":
        given.append(f"hydra.launcher.n_jobs={workers}")
    if (
        name == "submitit_slurm"
        and accelerator in ("auto", "gpu", "cuda")
        and "hydra.launcher.gpus_per_node" not in keys
    ):
        given.append(f"hydra.launcher.gpus_per_node={devices if isinstance(devices, int) else 1}")
    loader = GlobalHydra.instance().config_loader()
    master = loader.load_configuration("train", [*given, f'hydra.sweep.dir="{runs}"'], run_mode=RunMode.MULTIRUN)
    is_here = name in ("joblib", "submitit_local")
    machine = Machine(_machine_folder(), workers, max(1, _cores() // workers), gpus) if is_here else None
    launcher = Plugins.instance().instantiate_launcher(
        hydra_context=HydraContext(config_loader=loader, callbacks=Callbacks()),
        task_function=partial(make, machine=machine),
        config=master,
    )
    sizes = {"basic": 1, "joblib": _OVERLAP * workers, "submitit_local": workers}
    batch = sizes.get(name) if config.study.batch == "auto" else at_least("study.batch", config.study.batch, 1)
    at_a_time = f", {workers} at a time" if is_here else ""
    return Launch(launcher, f"launcher {name}{at_a_time}", batch, (*extra, "report=false"))


@cache
def _machine_folder() -> Path:
    """Return the folder of this process's studies, in which it holds the lock ``main`` as long as it lives."""
    folder = Path(mkdtemp(prefix="jtln-study-"))
    _locks.append(FileLock(folder / "main"))
    _locks[0].acquire()
    atexit.register(rmtree, folder, ignore_errors=True)
    return folder


def _shares(workers: Any, accelerator: str, devices: Any) -> tuple[int, tuple[str, ...]]:
    """Return how many runs are made at a time on this machine, and the GPUs that they take one each of.

    Args:
        workers: "auto" is one a GPU where the runs use GPUs, and otherwise one a core.
        accelerator: the trainer's.
        devices: the trainer's. A run on several devices has them all, so there is one run at a time.
    """
    if workers != "auto" and (not isinstance(workers, int) or isinstance(workers, bool) or workers < 1):
        raise UserError(f"expected auto or a whole number >= 1 for study.workers, but got {workers!r}")
    if str(devices) != "1":
        return 1, ()
    gpus = _gpus() if accelerator in ("auto", "gpu", "cuda") else ()
    if workers != "auto":
        return workers, gpus
    is_apple = accelerator == "mps" or (accelerator == "auto" and not gpus and _is_apple())
    return len(gpus) or (1 if is_apple else _cores()), gpus


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _gpus() -> tuple[str, ...]:
    """Return the GPUs as CUDA_VISIBLE_DEVICES names them: one that is set already has the names, numbers or UUIDs."""
    import torch

    named = [name.strip() for name in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if name.strip()]
    count = torch.cuda.device_count()
    return tuple(named[:count] if named else map(str, range(count)))


def _is_apple() -> bool:
    import torch

    return torch.backends.mps.is_available()
