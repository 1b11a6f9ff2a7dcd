"""Transforms of a batch of uint8 images on the device, before the trunk."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torchvision.transforms.v2 import functional as v2

from jtln.errors import UserError, unknown

VIEWS = {"none": 1, "flip": 2, "ten_crop": 10}  # how many views each kind has
RATIO = (3 / 4, 4 / 3)  # width over height of a crop, torchvision's


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
        values = images.expand(-1, 3, -1, -1).to(torch.float32, copy=True)
        return values.div_(255).sub_(self.mean).div_(self.std)  # in place: memory, not arithmetic, takes the time


class Augment(nn.Module):
    """Each image of a batch cut out, moved and mirrored by draws of its own; any dtype.

    torchvision's transforms draw once for a whole batch.

    Args:
        flip: whether images are mirrored, with probability 1/2.
        shift: the largest move, in pixels along each axis, >= 0; what moves in repeats the border.
        crop: the smallest share of an image's area, in (0, 1], that is cut out, at an aspect ratio between 3/4 and
            4/3, and resized, as by torchvision's RandomResizedCrop; None resizes nothing.
        size: the side of the images that come out, in pixels; None keeps that of those that go in. Without ``crop``, a
            square of this side is cut out at random.
    """

    def __init__(self, flip: bool = True, shift: int = 2, crop: float | None = None, size: int | None = None) -> None:
        super().__init__()
        if crop is not None and not 0 < crop <= 1:
            raise UserError(
                f"expected the smallest share of a crop in (0, 1], but got {crop}: set dataset.crop=0.25, say"
            )
        self.flip = flip
        self.shift = shift
        self.crop = crop
        self.size = size

    def forward(self, images: Tensor) -> Tensor:
        """Return augmented images: (B, C, H, W) -> (B, C, size, size)."""
        count, device = len(images), images.device
        down, right = torch.randint(-self.shift, self.shift + 1, (2, count), device=device)
        if self.crop is not None:
            boxes = random_boxes(count, images.shape[-2:], self.crop)
            images = resized_crop(images, boxes, self.size or images.shape[-1])
        elif self.size is not None:
            down = down - torch.randint(images.shape[-2] - self.size + 1, (count,), device=device)
            right = right - torch.randint(images.shape[-1] - self.size + 1, (count,), device=device)
        mirrored = torch.rand(count, device=device) < 0.5 if self.flip else None
        return move(images, down, right, mirrored, self.size)

    def extra_repr(self) -> str:
        return f"flip={self.flip}, shift={self.shift}, crop={self.crop}, size={self.size}"


class CentreCrop(nn.Module):
    """(B, C, H, W) -> (B, C, size, size), the middle of every image.

    Args:
        size: the side, in pixels, <= H and W.
    """

    def __init__(self, size: int) -> None:
        super().__init__()
        self.size = size

    def forward(self, images: Tensor) -> Tensor:
        return v2.center_crop(images, [self.size, self.size])


class Views(nn.Module):
    """Several views of every image, whose predictions are averaged: (B, C, H, W) -> (B, V, C, size, size).

    Args:
        kind: "none": the middle; "flip": and its mirror image; "ten_crop": the middle and the four corners, and their
            mirror images.
        size: the side of a view, in pixels, <= H and W.
    """

    def __init__(self, kind: str, size: int) -> None:
        super().__init__()
        if kind not in VIEWS:
            raise unknown("test_views", kind, VIEWS)
        self.kind = kind
        self.size = size

    def __len__(self) -> int:
        return VIEWS[self.kind]

    def forward(self, images: Tensor) -> Tensor:
        if self.kind == "ten_crop":
            return torch.stack(v2.ten_crop(images, [self.size, self.size]), 1)
        middle = v2.center_crop(images, [self.size, self.size])
        return torch.stack([middle, middle.flip(-1)] if self.kind == "flip" else [middle], 1)


def random_boxes(count: int, sides: Sequence[int], least: float) -> Tensor:
    """Draw boxes as torchvision's RandomResizedCrop does: (count, 4) int64, on the CPU: top, left, height, width.

    Area and the logarithm of the aspect ratio are uniform; of ten draws the first that lies within the image is taken,
    and the whole image, cut to an allowed ratio, where none does.

    Args:
        count: the number of boxes.
        sides: height and width of the image.
        least: the smallest share of its area, in (0, 1].
    """
    height, width = sides
    area = height * width * torch.empty(10, count).uniform_(least, 1)
    ratio = torch.empty(10, count).uniform_(math.log(RATIO[0]), math.log(RATIO[1])).exp()
    widths, heights = (area * ratio).sqrt().round(), (area / ratio).sqrt().round()
    inside = (widths >= 1) & (widths <= width) & (heights >= 1) & (heights <= height)
    first = inside.to(torch.int8).argmax(0)[None]  # (1, count)
    some = inside.any(0)
    w = torch.where(some, widths.gather(0, first)[0], min(width, round(height * RATIO[1])))
    h = torch.where(some, heights.gather(0, first)[0], min(height, round(width / RATIO[0])))
    top, left = torch.rand(2, count)
    top = torch.where(some, (top * (height - h + 1)).floor(), (height - h) // 2)
    left = torch.where(some, (left * (width - w + 1)).floor(), (width - w) // 2)
    return torch.stack([top, left, h, w], 1).to(torch.int64)


def resized_crop(images: Tensor, boxes: Tensor, size: int) -> Tensor:
    """Cut a box of its own out of each image and resize it, bilinear and antialiased; dtype kept.

    Args:
        images: (B, C, H, W).
        boxes: (B, 4) int64, on the CPU: top, left, height, width.
        size: the side of the result, (B, C, size, size).
    """
    if images.device.type == "cpu":  # PyTorch's own kernel for bytes, ten times as fast as the products there
        return torch.stack(
            [
                v2.resized_crop(image, top, left, height, width, [size, size], antialias=True)
                for image, (top, left, height, width) in zip(images, boxes.tolist(), strict=True)
            ]
        )
    return crop_by_products(images, boxes, size)


def crop_by_products(images: Tensor, boxes: Tensor, size: int) -> Tensor:
    """:func:`resized_crop` as two matrix products an image: no loop over the batch, which a GPU would wait for."""
    boxes = boxes.to(images.device, torch.float32, non_blocking=True)
    top, left, height, width = boxes.unbind(1)
    rows = _triangles(top, height, size, images.shape[-2])  # (B, size, H)
    columns = _triangles(left, width, size, images.shape[-1])  # (B, size, W)
    values = images.to(torch.float32).flatten(1, 2) @ columns.mT  # (B, C * H, size)
    values = rows[:, None] @ values.unflatten(1, images.shape[1:3])  # (B, C, size, size)
    return values.to(images.dtype) if images.is_floating_point() else values.round().to(images.dtype)


def _triangles(start: Tensor, length: Tensor, size: int, side: int) -> Tensor:
    """Return the weight of each of ``side`` pixels in each of ``size`` equal parts of [start, start + length).

    Args:
        start: (B,) in pixels.
        length: (B,) in pixels.
        size: the number of parts.
        side: the number of pixels.

    Returns:
        (B, size, side); a triangle as wide as two parts, or two pixels where a part is narrower; rows sum to one.
    """
    part = (length / size)[:, None, None]
    start, end = start[:, None, None], (start + length)[:, None, None]
    centre = start + part * (torch.arange(size, device=start.device)[:, None] + 0.5)  # (B, size, 1)
    pixel = torch.arange(side, device=start.device) + 0.5  # (side,)
    weight = (1 - (pixel - centre).abs() / part.clamp(min=1)).clamp(min=0)
    weight = weight * ((pixel > start) & (pixel < end))
    return weight / weight.sum(-1, keepdim=True)


def move(
    images: Tensor, down: Tensor, right: Tensor, mirrored: Tensor | None = None, size: int | None = None
) -> Tensor:
    """Move each image by its own number of pixels, repeat the border, and mirror the chosen ones.

    Args:
        images: (B, C, H, W).
        down: (B,) int64, the moves in pixels.
        right: (B,) int64, the moves in pixels.
        mirrored: (B,) bool, or None for none.
        size: of the moved images the upper left square of this side, (B, C, size, size); None takes them whole.
    """
    count, channels, height, width = images.shape
    device, tall, wide = images.device, size or height, size or width
    rows = torch.arange(tall, device=device)[None] - down[:, None]  # (B, tall), where each row comes from
    columns = torch.arange(wide, device=device)[None] - right[:, None]  # (B, wide)
    rows, columns = rows.clamp(0, height - 1), columns.clamp(0, width - 1)
    if mirrored is not None:
        columns = torch.where(mirrored[:, None], columns.flip(1), columns)
    moved = images.gather(2, rows[:, None, :, None].expand(count, channels, tall, width))
    return moved.gather(3, columns[:, None, None, :].expand(count, channels, tall, wide))
