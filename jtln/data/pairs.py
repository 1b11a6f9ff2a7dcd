"""The subject of a run: a source task and a target task with different classes."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from functools import cached_property

from jtln.data.cache import Skipped
from jtln.data.images import ImageSet
from jtln.errors import UserError
from jtln.names.class_set import ClassSet


@dataclass(frozen=True)
class Task:
    """One labelled problem: its classes and its three parts, which share no image.

    ``val`` chooses the checkpoint, and may be empty; ``test`` is read once, with the checkpoint that ``val`` chose, or
    the last one. A source task of a published classifier has no image at all.
    """

    classes: ClassSet
    train: ImageSet
    val: ImageSet
    test: ImageSet


@dataclass(frozen=True)
class Pair:
    """A large source task and a small target task.

    Attributes:
        name: what results are filed under.
        source, target: the tasks.
        image_size: the side of the images as the network sees them, in pixels; the sets' own may be larger.
        skipped: the broken images that were left out, where the user asked for that.
        white: the grey level that is white in grey image files of more than 8 bits; None: as each file declares.
    """

    name: str
    source: Task
    target: Task
    image_size: int
    skipped: tuple[Skipped, ...] = ()
    white: float | None = None


class PairSpec(ABC):
    """A pair as ``conf/dataset`` describes it: building it is cheap, and no image is read before ``load``.

    Attributes:
        name: what results are filed under.
        source_classes: the source task's classes.
        target_classes: the target task's classes, none of which is a source class.
        image_size: the side of the images as the network sees them, in pixels.
        stored_size: the side of the images in the sets, >= image_size, which it is unless it is set. Evaluation takes
            the square in their middle.
        channels: 1 (grey) or 3 (RGB).
        shots: labelled target images a class; None means all there are, or the share ``rate`` of them.
        rate: the share of the target's training images that is labelled, in (0, 1]; None means all, or ``shots``.
        flip: whether a mirrored image still shows its class, so that training may flip it.
        shift: by how many pixels training may move an image.
        fit: how an oblong image becomes a square: "crop", "squash" or "pad". By this, ``stored_size`` and ``channels``
            files are read that a trained network is used on.
        crop: the smallest share of an image's area, in (0, 1], that training cuts out at random; None cuts nothing.
        dropped: the classes that the source would have, were they not target classes as well.
        seeds_differ_in_test: whether the seed draws the target's test images, so that what one seed tests another
            validates on.
        validates: whether the target has validation images.
        has_source_images: whether the source has images; a published classifier's has none.
        classifier_rows: for each source class its place among the classes of a published classifier; None: there is no
            such classifier.
        classifier_size: how many classes such a classifier has.
        classifier_temperature: > 0, by which the published classifier's logits are divided.
    """

    name: str
    source_classes: ClassSet
    target_classes: ClassSet
    image_size: int
    channels: int
    shots: int | None
    flip: bool
    shift: int
    rate: float | None = None
    fit: str = "crop"
    crop: float | None = None
    dropped: tuple[str, ...] = ()
    validates: bool = True
    has_source_images: bool = True
    classifier_rows: tuple[int, ...] | None = None
    classifier_size: int = 0
    classifier_temperature: float = 1.0

    @cached_property
    def stored_size(self) -> int:
        """The side of the images as the sets hold them, in pixels, >= ``image_size``."""
        return self.image_size

    @property
    def seeds_differ_in_test(self) -> bool:
        """True if the seed draws the target's test images, so that another seed may validate on them."""
        return False

    @property
    def identity(self) -> str:
        """A hash of the data that no setting names, such as the user's own images; empty where there are none."""
        return ""

    def read_classifier(self, classes: ClassSet | None) -> None:
        """Find the source classes among all ``classes`` of a published classifier; None: the source is none."""
        if classes is not None:
            place = {name: index for index, name in enumerate(classes)}
            self.classifier_size = len(place)
            self.classifier_rows = tuple(place[name] for name in self.source_classes)

    @abstractmethod
    def load(self) -> Pair:
        """Read the images and split them."""


def check_classes(source: ClassSet, target: ClassSet, disjoint: bool = True) -> None:
    """Raise a UserError where a side has one class only, or, if ``disjoint``, a class is on both sides."""
    for side, classes in (("source", source), ("target", target)):
        if len(classes) < 2:
            raise UserError(
                f"expected at least two {side} classes, but got only '{classes.names[0]}': "
                f"add one to dataset.{side}_classes"
            )
    both = [name for name in source if name in target.names]
    if both and disjoint:
        raise UserError(
            "expected source and target classes to be different ones, but got on both sides: "
            f"{', '.join(both)}. Take them out of dataset.source_classes or dataset.target_classes"
        )
