"""The gallery of a run's page: for each target class its labelled images, and what the test got right and wrong.

A page holds its pictures itself, so their number and their size are limited; what is left out is counted.
"""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from jtln.data.images import ImageSet
from jtln.names.class_set import ClassSet
from jtln.reporting.predictions import Predictions
from jtln.reporting.statistics import wilson_interval

MOST_CLASSES = 24
MOST_IMAGES = 5  # of a class on each shelf
MOST_BYTES = 1_500_000  # of all thumbnails together, as text
SIDE = 80  # pixels: larger images are reduced to it

_LOSSLESS = 40  # pixels: JPEG's artefacts show in images that are smaller than this

Related = Mapping[str, Sequence[tuple[str, float]]]  # target class -> source classes with their shares


class Thumbnail(NamedTuple):
    """One image, and where it was tested the confidence in the predicted class."""

    uri: str  # a data URI
    name: str  # of the image in its set
    confidence: float | None = None
    mistaken_for: str | None = None  # the predicted class, where it is wrong


class Shelf(NamedTuple):
    """Some images of one class."""

    title: str
    images: tuple[Thumbnail, ...]
    more: int  # images that are not shown


@dataclass(frozen=True)
class ClassCard:
    """A run's results on one target class.

    Attributes:
        name: of the class.
        related: the source classes that the plan relates to it, with their shares of its mass.
        tested, right: test images, and those that were predicted right.
        shelves: labelled images; right and wrong test images, the most confident first.
    """

    name: str
    related: Sequence[tuple[str, float]]
    tested: int
    right: int
    shelves: tuple[Shelf, ...]

    @property
    def accuracy(self) -> float | None:
        """The share of test images that were predicted right; None without a test image."""
        return self.right / self.tested if self.tested else None

    @property
    def interval(self) -> tuple[float, float]:
        """Wilson's 95% interval for the accuracy."""
        return wilson_interval(self.right, self.tested)


@dataclass(frozen=True)
class Gallery:
    """The classes with the lowest test accuracies, the lowest first, out of ``classes``."""

    cards: tuple[ClassCard, ...]
    classes: int

    @property
    def size(self) -> int:
        """Bytes of its thumbnails on a page."""
        return sum(len(image.uri) for card in self.cards for shelf in card.shelves for image in shelf.images)


class _Chosen(NamedTuple):
    """The images of a shelf by their indices, and how many there are."""

    title: str
    indices: NDArray[np.int64]
    of: int


def make_gallery(
    classes: ClassSet, labelled: ImageSet, test: ImageSet, predictions: Predictions, related: Related
) -> Gallery:
    """Choose the images of each class and read them.

    Args:
        classes: the target classes.
        labelled: the target's training images.
        test: the images that were predicted, in the order of ``predictions``.
        predictions: of the ``test`` images.
        related: source classes of each target class; a class may be missing.
    """
    labels = labelled.labels.numpy()
    right = np.bincount(predictions.label[predictions.right], minlength=len(classes))  # (T,)
    tested = np.bincount(predictions.label, minlength=len(classes))  # (T,)
    accuracy = np.where(tested > 0, right / np.maximum(tested, 1), np.inf)  # (T,) classes without test images last
    order = np.argsort(accuracy, kind="stable")[:MOST_CLASSES]
    gallery = Gallery((), len(classes))
    for index in order.tolist():
        own = np.flatnonzero(labels == index)
        shelves = (
            _shelf(_Chosen("Labelled images", own[:MOST_IMAGES], len(own)), labelled, classes),
            *(_shelf(each, test, classes, predictions) for each in _tested(index, predictions)),
        )
        name = classes.names[index]
        card = ClassCard(name, related.get(name, ()), int(tested[index]), int(right[index]), shelves)
        longer = Gallery((*gallery.cards, card), len(classes))
        if longer.size > MOST_BYTES:
            break
        gallery = longer
    return gallery


def thumbnail(pixels: Tensor) -> str:
    """Return an image (1 or 3, H, W) uint8 as a data URI: PNG where it is small, else a JPEG of at most SIDE pixels."""
    array = pixels.permute(1, 2, 0).numpy()  # (H, W, C)
    image = Image.fromarray(array[..., 0] if array.shape[2] == 1 else array)
    small = max(image.size) <= _LOSSLESS
    image.thumbnail((SIDE, SIDE), Image.Resampling.LANCZOS)
    buffer = io.BytesIO()
    if small:
        image.save(buffer, "PNG", optimize=True)
    else:
        image.save(buffer, "JPEG", quality=80, optimize=True)
    return data_uri(buffer.getvalue(), "png" if small else "jpeg")


def data_uri(content: bytes, kind: str) -> str:
    """Return an image file as a data URI, which a page holds itself.

    Args:
        content: the bytes of the image file.
        kind: "png" or "jpeg".
    """
    return f"data:image/{kind};base64,{base64.b64encode(content).decode('ascii')}"


def _tested(label: int, predictions: Predictions) -> list[_Chosen]:
    """Return the most confident right and wrong predictions for the images of a class."""
    of_class = predictions.label == label
    chosen = []
    for title, those in (
        ("Most confident right", of_class & predictions.right),
        ("Most confident wrong", of_class & ~predictions.right),
    ):
        indices = np.flatnonzero(those)
        best = np.argsort(-predictions.confidence[indices], kind="stable")[:MOST_IMAGES]
        chosen.append(_Chosen(title, indices[best], len(indices)))
    return chosen


def _shelf(chosen: _Chosen, images: ImageSet, classes: ClassSet, predictions: Predictions | None = None) -> Shelf:
    indices = chosen.indices.tolist()
    shown = list[Thumbnail]()
    if not indices:
        return Shelf(chosen.title, (), chosen.of)
    for index, each in zip(indices, images.__getitems__(indices)[0], strict=True):
        found = Thumbnail(thumbnail(each), images.names[index])
        if predictions is not None:
            wrong = None if predictions.right[index] else classes.names[int(predictions.predicted[index])]
            found = found._replace(confidence=float(predictions.confidence[index]), mistaken_for=wrong)
        shown.append(found)
    return Shelf(chosen.title, tuple(shown), chosen.of - len(shown))
