"""A pair of synthetic images, with which a whole run takes seconds and reads no file."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from jtln.data.images import ImageSet, no_images
from jtln.data.pairs import Pair, PairSpec, Task
from jtln.names.class_set import ClassSet

EVALUATED = 10  # classes in the validation and test parts: hundreds would take minutes at 224 pixels


class SyntheticImages(ImageSet):
    """Synthetic images, computed on access: the class's colour plus noise, shifted from image to image.

    Args:
        colours: (classes, C, 1, 1) in [0, 1].
        noise: (C, H, W) standard normal.
        labels: (N,) int64.
        names: (N,).
    """

    in_memory = True

    def __init__(self, colours: Tensor, noise: Tensor, labels: Tensor, names: Sequence[str]) -> None:
        self.colours = colours
        self.noise = noise
        self.labels = labels
        self.names = names

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        label, size = int(self.labels[index]), self.noise.shape[-1]
        shift = (7 * index // size, 7 * index % size)  # pixels
        image = self.colours[label] + 0.1 * self.noise.roll(shift, (1, 2))  # (C, H, W)
        return (image.clamp(0, 1) * 255).to(torch.uint8), label

    def fingerprint(self) -> str:
        """Return a hash of the arrays from which the images are computed."""
        digest = hashlib.blake2b(digest_size=16)
        for made_of in (self.colours, self.noise, self.labels):
            digest.update(made_of.numpy().tobytes())
        return digest.hexdigest()


def synthetic_pair(spec: PairSpec, per_class: int = 2, seed: int = 0) -> Pair:
    """Return a pair with the classes, channels and size of ``spec``, and ``per_class`` images a class in every part.

    Each class has its own mean colour, to which every image adds noise, so that a network can learn the classes. The
    validation and test parts hold at most the first ten classes.
    """
    generator = torch.Generator().manual_seed(seed)

    def task(side: str, classes: ClassSet) -> Task:
        colours = torch.rand(len(classes), spec.channels, 1, 1, generator=generator)

        def part(name: str, shown: int) -> SyntheticImages:
            noise = torch.randn(spec.channels, spec.stored_size, spec.stored_size, generator=generator)
            labels = torch.arange(shown).repeat(per_class)  # (N,)
            return SyntheticImages(colours, noise, labels, [f"synthetic/{side}/{name}/{i}" for i in range(len(labels))])

        few = min(len(classes), EVALUATED)
        return Task(classes, part("train", len(classes)), part("val", few), part("test", few))

    source, target = task("source", spec.source_classes), task("target", spec.target_classes)
    if not spec.has_source_images:
        source = Task(source.classes, *(no_images(spec.channels, spec.stored_size),) * 3)
    if not spec.validates:
        target = replace(target, val=no_images(spec.channels, spec.stored_size))
    return Pair(spec.name, source, target, spec.image_size)
