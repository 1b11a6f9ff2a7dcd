"""Cached features of a frozen trunk: computed once for each image and stored on disk."""

from __future__ import annotations

import functools
import hashlib
import os
import time
import warnings
import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from jtln.data.images import ImageSet, as_indices
from jtln.data.passes import Watch, one_at_a_time
from jtln.storage import kept_if_possible, replacing

KEPT_EVERY = 10.0  # seconds
Compute = Callable[[ImageSet], Iterator[Tensor]]  # the features (B, V, D) of a set's images, in order


class FeatureImages(ImageSet):
    """A set whose "images" are features: (D,) of one view, or (V, D) of several.

    Args:
        rows: (M, V, D) float32, of these and possibly other images; may be memory-mapped.
        places: (N,) the rows of this set's images.
        labels: (N,) integers.
        names: (N,) the images' names.
        draws: whether an access returns one view, drawn at random as augmentation does; otherwise all views.
    """

    in_memory = True

    def __init__(
        self, rows: np.ndarray, places: np.ndarray, labels: Tensor, names: Sequence[str], draws: bool = False
    ) -> None:
        self.rows, self.places, self.draws = rows, places, draws
        self.labels, self.names = labels, list(names)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        rows, labels = self.__getitems__([index])
        return rows[0], int(labels[0])

    def __getitems__(self, indices: list[int]) -> tuple[Tensor, Tensor]:
        views = torch.from_numpy(np.asarray(self.rows[self.places[indices]]))  # (B, V, D)
        if self.draws and views.shape[1] > 1:
            views = views[torch.arange(len(views)), torch.randint(views.shape[1], (len(views),))]
        return views[:, 0] if views.ndim == 3 and views.shape[1] == 1 else views, self.labels[indices]

    def subset(self, indices: Iterable[int] | Tensor, labels: Tensor | None = None) -> FeatureImages:
        chosen = as_indices(indices)
        names = [self.names[index] for index in chosen.tolist()]
        given = self.labels[chosen] if labels is None else labels
        return FeatureImages(self.rows, self.places[chosen.numpy()], given, names, self.draws)


class FeatureStore:
    """The features of one network and one preprocessing, for every image that a run has used.

    KEY.f32 holds the rows, and KEY.txt the image and the checksum of each row. KEY.txt is written last and atomically:
    rows that it does not list, from a killed process, are overwritten. One process writes at a time. Rows are compared
    with their checksums when they are read.

    Args:
        cache: the folder that runs share; None: nothing is stored.
        key: a text of all that features depend on besides the image: the network's weights, the size, the views.
        shape: (V, D) of an image's features.
    """

    def __init__(self, cache: Path | None, key: str, shape: tuple[int, int]) -> None:
        self.shape = shape
        name = hashlib.blake2b(f"{key} {shape}".encode(), digest_size=12).hexdigest()
        self.path = None if cache is None else cache / "features" / f"{name}.f32"

    def known(self) -> dict[str, int]:
        """Return the row of each stored image, by its digest; empty if the files are damaged."""
        return {digest: row for row, (digest, _) in enumerate(self._index())}

    def _index(self) -> list[tuple[str, int]]:
        """Return digest and checksum of each stored row; empty if the files are damaged."""
        if self.path is None:
            return []
        try:
            index = self.path.with_suffix(".txt")
            status = index.stat()
            rows = _rows(index, (status.st_ino, status.st_mtime_ns, status.st_size))
            whole = self.path.stat().st_size >= len(rows) * self._bytes
        except (OSError, ValueError):
            return []
        return rows if whole else []

    def features(
        self, images: ImageSet, compute: Compute, draws: bool = False, what: str = "features"
    ) -> FeatureImages:
        """Return the set with features in place of images; missing ones are computed and stored.

        Args:
            images: the set.
            compute: returns features of some of its images.
            draws: as in :class:`FeatureImages`.
            what: the subject of a long pass's message.
        """
        digests = images.digests()
        if self.path is None:
            return self._in_memory(images, digests, compute, draws, what)
        if damaged := self._is_damaged(set(digests)):
            warnings.warn(f"{self.path} is damaged; its features are computed again", stacklevel=2)
        if damaged or set(digests) - set(self.known()):
            with kept_if_possible("features", "every run computes them again"):
                self.path.parent.mkdir(parents=True, exist_ok=True)
                with one_at_a_time(self.path.with_suffix(".lock"), "waiting for another run, which computes features"):
                    if damaged and self._is_damaged(set(digests)):  # Another run may have repaired it meanwhile.
                        self._drop()
                    self._append(images, digests, compute, what)
        known = self.known()
        if set(digests) - set(known) or (damaged and self._is_damaged(set(digests))):
            return self._in_memory(images, digests, compute, draws, what)
        if not digests:
            return FeatureImages(np.zeros((0, *self.shape), np.float32), np.zeros(0, int), images.labels, images.names)
        rows = np.memmap(self.path, dtype=np.float32, mode="r", shape=(len(known), *self.shape))
        places = np.array([known[digest] for digest in digests])
        return FeatureImages(rows, places, images.labels, images.names, draws)

    @property
    def _bytes(self) -> int:
        return 4 * self.shape[0] * self.shape[1]

    def _is_damaged(self, digests: set[str]) -> bool:
        """Return True if the row of one of these images does not match its checksum."""
        index = self._index()
        if not index or self.path is None:
            return False
        rows = np.memmap(self.path, dtype=np.float32, mode="r", shape=(len(index), *self.shape))
        return any(zlib.crc32(row) != crc for row, (digest, crc) in zip(rows, index, strict=True) if digest in digests)

    def _drop(self) -> None:
        """Delete both files; a run that has them open can still read them."""
        assert self.path is not None
        for path in (self.path.with_suffix(".txt"), self.path):
            path.unlink(missing_ok=True)

    def _append(self, images: ImageSet, digests: list[str], compute: Compute, what: str) -> None:
        assert self.path is not None
        known, sums = self._index(), list[int]()
        there, missing = {digest for digest, _ in known}, dict[str, int]()
        for index, digest in enumerate(digests):
            if digest not in there:
                missing.setdefault(digest, index)
        with open(self.path, "r+b" if self.path.exists() else "w+b") as file:
            file.truncate(len(known) * self._bytes)
            file.seek(0, os.SEEK_END)

            def keep() -> None:
                file.flush()
                os.fsync(file.fileno())
                done = (file.tell() - len(known) * self._bytes) // self._bytes
                self._write_index([*known, *zip(list(missing)[:done], sums, strict=False)])

            kept_at = time.monotonic()
            try:
                for rows in _watched(compute(images.subset(list(missing.values()))), len(missing), what):
                    values = rows.contiguous().numpy()
                    sums += [zlib.crc32(row) for row in values]
                    file.write(values.tobytes())
                    if time.monotonic() - kept_at > KEPT_EVERY:  # A killed process cannot do it at the end.
                        keep()
                        kept_at = time.monotonic()
            finally:  # Complete rows are kept even if Ctrl-C or a broken image ends the pass.
                keep()

    def _write_index(self, rows: list[tuple[str, int]]) -> None:
        assert self.path is not None
        text = "\n".join(f"{digest} {crc:08x}" for digest, crc in rows)
        with replacing(self.path.with_suffix(".txt")) as file:
            file.write(f"{_seal(text)}\n{text}".encode("ascii"))

    def _in_memory(
        self, images: ImageSet, digests: list[str], compute: Compute, draws: bool, what: str
    ) -> FeatureImages:
        found = [rows.numpy() for rows in _watched(compute(images), len(images), what)] if len(images) else []
        rows = np.concatenate(found) if found else np.zeros((0, *self.shape), np.float32)
        return FeatureImages(rows, np.arange(len(rows)), images.labels, images.names, draws)


@functools.lru_cache(maxsize=4)  # Runs of a study in one process read the same indices.
def _rows(index: Path, state: tuple[int, int, int]) -> list[tuple[str, int]]:
    """Return digest and checksum of each row that an index lists; raise a ValueError if the index is damaged.

    Args:
        index: the file.
        state: changes when the file is replaced; part of the cache's key only.
    """
    sealed, _, text = index.read_text(encoding="ascii").partition("\n")
    if sealed != _seal(text):
        raise ValueError(f"{index} is damaged")
    return [(digest, int(crc, 16)) for digest, _, crc in (line.partition(" ") for line in text.splitlines())]


def _watched(batches: Iterator[Tensor], total: int, what: str) -> Iterator[Tensor]:
    with Watch(what, total) as watch:
        for rows in batches:
            yield rows
            watch.step(len(rows))


def _seal(text: str) -> str:
    return hashlib.blake2b(text.encode("ascii"), digest_size=16).hexdigest()
