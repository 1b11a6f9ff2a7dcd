"""The shared trunk: images (B, 3, H, W) -> features (B, D)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from jtln.errors import UserError

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


class PublishedHead(NamedTuple):
    """The linear classifier of published weights, which the trunk leaves out."""

    weight: Tensor  # (S, D)
    bias: Tensor  # (S,)


class Trunk(nn.Module):
    """A network without its classifier, in the channels-last memory format, which is faster.

    Attributes:
        name: of the network, for messages and cache keys.
        dim: D, the number of features.
        mean, std: the normalisation of its input images (in [0, 1]), a value a channel.
        pretrained: whether its weights are pre-trained; False for random weights.
        frozen: whether training leaves it unchanged.
        published: the classifier of its published weights; None if there is none.
        digest: a hash of structure and weights, for a trunk that does not change; None: unknown.
    """

    pretrained: bool = False
    frozen: bool = False
    published: PublishedHead | None = None
    digest: str | None = None

    def __init__(self, body: nn.Module, name: str, dim: int, mean: Sequence[float], std: Sequence[float]) -> None:
        super().__init__()
        self.body = body.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.name, self.dim = name, dim
        self.mean, self.std = tuple(mean), tuple(std)

    def forward(self, images: Tensor) -> Tensor:
        """Return the features: (B, 3, H, W) -> (B, D)."""
        return self.body(images.contiguous(memory_format=torch.channels_last))


def check_image_size(image_size: int) -> None:
    """Raise a UserError for images of fewer than 8 pixels a side."""
    if image_size < 8:
        raise UserError(f"expected images of at least 8 pixels, but got image_size={image_size}")


def check_takes(trunk: Trunk, image_size: int) -> None:
    """Raise a UserError if the network cannot process images of this size.

    In some networks the strides leave nothing of small images, and some accept one size only.
    """
    try:
        with torch.no_grad():
            trunk.eval()(torch.zeros(1, 3, image_size, image_size))
    except (RuntimeError, AssertionError, ValueError) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise UserError(
            f"{trunk.name} cannot take images of {image_size} pixels ({reason}): set dataset.image_size to the size "
            "of its pre-training, often 224"
        ) from error
    trunk.train()
