"""One or two image collections, divided by their classes into a source and a target task."""

from __future__ import annotations

import hashlib
import math
import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from jtln.data.cache import Skipped, with_image_cache
from jtln.data.collections.base import Collection
from jtln.data.files import FITS, FileImages, Reader
from jtln.data.grey_levels import OVERSHOOT, common_white
from jtln.data.images import ArrayImages, ImageSet, no_images
from jtln.data.pairs import Pair, PairSpec, Task, check_classes
from jtln.data.sampling import few_shot, share_of_each, stratified_split
from jtln.data.selection import OVERLAPS, Wanted, select, source_classes
from jtln.errors import UserError, unknown
from jtln.names.class_set import ClassSet
from jtln.storage import given_path

TABLE = "a CSV file of class and synset, or null,"
ON_BAD_IMAGE = ("error", "skip")
Held = int | float | None  # images a class, a share of each class's images, or None: the official part
Parts = dict[str, ImageSet]


class CategoryPair(PairSpec):
    """Some classes of a collection as the target; its other classes, or those of another collection, as the source.

    Test images are the collection's official ones, or the share ``test`` of each class. Validation images come from
    the training part. Labelled images are chosen among the remaining ones, so that validation does not depend on
    ``shots`` or ``rate``. The target's labelled and validation images depend on ``seed``. The choice of classes, the
    source's parts and the target's test images depend on ``split_seed`` only: a pre-trained trunk can be reused by
    other seeds, and no seed labels or validates on test images of another. The exception is ``train_per_class``, with
    which the test images depend on ``seed``, as in that protocol.

    Args:
        name: the data set's name in results.
        target: the target task's collection.
        source: the source task's collection; None: other classes of the target's collection.
        target_classes: "all", names ("Boeing/*": those below a node of the hierarchy), or the number or the share in
            (0, 1) of classes that ``split_seed`` draws. At least two.
        source_classes: likewise, among the classes that are not target classes; "rest" is "all" of them.
        overlap: the treatment of classes of another source collection that are also target classes, by their synset
            or their name without case and punctuation: "drop" removes them from the source, "keep" keeps them.
        shots: labelled target images a class; None: all that validation leaves.
        rate: in place of ``shots``, the share in (0, 1] of each class's images.
        validation: target images that choose the checkpoint: a number a class, or a share in (0, 1) of each class's
            images, drawn from the training part and an official validation part; 0: none; None: the official part. A
            validation part of the user's own folder or table is used whatever the value, except for 0, because it may
            come from other patients or days.
        test: share in (0, 1) of each class's images for the test, if the collection has no official test part.
        train_per_class: number of target images a class for training and validation; all others are test images. Only
            without an official test part (Caltech's protocol: 30 or 60).
        source_validation: like ``validation``, for the source.
        pool_validation: whether the user's own validation part joins the training part, from which validation images
            are then drawn.
        seed, split_seed: >= 0.
        image_size: the side of the network's input images, in pixels.
        stored_size: the side at which images are read, in pixels; None: ``image_size``, or 8/7 of it if training crops
            (256 for 224).
        fit: how an oblong image becomes a square: "crop", "squash" or "pad".
        flip, shift, crop: as in ``PairSpec``.
        on_bad_image: "error" stops at an image that cannot be read; "skip" leaves it out and lists it.
        white: the white level, > 0, of all grey images of more than 8 bits, such as 4095 for 12 bits in 16-bit files;
            None: as the files declare, or one level determined from all images.
        decoded: whether decoded images are stored in the image cache; "auto": if they fit.
        links: a CSV file with the columns class and synset, which overrides the collections' own synsets.
        cache: the folder of the image cache and the digests of files; None: no cache.
        root, download: settings of the collections, to which a configuration copies them; ignored here.

    Raises:
        UserError: a setting is out of range, a class is unknown or in both tasks, or a task has fewer than two; on
            ``load``, a collection is unavailable, images are broken, a class has too few images, or the white level
            cannot be determined.
    """

    def __init__(
        self,
        name: str,
        target: Collection,
        source: Collection | None = None,
        target_classes: Wanted = "all",
        source_classes: Wanted = "rest",
        overlap: str = "drop",
        shots: int | None = None,
        rate: float | None = None,
        validation: Held = 0.2,
        test: float | None = 0.2,
        train_per_class: int | None = None,
        source_validation: Held = 0.1,
        pool_validation: bool = False,
        seed: int = 0,
        split_seed: int = 0,
        image_size: int = 224,
        stored_size: int | None = None,
        fit: str = "crop",
        flip: bool = True,
        shift: int = 0,
        crop: float | None = None,
        on_bad_image: str = "error",
        white: float | None = None,
        decoded: bool | str = "auto",
        links: str | Path | None = None,
        cache: str | Path | None = None,
        root: str | None = None,
        download: bool | None = None,
    ) -> None:
        self.name = name
        self.target = _collection("target", target)
        self.source = self.target if source is None else _collection("source", source)
        self.overlap = overlap
        self.shots = shots
        self.rate = rate
        self.validation = validation
        self.test = test
        self.train_per_class = train_per_class
        self.source_validation = source_validation
        self.pool_validation = pool_validation
        self.seed = seed
        self.split_seed = split_seed
        self.image_size = image_size
        self.fit = fit
        self.flip = flip
        self.shift = shift
        self.crop = crop
        self.on_bad_image = on_bad_image
        self.white = white
        self.decoded = decoded
        self.cache = (
            None if cache is None else given_path(cache, "cache", "a folder", "set cache=DIR, or null for none")
        )
        self.stored_size = image_size if stored_size is None else stored_size
        self.has_source_images, self.validates = self.source.has_images, validation != 0
        self.classifier_temperature = self.source.temperature
        self._check()
        if stored_size is None and crop is not None:
            self.stored_size = round(image_size * 8 / 7)
        self.channels = max(self.source.channels, self.target.channels)
        self._deal(target_classes, source_classes, None if links is None else given_path(links, "links", TABLE))

    def _check(self) -> None:
        """Check the settings before any image is read."""
        if self.shots is not None and self.rate is not None:
            raise UserError(
                f"expected dataset.shots or dataset.rate, but got both: {self.shots} and {self.rate}. Set one of them "
                f"to null: dataset.rate={self.rate} dataset.shots=null, for instance"
            )
        whole, share = "a whole number of 1 or more", "a share between 0 and 1"
        size = self.image_size
        rules: dict[str, tuple[bool, str, object]] = {  # key -> (is valid, expected, example)
            "shots": (_at_least(1, self.shots), "1 or more labelled images a class, or null", 5),
            "rate": (self.rate is None or _share(self.rate) or _is_one(self.rate), "a share in (0, 1], or null", 0.15),
            "train_per_class": (_at_least(1, self.train_per_class), f"{whole}, or null", 30),
            "validation": (_held(self.validation, least=0), f"{whole}, 0, {share}, or null", 0.2),
            "source_validation": (_held(self.source_validation), f"{whole}, {share}, or null", 0.1),
            "test": (self.test is None or _share(self.test), f"{share}, or null", 0.2),
            **{
                key: (seed is not None and _at_least(0, seed), "a whole number of 0 or more", 0)
                for key, seed in (("seed", self.seed), ("split_seed", self.split_seed))
            },
            "image_size": (size is not None and _at_least(1, size), whole, 224),
            "stored_size": (_at_least(1, self.stored_size), f"{whole}, or null", "null"),
            "shift": (self.shift is not None and _at_least(0, self.shift), "a whole number of 0 or more", 2),
            "crop": (self.crop is None or _share(self.crop) or _is_one(self.crop), "a share in (0, 1], or null", 0.5),
            "white": (self.white is None or _level(self.white), "a grey level above 0, or null", 4095),
            "pool_validation": (isinstance(self.pool_validation, bool), "true or false", "false"),
        }
        for key, (right, expected, example) in rules.items():
            if not right:
                raise UserError(
                    f"expected {expected} for dataset.{key}, but got {getattr(self, key)!r}: "
                    f"set dataset.{key}={example}, for instance"
                )
        words = {"overlap": OVERLAPS, "fit": FITS, "on_bad_image": ON_BAD_IMAGE, "decoded": ("auto", True, False)}
        for key, choices in words.items():
            if getattr(self, key) not in choices:
                raise unknown(f"dataset.{key}", getattr(self, key), [str(each).lower() for each in choices])
        if self.stored_size < self.image_size:
            raise UserError(
                f"expected dataset.stored_size >= dataset.image_size, but got {self.stored_size} and "
                f"{self.image_size}: set dataset.stored_size=null"
            )

    def _deal(self, target_wanted: Wanted, source_wanted: Wanted, links: Path | None) -> None:
        """Set the classes of both tasks."""
        of_target, of_source = self.target.classes, self.source.classes
        if links is not None:
            of_target, of_source = (
                of_target.with_links(links, also=of_source.names, task="target"),
                of_source.with_links(links, also=of_target.names, task="source"),
            )
        chosen = select(of_target, target_wanted, "target_classes", (self.split_seed, 0), of_target.names)
        self.target_classes = of_target.subset(chosen)
        overlap = None if self._one_collection else self.overlap
        self.source_classes, self.dropped = source_classes(
            of_source, self.target_classes, source_wanted, overlap, self.split_seed
        )
        self.read_classifier(self.source.classifier_classes)
        check_classes(self.source_classes, self.target_classes, disjoint=self._one_collection)

    @property
    def seeds_differ_in_test(self) -> bool:
        return self.train_per_class is not None

    @property
    def _one_collection(self) -> bool:
        return self.source is self.target

    @property
    def identity(self) -> str:
        """A hash of the names, contents and classes of the user's own images, and of other collections' class lists.

        With a ``cache``, files are read once and later only checked for changes.

        Raises:
            UserError: the user's images are missing.
        """
        digest = hashlib.blake2b(digest_size=16)
        reader = Reader(self.stored_size)
        for side in ("source", "target"):
            collection: Collection = getattr(self, side)
            classes: ClassSet = getattr(self, f"{side}_classes")
            lines = [collection.name, *classes]
            for part, images in collection.parts(reader).items() if collection.own_parts else ():
                chosen = images.subset(_indices_of(images, collection.classes, [*classes]))
                labels = [collection.classes.names[label] for label in chosen.labels.tolist()]
                assert isinstance(chosen, FileImages)
                found = [content.digest for content in chosen.contents(self.cache)]
                lines += sorted(repr((part, *row)) for row in zip(chosen.names, labels, found, strict=True))
            digest.update("\n".join([side, *lines, ""]).encode("utf-8", "surrogateescape"))
        return digest.hexdigest()

    def load(self) -> Pair:
        reader = Reader(self.stored_size, self.fit, self.channels, self.white)
        skipped: list[Skipped] = []
        # Both tasks of one collection share the decoded images, whatever the division of its classes.
        shared = [*self.source_classes, *self.target_classes] if self._one_collection else []
        pools = {side: self._pools(side) for side in ("target", "source")}
        target = self._parts(self.target, shared or [*self.target_classes], reader, pools["target"])
        if self._one_collection and pools["target"] == pools["source"]:
            source = target
        else:
            source = {}
            if self.has_source_images:
                source = self._parts(self.source, shared or [*self.source_classes], reader, pools["source"])
        white = self._find_white([*target.values(), *(source.values() if source is not target else ())])
        reader, alone = replace(reader, white=white), source is not target
        target = self._decoded(self.target, target, reader, skipped)
        source = self._decoded(self.source, source, reader, skipped) if alone else target
        rest, val, test = self._split("target", target, self.seed, self.validation, self.train_per_class)
        called = self.target_classes.names
        if self.rate is None:
            chosen = few_shot(rest.labels, self.shots, self.seed, called)
        else:
            chosen = share_of_each(rest.labels, self.rate, self.seed, called)
        if self.has_source_images:
            of_source = self._split("source", source, self.split_seed, self.source_validation, None)
        else:
            of_source = (no_images(self.channels, self.stored_size),) * 3
        return Pair(
            name=self.name,
            source=Task(self.source_classes, *of_source),
            target=Task(self.target_classes, rest.subset(chosen), val, test),
            image_size=self.image_size,
            skipped=tuple(dict.fromkeys(skipped)),
            white=white,
        )

    def _pools(self, side: str) -> bool:
        """Return whether the validation part joins the training part, from which validation images are drawn."""
        collection: Collection = getattr(self, side)
        drawn = self.validation if side == "target" else self.source_validation
        return drawn is not None and (self.pool_validation or not collection.own_parts)

    def _parts(self, collection: Collection, names: list[str], reader: Reader, pooled: bool) -> Parts:
        """Return the parts with the images of the classes ``names``, with the collection's labels.

        Args:
            collection: the images' collection.
            names: the classes to keep.
            reader: decodes the image files.
            pooled: whether the validation part joins the training part.
        """
        parts = dict(collection.parts(reader))
        if pooled and "val" in parts:
            parts["train"] = _joined(parts["train"], parts.pop("val"))
        for part, images in parts.items():
            chosen = _indices_of(images, collection.classes, names)
            parts[part] = images if len(chosen) == len(images) else images.subset(chosen)
        return parts

    def _find_white(self, parts: list[ImageSet]) -> float | None:
        """Return the white level of grey images of more than 8 bits; None: as each file declares."""
        levels = {
            path: content.levels
            for images in parts
            if isinstance(images, FileImages)
            for path, content in zip(images.paths, images.contents(self.cache), strict=True)
            if content.levels is not None
        }
        white = common_white(levels) if self.white is None else self.white
        if white is None:
            return None
        highest = max((each.high for each in levels.values()), default=white)
        if self.white is None:
            warnings.warn(
                f"white level: {white:g} in all {len(levels)} grey images of more than 8 bits, whose levels reach "
                f"{highest:g}; dataset.white=NUMBER sets another one",
                stacklevel=3,
            )
        elif highest > OVERSHOOT * white:
            lighter = sum(each.high > OVERSHOOT * white for each in levels.values())
            warnings.warn(
                f"white level: {white:g}, but {lighter} of {len(levels)} grey images of more than 8 bits have lighter "
                f"levels, up to {highest:g}, which become white: check dataset.white={white:g}",
                stacklevel=3,
            )
        return white

    def _decoded(self, collection: Collection, parts: Parts, reader: Reader, skipped: list[Skipped]) -> Parts:
        """Return the parts ready for training.

        Args:
            collection: the images' collection.
            parts: part -> images, as :meth:`_parts` returns them.
            reader: decodes the image files.
            skipped: receives the broken images that are left out.
        """
        ready = {}
        for part, images in parts.items():
            if isinstance(images, FileImages) and images.reader != reader:
                images = images.read_by(reader)
            ready[part], broken = with_image_cache(images, self.cache, self.decoded, self.on_bad_image)
            _check_left(collection.classes, part, images.labels, ready[part].labels)
            folder = getattr(images, "root", None)
            skipped.extend(Skipped(str(Path(folder or "", image)), reason) for image, reason in broken)
        return ready

    def _split(
        self, side: str, parts: Parts, seed: int, validation: Held, per_class: int | None
    ) -> tuple[ImageSet, ImageSet, ImageSet]:
        """Return a task's training, validation and test images, labelled by the class's index in the task."""
        classes: ClassSet = getattr(self, f"{side}_classes")
        collection: Collection = getattr(self, side)
        prefix = "source_" if side == "source" else ""
        official = {part: _of_classes(images, collection.classes, classes) for part, images in parts.items()}
        train, val, test = (official.get(part) for part in ("train", "val", "test"))
        assert train is not None
        if test is not None and per_class is not None:
            raise UserError(
                f"expected no dataset.train_per_class for {collection.name}, which has an official test part, but "
                f"got {per_class}: set dataset.train_per_class=null; dataset.shots={per_class} labels as many images"
            )
        if test is None and per_class is not None:
            rest, kept = stratified_split(train.labels, seed, per_class, names=classes.names, setting="train_per_class")
            train, test = train.subset(kept), train.subset(rest)
        elif test is None:
            if self.test is None:
                raise UserError(
                    f"expected a share of {collection.name}'s images for the test, as it has no official test part, "
                    "but got dataset.test=null: set dataset.test=0.2, for instance"
                )
            kept, held = stratified_split(
                train.labels, self.split_seed, fraction=self.test, names=classes.names, setting="test"
            )
            train, test = train.subset(kept), train.subset(held)
        if val is not None and validation == 0:
            val = val.subset([])
        elif val is not None and validation is not None:
            warnings.warn(
                f"dataset.{prefix}validation={validation} is not used for the {side}, as your images have a validation "
                "part: dataset.pool_validation=true draws from the training and validation images",
                stacklevel=3,
            )
        elif validation == 0:
            val = train.subset([])
        elif validation is not None:
            per_class, fraction = (validation, None) if isinstance(validation, int) else (None, validation)
            kept, held = stratified_split(
                train.labels, seed, per_class, fraction, names=classes.names, setting=f"{prefix}validation"
            )
            train, val = train.subset(kept), train.subset(held)
        if val is None:
            raise UserError(
                f"expected an official validation part of {collection.name}, as dataset.{prefix}validation is null, "
                f"but it has none: set dataset.{prefix}validation=0.2, for instance"
            )
        for part, images in (("training", train), ("validation", val), ("test", test)):
            if not len(images) and not (part == "validation" and validation == 0):
                remedy = (
                    ": dataset.pool_validation=true draws them from the training part" if part == "validation" else ""
                )
                raise UserError(
                    f"expected {part} images of the {side} classes in {collection.name}, but got none{remedy}"
                )
        if validation != 0:
            _warn_of_missing(side, "validation", classes, val.labels)
        _warn_of_missing(side, "test", classes, test.labels)
        return train, val, test


def _collection(side: str, given: Any) -> Collection:
    if isinstance(given, Collection):
        return given
    raise UserError(
        f"expected dataset.{side} to be a collection of images (a file of dataset/source, or a _target_), but got "
        f"{given!r}; the names of classes are dataset.{side}_classes"
    )


def _at_least(least: int, value: object) -> bool:
    """Return True if ``value`` is None or a whole number >= ``least``."""
    return value is None or (isinstance(value, int) and not isinstance(value, bool) and value >= least)


def _is_one(value: object) -> bool:
    return value == 1 and not isinstance(value, bool)


def _share(value: object) -> bool:
    return isinstance(value, float) and 0 < value < 1


def _held(value: object, least: int = 1) -> bool:
    return _at_least(least, value) or _share(value)


def _level(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and 0 < value < math.inf


def _joined(first: ImageSet, second: ImageSet) -> ImageSet:
    """Return the images of both sets, which must have the same type."""
    labels = torch.cat([first.labels, second.labels])
    if isinstance(first, FileImages) and isinstance(second, FileImages):
        return FileImages([*first.paths, *second.paths], labels, first.reader, first.root)
    if isinstance(first, ArrayImages) and isinstance(second, ArrayImages):
        return ArrayImages(torch.cat([first.images, second.images]), labels, [*first.names, *second.names])
    raise TypeError(f"expected two sets of one kind, but got {type(first).__name__} and {type(second).__name__}")


def _indices_of(images: ImageSet, all_classes: ClassSet, names: list[str]) -> Tensor:
    """Return the indices (K,) of the images of the classes ``names``."""
    wanted = torch.zeros(len(all_classes), dtype=torch.bool)
    wanted[[all_classes.index(name) for name in names]] = True
    return torch.nonzero(wanted[images.labels])[:, 0]


def _of_classes(images: ImageSet, all_classes: ClassSet, classes: ClassSet) -> ImageSet:
    """Return the images of ``classes``, labelled by their index in it."""
    label_of = torch.full((len(all_classes),), -1)
    label_of[[all_classes.index(name) for name in classes]] = torch.arange(len(classes))
    labels = label_of[images.labels]
    chosen = torch.nonzero(labels >= 0)[:, 0]
    return images.subset(chosen, labels[chosen])


def _warn_of_missing(side: str, part: str, classes: ClassSet, there: Tensor) -> None:
    """Warn of classes without validation or test images, which the accuracy of that part does not cover."""
    without = torch.nonzero(there.bincount(minlength=len(classes)) == 0)[:, 0].tolist()
    if without:
        named = ", ".join(classes.names[label] for label in without[:10]) + (", ..." if len(without) > 10 else "")
        warnings.warn(
            f"{len(without)} of the {len(classes)} {side} classes have no {part} image, so that {part} accuracy does "
            f"not cover them: {named}",
            stacklevel=4,
        )


def _check_left(classes: ClassSet, part: str, before: Tensor, after: Tensor) -> None:
    """Raise a UserError if all images of a class were skipped."""
    counts = [labels.bincount(minlength=len(classes)) for labels in (before, after)]
    lost = torch.nonzero((counts[0] > 0) & (counts[1] == 0))[:, 0].tolist()
    if lost:
        named = ", ".join(f"'{classes.names[label]}' ({int(counts[0][label])})" for label in lost[:10])
        more = f" and {len(lost) - 10} more" if len(lost) > 10 else ""
        raise UserError(
            f"expected readable images of every class, but all images in the {part} part are broken for: "
            f"{named}{more}. Repair them, or leave the class out of dataset.target_classes and dataset.source_classes"
        )
