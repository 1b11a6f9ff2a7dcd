"""Pictograms: 200 everyday categories, each drawn in six styles by five groups of artists."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from jtln.data.collections.base import Collection
from jtln.data.images import ArrayImages, no_images
from jtln.data.pairs import Pair, PairSpec, Task, check_classes
from jtln.data.selection import Wanted, select, source_classes
from jtln.errors import UserError
from jtln.names.class_set import ClassSet

ASSETS = Path(__file__).parents[2] / "assets" / "pictograms"

# Styles of one group are never in different parts of a target's split. Measured at 32 x 32 pixels over the 200
# categories, the two Fluent styles have a median correlation of 0.92 (62 % above 0.9); all other pairs of styles have
# medians of 0.40 to 0.58, and at most 5 % above 0.9.
GROUPS = (("noto",), ("noto-v1",), ("twemoji",), ("fluent-emoji", "fluent-emoji-flat"), ("emojione",))

# Categories whose noto and noto-v1 drawings are nearly equal (correlation >= 0.97): never drawn as a target.
REDRAWN = ("comet", "hot-dog")

# On a circle of groups: steps from the first to the second group, by the steps to the last. With these values no two of
# twenty seeds label the same two groups and validate on the same third.
_SECOND = {1: 2, 2: 1, 3: 1, 4: 1}


class Pictograms(PairSpec):
    """Some categories in all styles as the source; other categories, split by style, as the target.

    Target: ``seed`` orders the style groups. The first ``shots`` groups give one labelled image a category each (the
    second style of a group of two is unused), the last ``validation`` groups choose the checkpoint, and the groups
    between are test images. So labelled images of a smaller ``shots`` are among those of a larger one, validation does
    not depend on ``shots``, and no test style has a label. Five consecutive seeds from a multiple of five label each
    group once and validate on each group once, and no two of the seeds 0 to 19 (20 to 39, ...) make the same split of
    one or two shots. With more shots fewer styles are left for the test.

    Source: one style group of every category is held out, for validation and test alternately; the others are for
    training. The choice depends on ``split_seed`` only, so that a pre-trained trunk can be reused by other seeds.

    Args:
        shots: number of labelled style groups, and so of labelled images a target category.
        validation: number of style groups for validation; 0: none, and one more group is tested.
        image_size: the side to which the 64 x 64 pixels are resized (Lanczos).
        target_classes: the target categories by name, or the number or share of them that ``split_seed`` draws.
        source: a published classifier, whose classes are the source's; None: the other categories.
        source_classes, overlap: as in ``CategoryPair``, for a published classifier.
        split_seed: draws the target categories and the source's held-out styles.
        seed: orders the target's style groups.
        flip: whether training mirrors images.
        shift: by how many pixels training moves images.

    Raises:
        UserError: a category is unknown, a task has fewer than two, ``shots`` and ``validation`` leave no style group
            for the test, or ``source`` has images.
    """

    name = "pictograms"
    channels = 3

    def __init__(
        self,
        shots: int = 1,
        validation: int = 1,
        image_size: int = 32,
        target_classes: Wanted = 50,
        source: Collection | None = None,
        source_classes: Wanted = "rest",
        overlap: str = "drop",
        split_seed: int = 0,
        seed: int = 0,
        flip: bool = True,
        shift: int = 2,
    ) -> None:
        if not isinstance(validation, int) or isinstance(validation, bool) or not 0 <= validation <= len(GROUPS) - 2:
            raise UserError(
                f"expected 0 to {len(GROUPS) - 2} validation style groups, but got {validation}: "
                "set dataset.validation=1"
            )
        most = len(GROUPS) - 1 - validation
        if not isinstance(shots, int) or not 1 <= shots <= most:
            raise UserError(
                f"expected 1 to {most} shots, as {validation} of {len(GROUPS)} style groups are for validation and at "
                f"least 1 is for the test, but got {shots}: set dataset.shots to at most {most}"
            )
        for key, value, least, usual in (
            ("image_size", image_size, 1, 32),
            ("shift", shift, 0, 2),
            ("seed", seed, 0, 0),
            ("split_seed", split_seed, 0, 0),
        ):
            if not isinstance(value, int) or isinstance(value, bool) or value < least:
                raise UserError(
                    f"expected a whole number of {least} or more for dataset.{key}, but got {value}: "
                    f"set dataset.{key}={usual}, for instance"
                )
        classes = ClassSet.from_csv(ASSETS / "classes.csv")
        drawn_from = [name for name in classes if name not in REDRAWN]
        chosen = select(classes, target_classes, "target_classes", (split_seed, 0), drawn_from)
        self.target_classes = classes.subset(chosen)
        self._deal(classes, source, source_classes, overlap, split_seed)
        self.shots: int = shots
        self.validation = validation
        self.validates = validation > 0
        self.image_size = image_size
        self.split_seed = split_seed
        self.seed = seed
        self.flip = flip
        self.shift = shift

    def _deal(
        self, classes: ClassSet, source: Collection | None, wanted: Wanted, overlap: str, split_seed: int
    ) -> None:
        """Set the classes of the source."""
        if source is not None and source.has_images:
            raise UserError(
                f"expected a published classifier as the source of the pictograms, but got {source.name}: "
                "dataset/source=classifier, or dataset/source=same for the other categories"
            )
        if source is None:
            self.source_classes, _ = source_classes(classes, self.target_classes, wanted, None, split_seed)
        else:
            found = source_classes(source.classes, self.target_classes, wanted, overlap, split_seed)
            self.source_classes, self.dropped = found
            self.has_source_images, self.classifier_temperature = False, source.temperature
            self.read_classifier(source.classifier_classes)
        check_classes(self.source_classes, self.target_classes, disjoint=source is None)

    @property
    def seeds_differ_in_test(self) -> bool:
        return True

    def load(self) -> Pair:
        source = self._source() if self.has_source_images else self._task(self.source_classes, ([], [], []))
        return Pair(self.name, source, self._target(), self.image_size)

    def _source(self) -> Task:
        train: list[tuple[str, str]] = []
        held: tuple[list[tuple[str, str]], ...] = ([], [])  # validation, test
        generator = np.random.default_rng([self.split_seed, 1])
        group_of = generator.integers(len(GROUPS), size=len(self.source_classes))
        turn = generator.permutation(len(self.source_classes)) % 2
        for category, out, side in zip(self.source_classes, group_of, turn, strict=True):
            for index, group in enumerate(GROUPS):
                (held[side] if index == out else train).extend((category, style) for style in group)
        return self._task(self.source_classes, (train, *held))

    def _target(self) -> Task:
        groups, lone = self._order()
        train = [group[lone % len(group)] for group in groups[: self.shots]]
        test = [style for group in groups[self.shots : len(GROUPS) - self.validation] for style in group]
        val = [style for group in groups[len(GROUPS) - self.validation :] for style in group]
        images = [[(name, style) for name in self.target_classes for style in part] for part in (train, val, test)]
        return self._task(self.target_classes, images)

    def _order(self) -> tuple[list[tuple[str, ...]], int]:
        """Return the style groups in the target's order, and the index of the labelled style of a pair."""
        n = len(GROUPS)
        draw, place = divmod(self.seed, n * (n - 1))
        ahead, first = divmod(place, n)
        ahead += 1  # steps on the circle from the first group to the last, 1 to n - 1
        rest = sorted(set(range(1, n)) - {ahead}, key=lambda step: (step != _SECOND[ahead], step))
        circle = np.random.default_rng([draw, 2]).permutation(n)
        return [GROUPS[circle[(first + step) % n]] for step in (0, *rest, ahead)], ahead % 2

    def _task(self, classes: ClassSet, parts: Sequence[list[tuple[str, str]]]) -> Task:
        return Task(classes, *(self._read(classes, images) for images in parts))

    def _read(self, classes: ClassSet, images: list[tuple[str, str]]) -> ArrayImages:
        """Read the images of (category, style), named ``category/style``."""
        if not images:
            return no_images(self.channels, self.image_size)
        pixels = torch.from_numpy(np.stack([self._pixels(*image) for image in images]))  # (N, H, W, 3)
        label_of = {name: label for label, name in enumerate(classes)}
        labels = torch.tensor([label_of[category] for category, _ in images])
        names = [f"{category}/{style}" for category, style in images]
        return ArrayImages(pixels.permute(0, 3, 1, 2).contiguous(), labels, names)

    def _pixels(self, category: str, style: str) -> np.ndarray:
        """Return one image (H, W, 3) uint8."""
        with Image.open(ASSETS / category / f"{style}.png") as file:
            image = file.convert("RGB")
        if image.size != (self.image_size, self.image_size):
            image = image.resize((self.image_size, self.image_size), Image.Resampling.LANCZOS)
        return np.asarray(image)
