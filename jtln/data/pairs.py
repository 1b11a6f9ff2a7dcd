"""The data of a run: a source task and a target task with different classes."""

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
    """One classification task: its classes and its three parts, which share no image.

    ``val`` chooses the checkpoint and may be empty; ``test`` is evaluated once, with the chosen checkpoint or, without
    validation images, the last one. The source task of a published classifier has no images.
    """

    classes: ClassSet
    train: ImageSet
    val: ImageSet
    test: ImageSet


@dataclass(frozen=True)
class Pair:
    """A large source task and a small target task.

    Attributes:
        name: the data set's name in results.
        source, target: the tasks.
        image_size: the side of the network's input images, in pixels; stored images may be larger.
        skipped: the broken images that were left out (``on_bad_image="skip"``).
        white: the white level of grey image files of more than 8 bits; None: as each file declares.
    """

    name: str
    source: Task
    target: Task
    image_size: int
    skipped: tuple[Skipped, ...] = ()
    white: float | None = None


class PairSpec(ABC):
    """A pair as ``conf/dataset`` describes it. The constructor is cheap; ``load`` reads the images.

    Attributes:
        name: the data set's name in results.
        source_classes: the source task's classes.
        target_classes: the target task's classes, none of which is a source class.
        image_size: the side of the network's input images, in pixels.
        stored_size: the side of the stored images, >= image_size and equal to it by default. Evaluation uses their
            central square.
        channels: 1 (grey) or 3 (RGB).
        shots: labelled target images a class; None: all, or the share ``rate``.
        rate: the labelled share of the target's training images, in (0, 1]; None: all, or ``shots``.
        flip: whether training may mirror images, because a mirrored image still shows its class.
        shift: the largest shift of a training image, in pixels.
        fit: how an oblong image becomes a square: "crop", "squash" or "pad". A trained network reads new files with
            this setting, ``stored_size`` and ``channels``.
        crop: the smallest share of an image's area, in (0, 1], of a random training crop; None: no crop.
        dropped: the classes left out of the source because they are target classes.
        seeds_differ_in_test: whether the seed draws the target's test images, so that test images of one seed are
            validation images of another.
        validates: whether the target has validation images.
        has_source_images: whether the source has images; the source task of a published classifier has none.
        classifier_rows: the index of each source class among the classes of a published classifier; None: no such
            classifier.
        classifier_size: the number of classes of that classifier.
        classifier_temperature: > 0, divides the published classifier's logits.
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
        """The side of the stored images, in pixels, >= ``image_size``."""
        return self.image_size

    @property
    def seeds_differ_in_test(self) -> bool:
        """True if the seed draws the target's test images, so that another seed may use them for validation."""
        return False

    @property
    def identity(self) -> str:
        """A hash of data that the settings do not determine, such as the user's own images; empty without such data."""
        return ""

    def read_classifier(self, classes: ClassSet | None) -> None:
        """Look up the source classes among all ``classes`` of a published classifier; None: there is none."""
        if classes is not None:
            place = {name: index for index, name in enumerate(classes)}
            self.classifier_size = len(place)
            self.classifier_rows = tuple(place[name] for name in self.source_classes)

    @abstractmethod
    def load(self) -> Pair:
        """Read the images and split them."""


def check_classes(source: ClassSet, target: ClassSet, disjoint: bool = True) -> None:
    """Raise a UserError if a task has only one class or, with ``disjoint``, the tasks share a class."""
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
            f"{', '.join(both)}. Remove them from dataset.source_classes or dataset.target_classes"
        )
