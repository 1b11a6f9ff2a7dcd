"""Reconstruction of a trunk from the configuration in a checkpoint; the weights are loaded separately.

The checkpoints of a study on a published network that stays as it is have the network's hash in place of its weights: a
study makes hundreds, each of which would hold the same ones.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor, nn

from jtln.errors import UserError
from jtln.trunks.alexnet import alexnet
from jtln.trunks.base import Trunk
from jtln.trunks.timm import efficientnet_lite, from_timm
from jtln.trunks.torchvision import from_torchvision
from jtln.trunks.weights import is_fetched

TRUNKS: dict[str, Callable[..., Trunk]] = {
    f"jtln.trunks.{make.__name__}": make for make in (alexnet, efficientnet_lite, from_timm, from_torchvision)
}
_OF_TRAINING = ("_target_", "freeze", "views", "weights")  # keys that do not determine the network's structure


def rebuilt(settings: Mapping[str, Any], image_size: int) -> Trunk:
    """Return a trunk of this package with random weights.

    Args:
        settings: as in ``conf/trunk``; ``_target_`` is the function that makes the trunk.
        image_size: the side of the network's input images, in pixels.

    Raises:
        UserError: the trunk comes from another package, or was made in Python.
    """
    kind = str(settings.get("_target_", ""))
    if kind not in TRUNKS:
        raise UserError(
            f"expected a trunk of this package, but got {kind or 'one that was made in Python'}: make it, and pass it "
            "as trunk="
        )
    kept = {key: value for key, value in settings.items() if key not in _OF_TRAINING}
    trunk = TRUNKS[kind](image_size=image_size, weights="none", **kept)
    trunk.frozen = bool(settings.get("freeze", False))
    body: Any = trunk.body
    if hasattr(body, "transform_input"):  # depends on the weights that training started from
        body.transform_input = is_fetched(str(settings.get("weights")))
    return trunk


def trunk_digest(trunk: nn.Module) -> str:
    """Return a hash of a network's structure and weights."""
    digest = hashlib.blake2b(repr(trunk).encode(), digest_size=16)
    for name, value in trunk.state_dict().items():
        digest.update(f"{name}{tuple(value.shape)}".encode())
        digest.update(value.detach().cpu().numpy().tobytes())
    return digest.hexdigest()


def is_published(trunk: Trunk, settings: Mapping[str, Any]) -> bool:
    """Return True if :func:`trunk_weights` can read the trunk's weights again from where training read them."""
    return trunk.pretrained and settings.get("_target_") in TRUNKS and settings.get("weights") != "none"


def trunk_weights(checkpoint: Mapping[str, Any], settings: Mapping[str, Any], image_size: int) -> dict[str, Tensor]:
    """Return the weights of a checkpoint's trunk, by their names in the trunk.

    Args:
        checkpoint: has them in ``state_dict``, or their hash in ``trunk_digest``.
        settings: as in ``conf/trunk``.
        image_size: the side of the network's input images, in pixels.

    Raises:
        UserError: the weights that training read are not there any more, or are others.
    """
    if "trunk_digest" not in checkpoint:
        state: dict[str, Tensor] = checkpoint["state_dict"]
        return {name.removeprefix("trunk."): value for name, value in state.items() if name.startswith("trunk.")}
    kind = str(settings.get("_target_", ""))
    if kind not in TRUNKS:
        raise UserError(f"expected a trunk of this package beside a trunk_digest, but got {kind or 'none'}")
    kept = {key: value for key, value in settings.items() if key not in ("_target_", "freeze", "views")}
    trunk = TRUNKS[kind](image_size=image_size, **kept)
    if trunk_digest(trunk) != checkpoint["trunk_digest"]:
        raise UserError(
            f"expected the weights of {trunk.name} that the run was made with (trunk.weights="
            f"{settings.get('weights')}), but those that are here now are others"
        )
    return trunk.state_dict()
