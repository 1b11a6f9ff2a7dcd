"""The provenance of a result: the code, the packages and the machine."""

from __future__ import annotations

import platform
import subprocess
from importlib.metadata import version
from pathlib import Path

import pytorch_lightning as pl
import torch

import jtln

PACKAGES = ("torch", "torchvision", "pytorch-lightning", "hydra-core", "torchmetrics", "numpy")


def versions() -> dict[str, str]:
    """Return the versions of Python, of this package and of those that results may depend on.

    This package may run from a checkout that is not installed.
    """
    ours = {"python": platform.python_version(), "jtln": jtln.__version__}
    return {**ours, **{package: version(package) for package in PACKAGES}}


def git_commit() -> str | None:
    """Return the commit of the checkout that this code runs from; None where it is an installed package.

    "-dirty" is added where tracked files have changed since.
    """
    checkout = Path(__file__).resolve().parents[2]
    if not (checkout / ".git").exists():  # an environment may lie in somebody else's checkout
        return None
    try:
        done = subprocess.run(
            ["git", "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"],
            cwd=checkout,
            capture_output=True,
            text=True,
            timeout=10,
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() or None


def hardware(trainer: pl.Trainer) -> str:
    """Return the devices that ``trainer`` trains on: "2 x NVIDIA H200", or "cpu, 2 threads"."""
    device = trainer.strategy.root_device  # the module's own is the CPU again after training
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else device.type
    if device.type == "cpu":
        name = f"cpu, {torch.get_num_threads()} threads"
    return name if trainer.world_size == 1 else f"{trainer.world_size} x {name}"
