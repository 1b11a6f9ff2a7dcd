"""Labelled image sets, read in batches."""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence

import torch
from torch import Tensor
from torch.utils.data import Dataset

from jtln.errors import UserError


class ImageSet(Dataset[tuple[Tensor, int]], ABC):
    """(image, label) pairs: an image is (C, H, W) uint8, all of one size; a label is a class's index.

    A subclass sets ``labels`` and ``names`` in its constructor and reads pixels in ``__getitem__``. A subclass that can
    read many images at once also overrides ``__getitems__``, which a DataLoader calls once a batch.

    Attributes:
        labels: (N,) int64.
        names: (N,) the images' names in reports, unique within a pair.
        in_memory: whether pixels are in memory or memory-mapped, so that no worker process has to read them ahead.
    """

    labels: Tensor
    names: Sequence[str]
    in_memory: bool = False

    def __len__(self) -> int:
        return len(self.labels)

    @abstractmethod
    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        """Return the image (C, H, W) uint8 and its label."""

    def __getitems__(self, indices: list[int]) -> tuple[Tensor, Tensor]:
        """Return the images (B, C, H, W) uint8 and labels (B,) int64 at ``indices``."""
        images, labels = zip(*(self[index] for index in indices), strict=True)
        return torch.stack(images), torch.tensor(labels)

    def digests(self) -> list[str]:
        """Return a digest of each image's pixels (N,), the key of its cached features."""
        found: list[str] = []
        for start in range(0, len(self), 1024):
            images, _ = self.__getitems__(list(range(start, min(start + 1024, len(self)))))
            for image in images.contiguous().numpy():
                found.append(hashlib.blake2b(image.tobytes(), digest_size=16, salt=_salt(image.shape)).hexdigest())
        return found

    def subset(self, indices: Iterable[int] | Tensor, labels: Tensor | None = None) -> ImageSet:
        """Return the images at ``indices``, in that order; pixels are read on access.

        Args:
            indices: integers in [0, len(self)).
            labels: (len(indices),) integers that replace the set's own labels.
        """
        chosen = as_indices(indices)
        return _Subset(self, chosen, self.labels[chosen] if labels is None else labels)

    def fingerprint(self) -> str:
        """Return a hash (32 hex digits) of sizes, labels and pixels in order, independent of their origin."""
        digest = hashlib.blake2b(digest_size=16)
        for start in range(0, len(self), 1024):
            images, labels = self.__getitems__(list(range(start, min(start + 1024, len(self)))))
            digest.update(repr(tuple(images.shape[1:])).encode())
            digest.update(labels.numpy().astype("<i8").tobytes())
            digest.update(images.contiguous().numpy().tobytes())
        return digest.hexdigest()


def no_images(channels: int, size: int) -> ArrayImages:
    """Return the empty set, of images (channels, size, size)."""
    return ArrayImages(torch.zeros(0, channels, size, size, dtype=torch.uint8), torch.zeros(0), [])


def _salt(shape: Iterable[int]) -> bytes:
    return b"".join(int(side).to_bytes(4, "little") for side in shape)[:16]


class ArrayImages(ImageSet):
    """An image set held in memory.

    Args:
        images: (N, C, H, W) uint8, with 1 or 3 channels.
        labels: (N,) integers.
        names: (N,) the images' names.

    Raises:
        UserError: the numbers of images, labels and names differ, or the pixels are not uint8.
    """

    in_memory = True

    def __init__(self, images: Tensor, labels: Tensor, names: Sequence[str]) -> None:
        if images.ndim != 4 or images.shape[1] not in (1, 3) or images.dtype != torch.uint8:
            raise UserError(
                "expected images as (N, 1 or 3, H, W) uint8, but got "
                f"{tuple(images.shape)} {images.dtype}: stack them and convert them first"
            )
        if not len(images) == len(labels) == len(names):
            raise UserError(
                "expected one label and one name an image, but got "
                f"{len(images)} images, {len(labels)} labels and {len(names)} names"
            )
        self.images = images
        self.labels = labels.to(torch.int64)
        self.names = list(names)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        return self.images[index], int(self.labels[index])

    def __getitems__(self, indices: list[int]) -> tuple[Tensor, Tensor]:
        chosen = torch.as_tensor(indices, dtype=torch.int64)
        return self.images[chosen], self.labels[chosen]

    def subset(self, indices: Iterable[int] | Tensor, labels: Tensor | None = None) -> ArrayImages:
        chosen = as_indices(indices)
        names = [self.names[index] for index in chosen.tolist()]
        return ArrayImages(self.images[chosen], self.labels[chosen] if labels is None else labels, names)


class _Subset(ImageSet):
    """A view of some images of another set, with its own labels."""

    def __init__(self, whole: ImageSet, indices: Tensor, labels: Tensor) -> None:
        check_labels(len(indices), labels)
        self.whole = whole
        self.in_memory = whole.in_memory
        self.indices = indices.tolist()
        self.labels = labels.to(torch.int64)
        self.names = [whole.names[index] for index in self.indices]

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        return self.whole[self.indices[index]][0], int(self.labels[index])

    def __getitems__(self, indices: list[int]) -> tuple[Tensor, Tensor]:
        images, _ = self.whole.__getitems__([self.indices[index] for index in indices])
        return images, self.labels[torch.as_tensor(indices, dtype=torch.int64)]


def as_indices(indices: Iterable[int] | Tensor) -> Tensor:
    """Return the indices (M,) int64 of any iterable of whole numbers."""
    return torch.as_tensor(indices if isinstance(indices, Tensor) else list(indices), dtype=torch.int64)


def check_labels(images: int, labels: Tensor) -> None:
    """Raise a UserError unless there is one label an image."""
    if len(labels) != images:
        raise UserError(f"expected one label an image, but got {images} images and {len(labels)} labels")
