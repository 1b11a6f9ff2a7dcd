"""Duplicate images of a pair, equal pixel by pixel, that bias what it measures."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

from jtln.data.cache import CachedImages
from jtln.data.files import FileImages
from jtln.data.images import ImageSet
from jtln.data.pairs import Pair


class Repeat(NamedTuple):
    """Two files with the same pixels.

    ``what`` is "test" (the first is tested, the second is a labelled or validation image of the target),
    "validation" (the second is a labelled image), "source" (the first is tested, the second trains the source) or
    "classes" (one task has them under two classes).
    """

    what: str
    image: str
    twin: str


def repeats(pair: Pair) -> tuple[Repeat, ...]:
    """Return the duplicates in ``pair``; each image is listed once, with the first of its twins.

    Images are compared by a 64-bit hash of their pixels in the image cache, at one size. Only sets in the image cache
    are searched: embedded images are known, and the others (:func:`unseen`) would need a pass over their files.
    """
    target, source = pair.target, pair.source
    found = [
        *_shared("test", target.test, (target.train, target.val)),
        *_shared("validation", target.val, (target.train,)),
        *_shared("source", target.test, (source.train,)),
        *_torn(target.train, target.val, target.test),
        *_torn(source.train, source.val),
    ]
    return tuple(dict.fromkeys(found))


def unseen(pair: Pair) -> int:
    """Return the number of images that :func:`repeats` cannot compare, because they are not in the image cache."""
    parts = (part for task in (pair.source, pair.target) for part in (task.train, task.val, task.test))
    return sum(len(part) for part in parts if isinstance(part, FileImages))


def _shared(what: str, images: ImageSet, others: tuple[ImageSet, ...]) -> Iterator[Repeat]:
    """Yield the images that are also in ``others``."""
    first: dict[int, str] = {}
    for name, _, key in _keyed(*others):
        first.setdefault(key, name)
    if first:
        yield from (Repeat(what, name, first[key]) for name, _, key in _keyed(images) if key in first)


def _torn(*parts: ImageSet) -> Iterator[Repeat]:
    """Yield the images whose class differs from that of their first twin."""
    first: dict[int, tuple[str, int]] = {}
    for name, label, key in _keyed(*parts):
        twin, other = first.setdefault(key, (name, label))
        if label != other:
            yield Repeat("classes", name, twin)


def _keyed(*parts: ImageSet) -> Iterator[tuple[str, int, int]]:
    """Yield the path, label and hash of each image."""
    for images in parts:
        if isinstance(images, CachedImages):
            yield from zip(
                images.files.paths, images.labels.tolist(), images.hashes().astype(np.int64).tolist(), strict=True
            )
