"""What happens to a batch of uint8 images on the device, before the trunk sees it."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn


class ToFloat(nn.Module):
    """(B, 1 or 3, H, W) uint8 -> (B, 3, H, W) float32: grey repeated, scaled to [0, 1], then normalised.

    Args:
        mean: of each channel, in [0, 1]; 3 values.
        std: of each channel; 3 values > 0.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, mean: Sequence[float] = (0.5, 0.5, 0.5), std: Sequence[float] = (0.5, 0.5, 0.5)) -> None:
        super().__init__()
        # Not saved: a checkpoint's weights load without regard to how the images were read.
        self.register_buffer("mean", torch.tensor(list(mean)).view(1, 3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(list(std)).view(1, 3, 1, 1), persistent=False)

    def forward(self, images: Tensor) -> Tensor:
        if self.mean.device != images.device:
            self.to(images.device)  # once: a data module's transforms are not moved with the model
        return (images.expand(-1, 3, -1, -1).to(torch.float32) / 255 - self.mean) / self.std


class Augment(nn.Module):
    """Each image of a batch moved by its own shift and mirrored with probability 1/2; any dtype, shape kept.

    torchvision's transforms draw one shift for a whole batch; here every image draws its own.

    Args:
        flip: whether images are mirrored.
        shift: the largest move, in pixels along each axis, >= 0; what moves in repeats the border.
    """

    def __init__(self, flip: bool = True, shift: int = 2) -> None:
        super().__init__()
        self.flip = flip
        self.shift = shift

    def forward(self, images: Tensor) -> Tensor:
        count, device = len(images), images.device
        moves = torch.randint(-self.shift, self.shift + 1, (2, count), device=device)
        mirrored = torch.rand(count, device=device) < 0.5 if self.flip else None
        return move(images, moves[0], moves[1], mirrored)

    def extra_repr(self) -> str:
        return f"flip={self.flip}, shift={self.shift}"


def move(images: Tensor, down: Tensor, right: Tensor, mirrored: Tensor | None = None) -> Tensor:
    """Each image moved by its own number of pixels, the border repeated, and mirrored where asked.

    Args:
        images: (B, C, H, W).
        down, right: (B,) int64, the moves.
        mirrored: (B,) bool, or None for none.
    """
    count, channels, height, width = images.shape
    rows = torch.arange(height, device=images.device)[None] - down[:, None]  # (B, H), where each row comes from
    columns = torch.arange(width, device=images.device)[None] - right[:, None]  # (B, W)
    rows, columns = rows.clamp(0, height - 1), columns.clamp(0, width - 1)
    if mirrored is not None:
        columns = torch.where(mirrored[:, None], columns.flip(1), columns)
    moved = images.gather(2, rows[:, None, :, None].expand(count, channels, height, width))
    return moved.gather(3, columns[:, None, None, :].expand(count, channels, height, width))
