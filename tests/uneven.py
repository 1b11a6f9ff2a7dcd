"""A pair whose images two processes cannot share equally."""

from __future__ import annotations

import torch

from jtln.data.images import ArrayImages
from jtln.data.pairs import Pair, Task
from jtln.names.class_set import ClassSet


def uneven_pair() -> Pair:
    """Return random 8 x 8 images of four source and three target classes, an odd number in each part."""
    generator = torch.Generator().manual_seed(5)

    def part(count: int, classes: int) -> ArrayImages:
        images = torch.randint(0, 256, (count, 3, 8, 8), generator=generator).to(torch.uint8)
        labels = torch.arange(count) % classes
        return ArrayImages(images, labels, [str(index) for index in range(count)])

    source = Task(ClassSet(["ant", "bee", "cat", "dog"]), part(19, 4), part(9, 4), part(11, 4))
    target = Task(ClassSet(["elk", "fox", "gnu"]), part(11, 3), part(7, 3), part(5, 3))
    return Pair("uneven", source, target, 8)
