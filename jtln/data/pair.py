"""What a run is about: a source task and a target task whose classes are different ones."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass

from jtln.classes import ClassSet
from jtln.data.images import ImageSet
from jtln.errors import UserError


@dataclass(frozen=True)
class Task:
    """One labelled problem: its classes and its three parts, which share no image.

    ``val`` chooses the checkpoint; ``test`` is read once, with the checkpoint that ``val`` chose.
    """

    classes: ClassSet
    train: ImageSet
    val: ImageSet
    test: ImageSet


@dataclass(frozen=True)
class Pair:
    """A large source task and a small target task, with images of one size (``image_size`` a side)."""

    name: str
    source: Task
    target: Task
    image_size: int


class PairSpec(ABC):
    """A pair as ``conf/dataset`` describes it: building it is cheap, and no image is read before ``load``.

    Attributes:
        name: what results are filed under.
        source_classes: the source task's classes.
        target_classes: the target task's classes, none of which is a source class.
        image_size: the side of every image, in pixels.
        channels: 1 (grey) or 3 (RGB).
        shots: labelled target images a class; None means all there are.
        flip: whether a mirrored image still shows its class, so that training may flip it.
        shift: by how many pixels training may move an image.
    """

    name: str
    source_classes: ClassSet
    target_classes: ClassSet
    image_size: int
    channels: int
    shots: int | None
    flip: bool
    shift: int

    @abstractmethod
    def load(self) -> Pair:
        """Read the images and split them."""


def as_list(names: Sequence[str]) -> list[str]:
    """``names`` as a list, where a lone string (``dataset.target=Bag``) is one name and not its letters."""
    return [names] if isinstance(names, str) else list(names)


def check_classes(source: ClassSet, target: ClassSet) -> None:
    """Raise a UserError where a side has one class only, or a class is on both sides."""
    for side, classes in (("source", source), ("target", target)):
        if len(classes) < 2:
            raise UserError(
                f"expected at least two {side} classes, but got only '{classes.names[0]}': add one to dataset.{side}"
            )
    both = [name for name in source if name in target.names]
    if both:
        raise UserError(
            "expected source and target classes to be different ones, but got on both sides: "
            f"{', '.join(both)}. Take them out of dataset.source or dataset.target"
        )
