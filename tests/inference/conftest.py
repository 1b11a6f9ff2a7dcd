"""A checkpoint as a run writes it, of networks that were not trained."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from torch import nn

from jtln.heads import Head
from jtln.inference.classifier import KEY, Description
from jtln.trunks import Trunk, alexnet

SOURCE, TARGET = ("apple", "pear", "plum"), ("elk", "fox, red", "gnu", "yak")
SIZE, STORED = 16, 20
ALEXNET = {"_target_": "jtln.trunks.alexnet", "weights": "auto", "width": 0.05, "dropout": None, "freeze": True}
DESCRIPTION = Description(ALEXNET, list(SOURCE), list(TARGET), SIZE, STORED, 3, "pad", "none")


class Written(NamedTuple):
    """A checkpoint, and the parts whose weights it holds."""

    path: Path
    trunk: Trunk
    source_head: nn.Linear
    target_head: nn.Linear


@pytest.fixture
def write(tmp_path: Path) -> Callable[..., Written]:
    """``write(trunk={...}, head=..., fitted=..., views="flip")`` writes run/checkpoints/best.ckpt.

    Args:
        trunk: its configuration; of the small AlexNet, whatever network that names.
        network: the trunk whose weights it holds.
        head, fitted: a head that was formed after training, and its classifier.
        further: of the description.
    """

    def written(
        trunk: dict[str, Any] | None = None,
        network: Trunk | None = None,
        head: Head | None = None,
        fitted: nn.Module | None = None,
        **further: Any,
    ) -> Written:
        torch.manual_seed(0)
        network = network or alexnet(SIZE, "none", 0.05)
        source, target = nn.Linear(network.dim, len(SOURCE)), nn.Linear(network.dim, len(TARGET))
        parts = {"trunk": network, "source_head": source, "target_head": target}
        state = {
            f"{part}.{name}": value for part, module in parts.items() for name, value in module.state_dict().items()
        }
        said = asdict(replace(DESCRIPTION, **further)) | ({} if trunk is None else {"trunk": trunk})
        checkpoint: dict[str, Any] = {"state_dict": state, "hyper_parameters": {KEY: said}, "epoch": 1}
        if head is not None and fitted is not None:
            kind = f"{type(head).__module__}.{type(head).__qualname__}"
            checkpoint["head"] = {"kind": kind, "settings": head.settings(), "state": fitted.state_dict()}
        path = tmp_path / "run" / "checkpoints" / "best.ckpt"
        path.parent.mkdir(parents=True, exist_ok=True)
        torch.save(checkpoint, path)
        return Written(path, network.eval(), source, target)

    return written
