"""CIFAR-10 and CIFAR-100 (Krizhevsky 2009)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torchvision import datasets

from jtln.data.collections.base import Listed, Published, as_labels
from jtln.data.collections.fashion import resize
from jtln.data.files import Reader
from jtln.data.images import ArrayImages, ImageSet


class CIFAR10(Published):
    """Ten kinds of animals and vehicles, 32 x 32 pixels, in official training and test parts.

    Arguments as in ``Published``. The images are held in memory, at the reader's size.
    """

    name = "cifar10"
    folder = "cifar-10-batches-py"
    layout = "cifar-10-batches-py/ with data_batch_1 to data_batch_5, test_batch and batches.meta"
    size = "0.17 GB"
    archive = "cifar-10-python.tar.gz"
    dataset: Callable[..., Any] = datasets.CIFAR10

    def files(self) -> dict[str, Listed]:
        raise RuntimeError("its images are not files of their own")

    def present(self) -> set[str] | None:
        return None  # Each file holds images of all classes.

    def parts(self, reader: Reader) -> dict[str, ImageSet]:
        with self.explained():
            return {part: self._read(part, reader) for part in ("train", "test")}

    def _read(self, part: str, reader: Reader) -> ArrayImages:
        dataset, train = type(self).dataset, part == "train"
        data = self.fetched(lambda download: dataset(str(self.root), train=train, download=download))
        images = resize(torch.from_numpy(data.data).permute(0, 3, 1, 2).contiguous(), reader.size)  # (N, 3, H, W)
        labels = as_labels([data.classes[label] for label in data.targets], self.kinds)
        return ArrayImages(images, labels, [f"{part}/{i:05d}" for i in range(len(labels))])


class CIFAR100(CIFAR10):
    """A hundred kinds of things in twenty groups, which are the classes' paths; otherwise as ``CIFAR10``."""

    name = "cifar100"
    folder = "cifar-100-python"
    layout = "cifar-100-python/ with train, test and meta"
    archive = "cifar-100-python.tar.gz"
    dataset: Callable[..., Any] = datasets.CIFAR100
