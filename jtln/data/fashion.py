"""Fashion-MNIST (Zalando SE), its ten classes dealt out to a source and a target task."""

from __future__ import annotations

import gzip
import os
import shutil
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torchvision.transforms.v2 import functional as v2

from jtln.classes import ClassSet
from jtln.data.images import ArrayImages
from jtln.data.pair import Pair, PairSpec, Task, as_list, check_classes
from jtln.data.sampling import few_shot, stratified_split
from jtln.errors import UserError

ASSETS = Path(__file__).parents[1] / "assets" / "fashion"
SOURCE = ("T-shirt/top", "Trouser", "Dress", "Coat", "Sandal", "Ankle boot")
FILES = tuple(f"{s}-{part}-ubyte" for s in ("train", "t10k") for part in ("images-idx3", "labels-idx1"))
TARGET = ("Pullover", "Shirt", "Sneaker", "Bag")


class Fashion(PairSpec):
    """The part of Fashion-MNIST that travels with the package (made by ``jtln/assets/fashion/make.py``).

    Training and validation images are official training images, test images official test images. On the
    target side ``validation`` images a class come out first and the labelled ones out of the rest, so that
    validation is the same whatever ``shots`` is; both depend on ``seed``. The source side depends on
    ``split_seed`` alone, because a pre-trained trunk is kept for later runs of other seeds.

    Args:
        source: the source classes, at least two.
        target: the target classes, at least two, none of them a source class.
        shots: labelled target images a class; None takes all that validation leaves.
        validation: target images a class to choose the checkpoint with.
        source_validation: source images a class held out for the same purpose.
        seed: chooses the target's labelled and validation images.
        split_seed: chooses the source's validation images.
        image_size: the side to which images are resized, in pixels.
        flip: whether training mirrors images.
        shift: by how many pixels training moves images.

    Raises:
        UserError: a class is unknown or stands on both sides, or a side has fewer than two; on ``load``, a
            class has fewer images than asked for.
    """

    name = "fashion"
    channels = 1

    def __init__(
        self,
        source: Sequence[str] = SOURCE,
        target: Sequence[str] = TARGET,
        shots: int | None = 10,
        validation: int = 20,
        source_validation: int = 50,
        seed: int = 0,
        split_seed: int = 0,
        image_size: int = 28,
        flip: bool = True,
        shift: int = 2,
    ) -> None:
        self.classes = ClassSet.from_csv(ASSETS / "classes.csv")
        self.source_classes = self.classes.subset(as_list(source))
        self.target_classes = self.classes.subset(as_list(target))
        check_classes(self.source_classes, self.target_classes)
        self.shots = shots
        self.validation = validation
        self.source_validation = source_validation
        self.seed = seed
        self.split_seed = split_seed
        self.image_size = image_size
        self.flip = flip
        self.shift = shift

    def load(self) -> Pair:
        train, test = self._read("train"), self._read("test")
        source = self._of_classes(train, self.source_classes)
        kept, val = stratified_split(
            source.labels,
            self.split_seed,
            self.source_validation,
            names=self.source_classes.names,
            setting="source_validation",
        )
        target = self._of_classes(train, self.target_classes)
        rest, target_val = stratified_split(target.labels, self.seed, self.validation, names=self.target_classes.names)
        shots = rest[few_shot(target.labels[rest], self.shots, self.seed, self.target_classes.names)]
        return Pair(
            name=self.name,
            source=Task(
                self.source_classes,
                source.subset(kept),
                source.subset(val),
                self._of_classes(test, self.source_classes),
            ),
            target=Task(
                self.target_classes,
                target.subset(shots),
                target.subset(target_val),
                self._of_classes(test, self.target_classes),
            ),
            image_size=self.image_size,
        )

    def _read(self, split: str) -> ArrayImages:
        """All images of ``split`` ("train" or "test") with their official labels, named ``split/index``."""
        with np.load(ASSETS / "fashion.npz") as arrays:
            images, labels, index = (arrays[f"{split}_{part}"] for part in ("images", "labels", "index"))
        names = [f"{split}/{i:05d}" for i in index]
        return ArrayImages(torch.from_numpy(images)[:, None], torch.from_numpy(labels), names)

    def _of_classes(self, images: ArrayImages, classes: ClassSet) -> ArrayImages:
        """The images of ``classes``, labelled by their place in it, at this pair's size."""
        label_of = torch.full((len(self.classes),), -1)
        label_of[[self.classes.index(name) for name in classes]] = torch.arange(len(classes))
        labels = label_of[images.labels]
        chosen = images.subset(torch.nonzero(labels >= 0)[:, 0])
        pixels = resize(chosen.images, self.image_size)
        return ArrayImages(pixels, label_of[chosen.labels], chosen.names)


class FashionFull(Fashion):
    """The whole of Fashion-MNIST: 60,000 training and 10,000 test images, by way of torchvision.

    Args:
        root: the folder that holds ``FashionMNIST/raw/``, or is to hold it.
        download: whether files that are missing there are fetched (30 MB).
        source_validation: as in ``Fashion``; there are 6,000 training images a class.
        settings: the other settings of ``Fashion``.

    Raises:
        UserError: on ``load``, the files are not there and could not be fetched.
    """

    name = "fashion_full"

    def __init__(self, root: str, download: bool = True, source_validation: int = 500, **settings: object) -> None:
        super().__init__(source_validation=source_validation, **settings)  # type: ignore[arg-type]
        self.root = Path(root).expanduser()
        self.download = download

    def _read(self, split: str) -> ArrayImages:
        from torchvision.datasets import FashionMNIST  # heavy to import, and needed here alone

        try:
            self._unpack()
            data = FashionMNIST(str(self.root), train=split == "train", download=self.download)
        except (RuntimeError, OSError, ValueError) as error:
            raise self._missing(error) from error
        names = [f"{split}/{i:05d}" for i in range(len(data))]
        return ArrayImages(data.data[:, None], data.targets, names)

    def _unpack(self) -> None:
        """Unpack a manual copy's .gz files; torchvision takes only those of its own mirror, by their checksum."""
        for name in FILES:
            path = self.root / "FashionMNIST" / "raw" / name
            packed = path.with_name(f"{name}.gz")
            if packed.is_file() and not path.is_file():
                temporary = path.with_name(f"{name}.{os.getpid()}.tmp")
                with gzip.open(packed) as source, open(temporary, "wb") as target:
                    shutil.copyfileobj(source, target)
                os.replace(temporary, path)

    def _missing(self, error: Exception) -> UserError:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        return UserError(
            f"expected the four files of Fashion-MNIST in {self.root / 'FashionMNIST' / 'raw'}, but got: "
            f"{reason.rstrip('.:')}. Put {', '.join(FILES)} there (or the same with .gz), "
            "or set dataset.root=DIR, where DIR/FashionMNIST/raw holds them"
        )


def resize(images: Tensor, size: int) -> Tensor:
    """(N, C, H, W) uint8 at ``size`` a side, antialiased; images of that size come back as they are."""
    if images.shape[-2:] == (size, size):
        return images
    return v2.resize(images, [size, size], antialias=True)
