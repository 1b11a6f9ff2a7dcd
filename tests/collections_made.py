"""Which collections there are, and a few classes of each, of which a tiny copy is made."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import layouts
import pytest

from jtln.data.collections.aircraft import Aircraft
from jtln.data.collections.base import Published, classes_of
from jtln.data.collections.caltech import Caltech101, Caltech256
from jtln.data.collections.cars import Cars
from jtln.data.collections.cifar import CIFAR10, CIFAR100
from jtln.data.collections.cub import CUB200
from jtln.data.collections.flowers import Flowers102
from jtln.data.collections.food import Food101
from jtln.data.collections.imagenet import ImageNet
from jtln.data.collections.office import Office31
from jtln.data.collections.pets import Pets
from jtln.data.collections.places import Places365
from jtln.data.collections.textures import DTD


class Made(NamedTuple):
    """A collection, what makes a tiny copy of it, and the kinds in that; None means all."""

    collection: Callable[..., Published]
    make: Callable[..., layouts.Written]
    kinds: tuple[str, ...] | None


ALL: dict[str, Made] = {
    "aircraft": Made(Aircraft, layouts.aircraft, ("737-200", "707-320", "A300B4", "A340-600", "747-100", "DC-10")),
    "caltech101": Made(Caltech101, layouts.caltech101, ("Faces", "accordion", "crab", "yin_yang", "bass", "ant")),
    "caltech256": Made(
        Caltech256, layouts.caltech256, ("056.dog", "003.backpack", "198.spider", "253.faces-easy-101", "038.chimp")
    ),
    "cars": Made(Cars, layouts.cars, classes_of("cars")[1][:6]),
    "cifar10": Made(CIFAR10, layouts.cifar10, None),
    "cifar100": Made(CIFAR100, layouts.cifar100, None),
    "cub200": Made(CUB200, layouts.cub200, classes_of("cub200")[1][20:26]),
    "dtd": Made(DTD, layouts.dtd, ("banded", "zigzagged", "grid", "knitted", "woven")),
    "flowers102": Made(Flowers102, layouts.flowers102, classes_of("flowers102")[1][:6]),
    "food101": Made(Food101, layouts.food101, ("waffles", "apple_pie", "pizza", "ramen", "sushi")),
    "imagenet": Made(ImageNet, layouts.imagenet, classes_of("imagenet")[1][200:206]),
    "office31": Made(Office31, layouts.office31, ("back_pack", "bike", "mouse", "tape_dispenser", "mug", "pen")),
    "pets": Made(Pets, layouts.pets, ("Abyssinian", "American Bulldog", "Bengal", "Pug", "Yorkshire Terrier")),
    "places365": Made(Places365, layouts.places365, classes_of("places365")[1][:5]),
}


def made(name: str, root: Path, **settings: Any) -> layouts.Written:
    """Write a tiny copy of the collection ``name`` below ``root``."""
    kinds = ALL[name].kinds
    return ALL[name].make(root, classes_of(name)[1] if kinds is None else kinds, **settings)


def without_checksums(patch: pytest.MonkeyPatch) -> None:
    """torchvision compares files with the checksums of the published ones, which tiny copies cannot have."""
    for module in ("flowers102", "cifar", "places365", "utils", "imagenet"):
        patch.setattr(f"torchvision.datasets.{module}.check_integrity", lambda path, md5=None: os.path.isfile(path))
