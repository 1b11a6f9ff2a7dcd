"""Transforms of a batch of uint8 images on the device, before the trunk."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torchvision.transforms.v2 import functional as v2

from jtln.errors import UserError, unknown

VIEWS = {"none": 1, "flip": 2, "ten_crop": 10}  # number of views of each kind
RATIO = (3 / 4, 4 / 3)  # width over height of a crop, as in torchvision


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
        # The buffers are not persistent, so that a checkpoint's weights load whatever the normalisation is.
        self.register_buffer("mean", torch.tensor(list(mean)).view(1, 3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(list(std)).view(1, 3, 1, 1), persistent=False)

    def forward(self, images: Tensor) -> Tensor:
        if self.mean.device != images.device:
            self.to(images.device)  # Lightning does not move a data module's transforms.
        values = images.expand(-1, 3, -1, -1).to(torch.float32, copy=True)
        return values.div_(255).sub_(self.mean).div_(self.std)  # In-place operations, because memory traffic dominates.


class Augment(nn.Module):
    """Random crop, shift and flip with a draw for each image of a batch; any dtype.

    torchvision's transforms draw once for a whole batch.

    Args:
        flip: whether images are mirrored, with probability 1/2.
        shift: the largest shift, in pixels along each axis, >= 0; the border is replicated.
        crop: the smallest share of an image's area, in (0, 1], of a crop with an aspect ratio between 3/4 and 4/3,
            which is resized as by torchvision's RandomResizedCrop; None: no resizing.
        size: the side of the output images, in pixels; None: that of the input. Without ``crop``, a random square of
            this side is cut out.
    """

    def __init__(self, flip: bool = True, shift: int = 2, crop: float | None = None, size: int | None = None) -> None:
        super().__init__()
        if crop is not None and not 0 < crop <= 1:
            raise UserError(f"expected the smallest share of a crop in (0, 1], but got {crop}: set dataset.crop=0.25")
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
    """The central square of every image: (B, C, H, W) -> (B, C, size, size).

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
        kind: "none": the centre; "flip": the centre and its mirror image; "ten_crop": the centre, the four corners and
            their mirror images.
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

    Area and the logarithm of the aspect ratio are uniform. The first of ten draws that lies within the image is used;
    without one, the whole image, cut to an allowed ratio.

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
    """Crop each image to its own box and resize it, bilinear and antialiased; the dtype is kept.

    Args:
        images: (B, C, H, W).
        boxes: (B, 4) int64, on the CPU: top, left, height, width.
        size: the side of the result, (B, C, size, size).
    """
    if images.device.type == "cpu":  # PyTorch's uint8 kernel is ten times faster than the products on a CPU.
        return torch.stack(
            [
                v2.resized_crop(image, top, left, height, width, [size, size], antialias=True)
                for image, (top, left, height, width) in zip(images, boxes.tolist(), strict=True)
            ]
        )
    return crop_by_products(images, boxes, size)


def crop_by_products(images: Tensor, boxes: Tensor, size: int) -> Tensor:
    """Compute :func:`resized_crop` by two matrix products an image, without a loop over the batch, for GPUs."""
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
        (B, size, side); a triangle two parts wide, at least two pixels; rows sum to one.
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
    """Shift each image by its own number of pixels, replicate the border, and mirror the chosen images.

    Args:
        images: (B, C, H, W).
        down: (B,) int64, shifts in pixels.
        right: (B,) int64, shifts in pixels.
        mirrored: (B,) bool; None: no image.
        size: the side of the upper left square that is returned, (B, C, size, size); None: the whole images.
    """
    count, channels, height, width = images.shape
    device, out_height, out_width = images.device, size or height, size or width
    rows = torch.arange(out_height, device=device)[None] - down[:, None]  # (B, out_height): the input row of each
    columns = torch.arange(out_width, device=device)[None] - right[:, None]  # (B, out_width)
    rows, columns = rows.clamp(0, height - 1), columns.clamp(0, width - 1)
    if mirrored is not None:
        columns = torch.where(mirrored[:, None], columns.flip(1), columns)
    moved = images.gather(2, rows[:, None, :, None].expand(count, channels, out_height, width))
    return moved.gather(3, columns[:, None, None, :].expand(count, channels, out_height, out_width))
