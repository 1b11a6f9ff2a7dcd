"""Features of a pair's images under a trunk in evaluation mode, for calibration, costs, penalties and heads."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Protocol

import torch
from torch import Tensor, nn

from jtln.errors import UserError

Batch = tuple[Tensor, Tensor]  # images (B, 3, H, W) or features (B, D), labels (B,)


class ImageSource(Protocol):
    """A source of images: :class:`jtln.data.loaders.PairData`, or a data module of your own."""

    def images_of(
        self, side: str, part: str = "train", at_most: int | None = None, device: torch.device | str = "cpu"
    ) -> Iterator[Batch]:
        """Yield this process's share of a task's images, each once: (B, 3, H, W) normalised for the trunk, labels (B,).

        Args:
            side: "source" or "target".
            part: "train" or "val".
            at_most: approximate number of images, evenly spread over the part; None: all.
            device: of the images.
        """


class Features:
    """A pair's images, and their features under a trunk.

    Args:
        trunk: (B, 3, H, W) -> (B, D); it is called in evaluation mode and without gradients.
        images: of the pair.
        device: of the trunk.
    """

    def __init__(self, trunk: nn.Module, images: ImageSource, device: torch.device | str) -> None:
        self.trunk, self.images, self.device = trunk, images, device

    def images_of(self, side: str, part: str = "train", at_most: int | None = None) -> Iterator[Batch]:
        """Yield the images (B, 3, H, W) on the device, and their labels (B,); arguments as in :class:`ImageSource`.

        Raises:
            UserError: the data module has no ``images_of``.
        """
        if not hasattr(self.images, "images_of"):
            raise UserError(
                f"expected a data module with images_of, see jtln.data.features.ImageSource, to read {side} images "
                f"outside of training batches, but got {type(self.images).__name__}"
            )
        yield from self.images.images_of(side, part, at_most, self.device)

    def of(self, side: str, part: str = "train", at_most: int | None = None) -> Iterator[Batch]:
        """Yield the features (B, D) and labels (B,); arguments as in :class:`ImageSource`."""
        for images, labels in self.images_of(side, part, at_most):
            training = self.trunk.training
            with torch.no_grad():
                features = self.trunk.eval()(images)
            self.trunk.train(training)
            yield features, labels
