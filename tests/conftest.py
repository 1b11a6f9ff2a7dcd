"""What the tests of whole trainings share: a tiny pair, a tiny trunk, and folders that nothing else uses."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import pytorch_lightning as pl
import torch
import yaml
from hydra._internal.hydra import Hydra
from hydra.core.global_hydra import GlobalHydra
from runs import without_drawing
from tiny import CPU, TinySpec, tiny_trunk

from jtln.data.loaders import PairData
from jtln.module import JTLN
from jtln.training.trainer import Budget, TrainerSettings, make_trainer, pair_data
from jtln.trunks.base import Trunk

if "PYTEST_XDIST_WORKER" in os.environ:  # several processes share the cores: none takes them all
    torch.set_num_threads(1)
    os.environ.setdefault("OMP_NUM_THREADS", "1")  # of the processes that tests start

# Composing takes most of the time of a call of the command line. Here the files are parsed in C, and the configuration
# is not composed a first time only to read hydra.mode, which no file sets. The processes that tests start do neither.
yaml.SafeLoader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
Hydra.get_mode = lambda self, config_name, overrides: None


@pytest.fixture(autouse=True)
def own_folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No test reads or writes the user's cache, key or run folders."""
    monkeypatch.setenv("JTLN_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("WANDB_MODE", "offline")
    for variable in ("WANDB_API_KEY", "LOCAL_RANK", "JTLN_SWEEP_FOLDER", "JTLN_DECISION"):
        monkeypatch.delenv(variable, raising=False)


@pytest.fixture
def in_a_folder_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """For what runs the command line in this process: nothing of it is left in the environment or in Hydra."""
    monkeypatch.chdir(tmp_path)
    environment = dict(os.environ)
    yield
    for variable in set(os.environ) - set(environment):
        del os.environ[variable]
    GlobalHydra.instance().clear()


@pytest.fixture
def tiny() -> TinySpec:
    return TinySpec()


@pytest.fixture
def make_trunk() -> Callable[..., Trunk]:
    return tiny_trunk


@pytest.fixture
def no_drawing(monkeypatch: pytest.MonkeyPatch) -> None:
    without_drawing(monkeypatch)


@pytest.fixture
def fit(tmp_path: Path) -> Callable[..., tuple[pl.Trainer, PairData]]:
    """Train a module on the tiny pair: ``fit(module, steps=..., callbacks=[...])``."""

    def run(
        module: JTLN,
        epochs: int = 1,
        steps: int = 4,
        callbacks: list[pl.Callback] | None = None,
        source: int = 8,
        target: int = 6,
        **options: Any,
    ) -> tuple[pl.Trainer, PairData]:
        budget = Budget(epochs, steps, source, target)
        data = pair_data(
            TinySpec().load(),
            module.trunk,
            budget,
            seed=0,
            augment=None,
        )
        data.use_source, data.use_target = module.reads("source"), module.reads("target")
        settings = TrainerSettings({**CPU.options, "log_every_n_steps": 1, **options}, progress_bar=False)
        trainer = make_trainer(settings, budget, tmp_path / "fit", callbacks=callbacks or (), keep_checkpoints=False)
        trainer.fit(module, data)
        return trainer, data

    return run


# The files with the longest tests, which a process is to begin with: at the end it would be alone with them.
LONGEST = ("test_launcher.py", "training/test_ddp.py", "test_train.py", "test_fuzz.py", "test_notebooks.py")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    items.sort(key=lambda item: not item.path.as_posix().endswith(LONGEST))
    if not torch.cuda.is_available():
        for item in items:
            if item.get_closest_marker("gpu"):
                item.add_marker(pytest.mark.skip(reason="needs a CUDA device"))


@pytest.fixture(scope="module")
def one_thread() -> Iterator[None]:
    """For small problems, where more threads only wait for one another."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)
