"""Reconstruction of a trunk from the configuration in a checkpoint; the weights are loaded separately."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

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
