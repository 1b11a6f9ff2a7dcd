"""Fashion-MNIST (Zalando SE): ten kinds of clothing in grey images of 28 x 28."""

from __future__ import annotations

import gzip
import os
import shutil
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torchvision.transforms.v2 import functional as v2

from jtln.data.collections.base import Collection
from jtln.data.files import Reader
from jtln.data.images import ArrayImages, ImageSet
from jtln.errors import UserError
from jtln.names.class_set import ClassSet
from jtln.storage import given_path

ASSETS = Path(__file__).parents[2] / "assets" / "fashion"
SOURCE = ("T-shirt/top", "Trouser", "Dress", "Coat", "Sandal", "Ankle boot")
TARGET = ("Pullover", "Shirt", "Sneaker", "Bag")
FILES = tuple(f"{s}-{part}-ubyte" for s in ("train", "t10k") for part in ("images-idx3", "labels-idx1"))


class Fashion(Collection):
    """The embedded part of Fashion-MNIST (made by ``jtln/assets/fashion/make.py``).

    It has 800 training and 200 test images of each SOURCE class, and 300 and 1,000 of each TARGET class, from the
    official parts. An image's name is its official part and index: ``train/01994``.
    """

    name = "fashion"
    channels = 1

    def __init__(self) -> None:
        self.classes = ClassSet.from_csv(ASSETS / "classes.csv")

    def parts(self, reader: Reader) -> dict[str, ImageSet]:
        return {part: self._part(part, reader) for part in ("train", "test")}

    def _part(self, part: str, reader: Reader) -> ArrayImages:
        images, labels, index = self._read(part)
        names = [f"{part}/{i:05d}" for i in index.tolist()]
        return ArrayImages(resize(images, reader.size).expand(-1, reader.channels, -1, -1), labels, names)

    def _read(self, part: str) -> tuple[Tensor, Tensor, Tensor]:
        """Return images (N, 1, 28, 28) uint8, labels (N,), and indices in the official part (N,)."""
        with np.load(ASSETS / "fashion.npz") as arrays:
            images, labels, index = (
                torch.from_numpy(arrays[f"{part}_{what}"]) for what in ("images", "labels", "index")
            )
        return images[:, None], labels, index


class FashionFull(Fashion):
    """The whole of Fashion-MNIST: 60,000 training and 10,000 test images, read by torchvision.

    Args:
        root: the parent of ``FashionMNIST/raw/``, existing or to be created.
        download: whether missing files are fetched (30 MB).

    Raises:
        UserError: on ``parts``, files are missing and could not be fetched.
    """

    name = "fashion_full"

    def __init__(self, root: str | Path, download: bool = True) -> None:
        super().__init__()
        self.root = given_path(root, "root", "a folder", "set dataset.root=DIR (of a source: dataset.source.root=DIR)")
        self.download = download

    def _read(self, part: str) -> tuple[Tensor, Tensor, Tensor]:
        from torchvision.datasets import FashionMNIST  # Importing it is slow.

        try:
            self._unpack()
            data = FashionMNIST(str(self.root), train=part == "train", download=self.download)
        except (RuntimeError, OSError, ValueError) as error:
            raise self._missing(error) from error
        return data.data[:, None], data.targets, torch.arange(len(data))

    def _unpack(self) -> None:
        """Unpack a manual copy's .gz files, because torchvision accepts only those of its own mirror."""
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
    """Resize images (N, C, H, W) uint8 to ``size`` pixels a side, antialiased; images of that size are unchanged."""
    if images.shape[-2:] == (size, size):
        return images
    return v2.resize(images, [size, size], antialias=True)
