"""Where a trunk's weights come from: torchvision's own download, or a file."""

from __future__ import annotations

import hashlib
import urllib.error
from pathlib import Path
from typing import Any

import torch
import torchvision
from torch import Tensor

from jtln.errors import UserError, unknown
from jtln.trunks.base import Trunk


def weights_digest(weights: str) -> str:
    """What the weights setting stands for, for a cache's key: a file's content, or the setting itself."""
    path = Path(weights).expanduser()
    return hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else weights


def is_fetched(weights: str) -> bool:
    """Whether ``weights`` stands for torchvision's, which are fetched: "auto", "imagenet", or a name such as
    "IMAGENET1K_V1"."""
    return weights in ("auto", "imagenet") or weights.startswith("IMAGENET1K_")


def with_weights(trunk: Trunk, weights: str, torchvision_name: str | None) -> Trunk:
    """Load what ``weights`` names; ``torchvision_name`` is None where torchvision has no weights for this form."""
    if weights == "auto":
        weights = "none" if torchvision_name is None else "imagenet"
    if weights == "none":
        return trunk
    if not is_fetched(weights):
        state = _read_weights(Path(weights).expanduser())
    elif torchvision_name is None:
        raise UserError(
            f"expected trunk.weights=none or a file for {trunk.name}, but got {weights}: there are ImageNet weights "
            "only for images of 64 pixels and more (dataset.image_size)"
        )
    else:
        state = _fetch_imagenet(torchvision_name, "DEFAULT" if weights == "imagenet" else weights)
    _load(trunk, state, weights)
    trunk.pretrained = True
    return trunk


def _fetch_imagenet(name: str, which: str) -> dict[str, Any]:
    there = torchvision.models.get_model_weights(name).__members__
    if which not in there:
        raise unknown(f"weights of {name} for trunk.weights", which, ["imagenet", *there])
    try:
        return there[which].get_state_dict(check_hash=True)
    except (urllib.error.URLError, OSError, RuntimeError) as error:
        raise UserError(
            f"the ImageNet weights of {name} could not be fetched ({error}): give a file with trunk.weights=FILE, "
            "start from a random trunk with trunk.weights=none, or train it on the source set first with "
            "trunk.weights=none pretrain=source"
        ) from error


def _read_weights(path: Path) -> dict[str, Any]:
    if not path.is_file():
        raise UserError(f"expected trunk.weights to be auto, imagenet, none or a file, but there is no file {path}")
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        raise UserError(
            f"expected a PyTorch state dict or checkpoint in {path}, but it cannot be read: {error}"
        ) from error
    state = state.get("state_dict", state) if isinstance(state, dict) else state
    if not isinstance(state, dict) or not all(isinstance(value, Tensor) for value in state.values()):
        raise UserError(f"expected a PyTorch state dict or checkpoint in {path}, but got {type(state).__name__}")
    return state


def _load(trunk: Trunk, state: dict[str, Tensor], origin: str) -> None:
    """Load a run's ``trunk.body.*``, this trunk's ``body.*`` or the bare network's names; a classifier is left out."""
    for prefix in ("trunk.body.", "body."):
        if any(key.startswith(prefix) for key in state):
            state = {key[len(prefix) :]: value for key, value in state.items() if key.startswith(prefix)}
            break
    wanted = trunk.body.state_dict()
    missing = [key for key in wanted if key not in state or state[key].shape != wanted[key].shape]
    if missing:
        raise UserError(
            f"expected the weights of {trunk.name} in {origin}, but {len(missing)} of its {len(wanted)} tensors are "
            f"not there or have another shape, '{missing[0]}' among them: choose the trunk that the file was made with"
        )
    trunk.body.load_state_dict({key: state[key] for key in wanted})
