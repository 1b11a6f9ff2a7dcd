"""A pair of made images, for trying a whole run in seconds without reading a file."""

from __future__ import annotations

import torch

from jtln.classes import ClassSet
from jtln.data.images import ArrayImages
from jtln.data.pair import Pair, PairSpec, Task


def made_pair(spec: PairSpec, per_class: int = 2, seed: int = 0) -> Pair:
    """A pair with the classes, channels and size of ``spec``, and ``per_class`` images a class in every part.

    Each class has a mean colour of its own, to which every image adds noise, so that there is
    something to learn.
    """
    generator = torch.Generator().manual_seed(seed)

    def task(side: str, classes: ClassSet) -> Task:
        colours = torch.rand(len(classes), spec.channels, 1, 1, generator=generator)
        labels = torch.arange(len(classes)).repeat(per_class)  # (N,)

        def part(name: str) -> ArrayImages:
            noise = torch.randn(len(labels), spec.channels, spec.image_size, spec.image_size, generator=generator)
            images = (colours[labels] + 0.1 * noise).clamp(0, 1) * 255  # (N, C, H, W)
            return ArrayImages(images.to(torch.uint8), labels, [f"made/{side}/{name}/{i}" for i in range(len(labels))])

        return Task(classes, part("train"), part("val"), part("test"))

    return Pair(spec.name, task("source", spec.source_classes), task("target", spec.target_classes), spec.image_size)
