"""The user's own network as a trunk."""

from __future__ import annotations

from collections.abc import Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from jtln.errors import UserError
from jtln.trunks.base import IMAGENET_MEAN, IMAGENET_STD, Trunk, check_image_size
from jtln.trunks.weights import check_match, load_weights, read_weights


class Pooled(nn.Module):
    """A network with global average pooling of feature maps (B, C, H, W) to (B, C); vectors (B, D) are unchanged."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, images: Tensor) -> Tensor:
        features = self.network(images)
        return features.mean((2, 3)) if features.ndim == 4 else features


def from_module(
    image_size: int,
    path: str | None = None,
    weights: str = "none",
    match: str = "name",
    mean: Sequence[float] = IMAGENET_MEAN,
    std: Sequence[float] = IMAGENET_STD,
    **settings: Any,
) -> Trunk:
    """Return any ``nn.Module`` with an output (B, D) or (B, C, H, W) as a trunk.

    Args:
        image_size: height and width of the images, in pixels.
        path: the import path of the module or of a function that returns it: "package.file.function".
        weights: "none" or a file, see :func:`jtln.trunks.weights.read_weights`.
        match: see :func:`jtln.trunks.weights.load_weights`.
        mean: of images in [0, 1], a value a channel; subtracted first.
        std: of images in [0, 1], a value a channel; the divisor.
        settings: further arguments of the function.

    Raises:
        UserError: the path cannot be imported, it gives no ``nn.Module``, or the module returns no features.
    """
    check_image_size(image_size)
    check_match(match)
    module, _, name = (path or "").rpartition(".")
    if not module:
        raise UserError(f"expected package.file.function for trunk.path, but got {path!r}")
    try:
        made = getattr(import_module(module), name)
    except (ImportError, AttributeError, ValueError) as error:
        raise UserError(
            f"expected to import trunk.path={path} from here or what is installed, but got: {error}"
        ) from error
    network = made(**settings) if callable(made) and not isinstance(made, nn.Module) else made
    if not isinstance(network, nn.Module):
        raise UserError(f"expected a torch.nn.Module from trunk.path={path}, but got {type(network).__name__}")
    body = Pooled(network)
    try:
        with torch.no_grad():
            features = body.eval()(torch.zeros(1, 3, image_size, image_size))
        shape = tuple(features.shape)
    except Exception as error:  # The user's code may raise any error.
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise UserError(
            f"expected features of images of {image_size} pixels from trunk.path={path}, but got: {reason}"
        ) from error
    if len(shape) != 2:
        raise UserError(f"expected features (B, D) or (B, C, H, W) from trunk.path={path}, but got shape {shape}")
    trunk = Trunk(body.train(), name, shape[1], mean, std)
    if weights != "none":
        load_weights(network, read_weights(Path(weights).expanduser()), name, weights, match)
        trunk.pretrained = True
    return trunk
