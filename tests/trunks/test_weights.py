"""Weights of any provenance: containers, prefixes, formats, and what does not fit."""

from __future__ import annotations

import argparse
import os
import pickle
import subprocess
from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from jtln.errors import UserError
from jtln.trunks.base import Trunk
from jtln.trunks.module import from_module
from jtln.trunks.weights import load_weights, read_weights

PREFIXES = ["", "module.", "model.", "backbone.", "encoder.", "module.encoder_q.", "trunk.body.", "module.backbone.0."]


def network() -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.AdaptiveAvgPool2d(1), nn.Flatten())


@pytest.fixture
def state() -> dict[str, Tensor]:
    torch.manual_seed(3)
    return {name: torch.randn_like(value) if value.is_floating_point() else value + 7 for name, value in
            network().state_dict().items()}  # fmt: skip


def loads(content: Any, state: dict[str, Tensor], tmp_path: Path, match: str = "name") -> None:
    torch.save(content, tmp_path / "file.pth")
    body = network()
    load_weights(body, read_weights(tmp_path / "file.pth"), "net", "file.pth", match)
    assert all(torch.equal(value, state[name]) for name, value in body.state_dict().items())


@pytest.mark.parametrize("prefix", PREFIXES)
def test_prefixes(prefix: str, state: dict[str, Tensor], tmp_path: Path) -> None:
    named = {f"{prefix}{name}": value for name, value in state.items()}
    loads({**named, "head.weight": torch.ones(9, 4), "module.queue": torch.ones(2)}, state, tmp_path)


@pytest.mark.parametrize("container", ["state_dict", "model", "model_ema", "teacher"])
def test_containers(container: str, state: dict[str, Tensor], tmp_path: Path) -> None:
    loads({container: {f"backbone.{name}": v for name, v in state.items()}, "epoch": 3}, state, tmp_path)


def test_the_momentum_encoder_is_not_taken_for_the_encoder(state: dict[str, Tensor], tmp_path: Path) -> None:
    """MoCo's checkpoints hold both; the query encoder comes first."""
    other = {f"module.encoder_k.{name}": torch.zeros_like(value) for name, value in state.items()}
    loads({"state_dict": {f"module.encoder_q.{n}": v for n, v in state.items()} | other}, state, tmp_path)


def test_a_head_of_the_same_names_in_another_shape(state: dict[str, Tensor], tmp_path: Path) -> None:
    """A match of shapes takes precedence over a match of names alone."""
    wrong = {f"head.{name}": torch.zeros(2) for name in state}
    loads({**wrong, **{f"net.{name}": value for name, value in state.items()}}, state, tmp_path)


def test_by_order(state: dict[str, Tensor], tmp_path: Path) -> None:
    values = [value for name, value in state.items() if not name.endswith("num_batches_tracked")]
    content = {f"layer{index}": value for index, value in enumerate(values)} | {"fc": torch.ones(3)}
    torch.save(content, tmp_path / "file.pth")
    body = network()
    load_weights(body, read_weights(tmp_path / "file.pth"), "net", "file.pth", "order")
    assert torch.equal(body[0].weight, values[0])
    assert torch.equal(body[1].running_var, values[-1])
    with pytest.raises(UserError, match=r"0 of its \d+ tensors fit.*'0\.weight'.*none of that name.*match=order"):
        load_weights(network(), read_weights(tmp_path / "file.pth"), "net", "file.pth")


def test_safetensors(state: dict[str, Tensor], tmp_path: Path) -> None:
    save_file(state, tmp_path / "file.safetensors")
    body = network()
    load_weights(body, read_weights(tmp_path / "file.safetensors"), "net", "file")
    assert torch.equal(body[0].weight, state["0.weight"])


def test_the_average_of_the_weights_comes_first_as_in_timm(state: dict[str, Tensor], tmp_path: Path) -> None:
    last = {name: torch.zeros_like(value) for name, value in state.items()}
    loads({"state_dict": last, "state_dict_ema": state}, state, tmp_path)
    loads({"model": last, "model_ema": state}, state, tmp_path)


class Evil:
    def __reduce__(self) -> Any:
        return (Path.touch, (Path("evil"),))


class EvilBeside:
    def __reduce__(self) -> Any:
        return (subprocess.call, (["touch", "evil"],))


class EvilInZip:
    def __reduce__(self) -> Any:
        return (os.system, ("touch evil",))


def test_what_lies_beside_the_weights_is_not_made(
    state: dict[str, Tensor], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Checkpoints contain objects such as arguments and paths, for which PyTorch refuses the whole file."""
    monkeypatch.chdir(tmp_path)
    beside = {
        "args": argparse.Namespace(arch="vit_tiny", lr=0.1, output=Path("runs")),
        "best": np.float64(71.2),
        "meters": defaultdict(list, loss=[0.3]),
        "evil": EvilBeside(),
        "callbacks": {"kind": nn.Conv2d},
    }
    loads({"state_dict": {f"model.{name}": value for name, value in state.items()}, **beside}, state, tmp_path)
    assert not (tmp_path / "evil").exists()


@pytest.mark.parametrize(
    "kind",
    ["missing", "truncated", "malicious", "malicious zip", "text", "no tensors", "another shape", "whole network",
     "truncated.safetensors"],
)  # fmt: skip
def test_what_cannot_be_loaded(
    kind: str, state: dict[str, Tensor], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "file.pth"
    if kind in ("truncated", "another shape"):
        torch.save(state if kind == "truncated" else state | {"0.weight": torch.ones(5, 3, 3, 3)}, path)
    if kind == "truncated":
        path.write_bytes(path.read_bytes()[:-200])
    if kind == "malicious":
        path.write_bytes(pickle.dumps(Evil()))
    if kind == "malicious zip":
        torch.save({"state_dict": EvilInZip(), **state}, path)
    if kind == "whole network":
        torch.save(network(), path)
    if kind == "truncated.safetensors":
        path = tmp_path / "file.pth.safetensors"
        save_file(state, path)
        path.write_bytes(path.read_bytes()[:-20])
    if kind == "text":
        path.write_text("weights")
    if kind == "no tensors":
        torch.save({"epoch": 3, "state_dict": {"a": "b"}}, path)
    messages = {
        "another shape": r"6 of its 7 tensors fit.*0\.weight.*\(4, 3, 3, 3\).*\(5, 3, 3, 3\)",
        "malicious zip": r"file\.pth.*\(posix\.system\)|file\.pth.*\(nt\.system\)",
        "whole network": r"file\.pth.*torch\.nn\.modules\.container\.Sequential.*state_dict\(\)",
    }
    with pytest.raises(UserError, match=messages.get(kind, r"file\.pth")) as caught:
        load_weights(network(), read_weights(path), "net", "file.pth")
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "evil").exists()


def test_a_module_of_ones_own(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "my_networks.py").write_text(
        "from torch import nn\nmaps = nn.Conv2d(3, 5, 3)\ndef vectors(width=4):\n"
        "    return nn.Sequential(nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(12, width))\nnothing = 3\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    trunk: Trunk = from_module(16, "my_networks.vectors", width=6)
    assert (trunk(torch.zeros(2, 3, 16, 16)).shape, trunk.dim) == ((2, 6), 6)
    torch.save(trunk.state_dict(), tmp_path / "w.pth")
    again = from_module(16, "my_networks.vectors", str(tmp_path / "w.pth"), width=6)
    assert all(torch.equal(value, again.state_dict()[name]) for name, value in trunk.state_dict().items())
    images = torch.randn(2, 3, 16, 16)
    pooled = from_module(16, "my_networks.maps").eval()
    torch.testing.assert_close(pooled(images), pooled.body.network(images).mean((2, 3)))
    for path in (None, "my_networks", "my_networks.absent", "absent.made", "my_networks.nothing"):
        with pytest.raises(UserError, match=r"trunk\.path"):
            from_module(16, path)
