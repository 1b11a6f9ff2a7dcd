"""The image cache: the broken files of a set, and the decoded pixels of the others in one memory-mapped file."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import warnings
import zlib
from collections.abc import Iterable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import numpy as np
import torch
from torch import Tensor

from jtln.data.files import BadImage, FileImages, Reader
from jtln.data.images import ImageSet, as_indices
from jtln.data.passes import PATIENCE, Watch, cores, in_order, one_at_a_time
from jtln.errors import UserError, unknown
from jtln.storage import replacing, write_text

SHARE = 0.2  # largest share of the free disk that keep="auto" uses
_FORMAT = 2  # version of the cached files; increase it when a reader's tensors or the files' layout change
_PATIENCE = PATIENCE
# For each image a fast checksum of its pixels, which detects damage, and a hash, which identifies duplicates.
_SUMS = np.dtype([("crc", "<u4"), ("hash", "<u8")])


class Skipped(NamedTuple):
    """An image that is left out, and the reason."""

    image: str  # name in the set
    reason: str


class CachedImages(ImageSet):
    """Decoded images in one file of the image cache, which every process maps into its memory.

    Args:
        pixels: of these and possibly other images.
        rows: (N,) the rows of this set's images.
        files: (N,) the original files.
    """

    in_memory = True

    def __init__(self, pixels: _Pixels, rows: np.ndarray, files: FileImages) -> None:
        self.pixels = pixels
        self.rows = rows
        self.files = files
        self.labels = files.labels
        self.names = files.names

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        images, labels = self.__getitems__([index])
        return images[0], int(labels[0])

    def __getitems__(self, indices: list[int]) -> tuple[Tensor, Tensor]:
        # A copy, because a worker sends it to another process and a transform may write to it.
        return torch.from_numpy(self.pixels.read(self.rows[indices])), self.labels[indices]

    def subset(self, indices: Iterable[int] | Tensor, labels: Tensor | None = None) -> CachedImages:
        chosen = as_indices(indices)
        return CachedImages(self.pixels, self.rows[chosen.numpy()], self.files.subset(chosen, labels))

    def fingerprint(self) -> str:
        """Return the fingerprint of the files, which does not depend on the cache."""
        return self.files.fingerprint()

    def digests(self) -> list[str]:
        """Return the digests of the files, which do not depend on the cache."""
        return self.files.digests()

    def hashes(self) -> np.ndarray:
        """Return the hashes (N,) uint64 of the pixels, which are stored with them."""
        return self.pixels.hashes(self.rows)


def with_image_cache(
    images: ImageSet, cache: Path | None, keep: bool | str, on_bad_image: str
) -> tuple[ImageSet, tuple[Skipped, ...]]:
    """Return ``images`` through the image cache, without broken files.

    The result is stored in ``cache/decoded`` under a hash of the files' names and contents and of the reader. All
    processes and runs share it. A set that is not made of files is returned unchanged.

    Args:
        images: any image set.
        cache: a folder; None: nothing is stored.
        keep: whether decoded pixels are stored: True, False, or "auto", which stores them if they need less than a
            fifth of the disk's free space. If the disk is full, a warning is issued and the files are read instead.
        on_bad_image: "error" or "skip", which leaves broken files out. If no pixels are stored, "error" raises when a
            broken file is read, and "skip" reads all files once beforehand.

    Returns:
        The set, and the images that are left out.

    Raises:
        UserError: an argument is none of the above, a file is broken, or all files are.
    """
    if on_bad_image not in ("error", "skip"):
        raise unknown("dataset.on_bad_image", on_bad_image, ("error", "skip"))
    if not isinstance(keep, bool) and keep != "auto":
        raise unknown("dataset.decoded", keep, ("auto", "true", "false"))
    if not isinstance(images, FileImages) or not len(images):
        return images, ()
    store = None if cache is None else _Store(cache, images)
    verdict = None
    if store is not None and (keep is True or (keep == "auto" and store.fits())):
        try:
            verdict = store.verdict(with_pixels=True)
        except OSError as error:
            _warn(f"cannot store decoded images in {store.folder}; the files are read instead", error)
            store = None
    kept = verdict is not None
    if verdict is None and on_bad_image == "skip":
        try:
            verdict = (store or _Store(None, images)).verdict(with_pixels=False)
        except OSError as error:
            _warn("cannot store which images are broken; each run checks the files", error)
            verdict = _Store(None, images).verdict(with_pixels=False)
    if verdict is None:
        return images, ()
    return _sound(images, verdict, on_bad_image, _Pixels(store) if kept and store is not None else None)


@dataclass(frozen=True)
class _Verdict:
    """The result of checking a set's files."""

    rows: np.ndarray  # (N,) the row of each file's pixels among those of the sound files; -1 for a broken file
    reasons: dict[int, str]  # of the broken files


def _sound(
    images: FileImages, verdict: _Verdict, on_bad_image: str, pixels: _Pixels | None
) -> tuple[ImageSet, tuple[Skipped, ...]]:
    """Return the readable images, and the others; raise a UserError if there are others that must not be skipped."""
    broken = [f"{images.paths[index]}: {reason}" for index, reason in verdict.reasons.items()]
    if broken and (on_bad_image == "error" or len(broken) == len(images)):
        most = 10
        more = f"\n  ... and {len(broken) - most} more" if len(broken) > most else ""
        remedy = "Repair or remove them"
        if on_bad_image == "error":
            remedy += ", or set dataset.on_bad_image=skip"
        listed = "".join(f"\n  {line}" for line in broken[:most])
        raise UserError(f"{len(broken)} of {len(images)} images cannot be read:{listed}{more}\n{remedy}")
    left = np.flatnonzero(verdict.rows >= 0)
    files = images if not broken else images.subset(torch.from_numpy(left))
    skipped = tuple(Skipped(images.names[index], reason) for index, reason in verdict.reasons.items())
    return (files if pixels is None else CachedImages(pixels, verdict.rows[left], files)), skipped


class _Store:
    """The cache entry of a set of files: a verdict in KEY.json, pixels in KEY.u8 and sums of each image in KEY.sums.

    KEY is a hash of the files' names and contents and of the reader. It does not depend on the order of the files,
    which are stored by name.
    """

    def __init__(self, cache: Path | None, images: FileImages) -> None:
        self.cache = cache
        self.folder = None if cache is None else cache / "decoded"
        self.images = images
        self.order, self.key = self._key(images)
        self.sound: list[int] = []  # (M,) indices in the set of the images whose pixels are stored
        self.damaged = False

    @property
    def pixels(self) -> Path:
        return self._path("u8")

    def fits(self) -> bool:
        """Return whether the pixels need less than SHARE of the free disk, or are stored already."""
        if self._read(with_pixels=True) is not None:
            return True
        assert self.folder is not None
        above = next(folder for folder in (self.folder, *self.folder.parents) if folder.exists())
        needed, free = len(self.images) * _bytes(self.images.reader), shutil.disk_usage(above).free
        if needed <= SHARE * free:
            return True
        warnings.warn(
            f"{needed / 1e9:.1f} GB of decoded images are not cached, because {self.folder} has only "
            f"{free / 1e9:.1f} GB free: dataset.decoded=true caches them anyway, cache=DIR caches them elsewhere",
            stacklevel=4,
        )
        return False

    def verdict(self, with_pixels: bool) -> _Verdict:
        """Return the stored verdict, or check the files and store it; raise an OSError if it cannot be stored."""
        if self.folder is None:
            return self._placed(self._look(None)[0])
        known = self._read(with_pixels)
        if known is not None:
            return known
        self.folder.mkdir(parents=True, exist_ok=True)
        with self._lock():
            return self._read(with_pixels) or self._make(with_pixels)  # Another run may have stored it meanwhile.

    def opened(self) -> _Opened:
        """Map the pixels into memory; raise an OSError or ValueError if they are damaged."""
        reader, sums = self.images.reader, self._sums()
        images = np.asarray(np.memmap(self.pixels, dtype=np.uint8, mode="r"))
        images = images.reshape(len(self.sound), reader.channels, reader.size, reader.size)
        if len(sums) != len(images):
            raise ValueError("damaged")
        return _Opened(images, sums, np.zeros(len(images), dtype=bool))

    def renew(self, state: tuple[int, int] | None) -> None:
        """Decode the images anew, unless another process has done so since the pixels had this ``state``."""
        before = self.sound
        with self._lock():
            if self.state() == state:
                self._make(with_pixels=True)
        if self.sound != before:
            changed = self.images.paths[min(set(before) ^ set(self.sound))]
            raise UserError(f"expected images that do not change during a run, but {changed} did: start again")

    def state(self) -> tuple[int, int] | None:
        """Return the inode and modification time of the pixels' file, which change when it is replaced."""
        try:
            status = self.pixels.stat()
        except OSError:
            return None
        return status.st_ino, status.st_mtime_ns

    def read_files(self, rows: np.ndarray) -> np.ndarray:
        """Return images (len(rows), C, H, W), read from the original files."""
        images = [self.images[self.sound[row]][0].numpy() for row in rows.tolist()]
        return np.ascontiguousarray(np.stack(images))

    def _key(self, images: FileImages) -> tuple[list[int], str]:
        """Return the order in which the files are stored, and the entry's key."""
        found = images.contents(self.cache)
        lines = [f"{name}\0{content.digest}\n" for name, content in zip(images.names, found, strict=True)]
        order = sorted(range(len(lines)), key=lines.__getitem__)
        digest = hashlib.blake2b(f"{_FORMAT} {self.images.reader!r}\n".encode(), digest_size=12)
        for index in order:
            digest.update(lines[index].encode("utf-8", "surrogateescape"))
        return order, digest.hexdigest()

    def _lock(self) -> Any:
        waiting = "waiting for another run, which is decoding the same images"
        return one_at_a_time(self._path("lock"), waiting, _PATIENCE)

    def _make(self, with_pixels: bool) -> _Verdict:
        if self.damaged:
            self.damaged = False
            warnings.warn(f"{self.pixels} is damaged; its images are decoded again", stacklevel=5)
        if with_pixels:
            part = self._path("u8.part")
            try:
                with open(part, "wb") as file:
                    reasons, sums = self._look(file)
                    file.flush()
                    os.fsync(file.fileno())
                self._check_unchanged()
                os.replace(part, self.pixels)
            except BaseException:
                part.unlink(missing_ok=True)
                raise
            with replacing(self._path("sums")) as file:
                file.write(sums.tobytes())
        else:
            reasons, sums = self._look(None)
            self._check_unchanged()
        facts = {
            "images": len(self.order),
            "broken": sorted(reasons.items()),
            "sums": _digest(sums.tobytes()) if with_pixels else None,
        }
        write_text(self._path("json"), json.dumps(facts | {"seal": _digest(json.dumps(facts).encode())}))
        return self._placed(reasons)

    def _check_unchanged(self) -> None:
        """Raise a UserError if files have changed since the key was computed."""
        if self._key(self.images.looked_at_again())[1] != self.key:
            raise UserError(
                f"expected images that do not change while they are read, but some in {self.images.root} changed: "
                "start again when no program writes to them"
            )

    def _read(self, with_pixels: bool) -> _Verdict | None:
        """Return the stored verdict; None if there is none, or if a file of the cache is damaged."""
        if self.folder is None:
            return None
        try:
            facts = self._facts()
            reasons = {int(place): str(reason) for place, reason in facts["broken"]}
            if with_pixels:
                if facts["sums"] is None:
                    return None
                sound = len(self.order) - len(reasons)
                if len(self._sums()) != sound or self.pixels.stat().st_size != sound * _bytes(self.images.reader):
                    raise ValueError("not of the right size")
        except FileNotFoundError:
            return None
        except (OSError, ValueError, KeyError, TypeError):
            self.damaged = True
            return None
        return self._placed(reasons)

    def _facts(self) -> dict[str, Any]:
        """Return the content of KEY.json; raise a ValueError if it is damaged."""
        facts: dict[str, Any] = json.loads(self._path("json").read_text(encoding="utf-8"))
        seal = facts.pop("seal")
        if seal != _digest(json.dumps(facts).encode()):
            raise ValueError("damaged")
        return facts

    def _sums(self) -> np.ndarray:
        """Return the sums (M,) of the images; raise a ValueError if they are damaged."""
        kept = self._path("sums").read_bytes()
        if _digest(kept) != self._facts()["sums"]:
            raise ValueError("damaged")
        return np.frombuffer(kept, dtype=_SUMS)

    def _placed(self, reasons: dict[int, str]) -> _Verdict:
        """Return the verdict with indices of the set in place of those of the stored order."""
        self.sound = [index for place, index in enumerate(self.order) if place not in reasons]
        rows = np.full(len(self.order), -1)
        rows[self.sound] = np.arange(len(self.sound))
        return _Verdict(rows, {self.order[place]: reason for place, reason in sorted(reasons.items())})

    def _look(self, file: BinaryIO | None) -> tuple[dict[int, str], np.ndarray]:
        """Read every image, and write the pixels to ``file`` if there is one.

        Returns:
            The reasons of the broken images, and the sums (M,) of those that were written.
        """
        reasons, sums = {}, []
        paths = [self.images.paths[index] for index in self.order]
        read = partial(_decode, self.images.reader, file is not None)
        with Watch("looking for broken images" if file is None else "decoding images", len(paths), _PATIENCE) as watch:
            # One thread for each core, because Pillow releases Python's lock while it decodes.
            for place, image in enumerate(in_order(read, paths, cores())):
                if isinstance(image, BadImage):
                    reasons[place] = image.reason
                elif file is not None and image is not None:  # On a full disk a memory map would kill the process.
                    file.write(image[0].data)
                    sums.append(image[1])
                watch.step()
        return reasons, np.array(sums, dtype=_SUMS)

    def _path(self, suffix: str) -> Path:
        assert self.folder is not None
        return self.folder / f"{self.key}.{suffix}"


@dataclass
class _Opened:
    """Decoded images (M, C, H, W) of a mapped file, their sums (M,), and whether this process has checked them (M,)."""

    images: np.ndarray
    sums: np.ndarray
    checked: np.ndarray

    def read(self, rows: np.ndarray) -> np.ndarray | None:
        """Return a copy (len(rows), C, H, W) of some images; None if one is damaged."""
        copy = self.images[rows]
        for place in np.flatnonzero(~self.checked[rows]).tolist():
            if zlib.crc32(copy[place]) != self.sums["crc"][rows[place]]:
                return None
        self.checked[rows] = True
        return copy


class _Pixels:
    """Decoded images in one file; a process checks each image when it first reads it.

    If one is damaged, all are decoded again; if that fails, they are read from the original files.
    """

    def __init__(self, store: _Store) -> None:
        self.store = store
        self._opened: _Opened | None = None
        self._state: tuple[int, int] | None = None
        self._given_up = False

    def read(self, rows: np.ndarray) -> np.ndarray:
        """Return a copy (len(rows), C, H, W) of some images."""
        for renewed in (False, True):
            opened = self._open()
            if opened is not None and (images := opened.read(rows)) is not None:
                return images
            if not renewed:
                self._renew()
        self._given_up = True
        return self.store.read_files(rows)

    def hashes(self, rows: np.ndarray) -> np.ndarray:
        """Return hashes (len(rows),) uint64 of some images."""
        opened = self._open()
        if opened is None:
            self._renew()
            opened = self._open()
        if opened is None:
            return np.array([_sums(image)[1] for image in self.store.read_files(rows)], dtype=np.uint64)
        return opened.sums["hash"][rows]

    def _open(self) -> _Opened | None:
        if self._opened is None and not self._given_up:
            self._state = self.store.state()
            try:
                self._opened = self.store.opened()
            except (OSError, ValueError, KeyError, TypeError):
                return None
        return self._opened

    def _renew(self) -> None:
        if self._given_up:
            return
        self._opened = None
        self.store.damaged = True
        try:
            self.store.renew(self._state)
        except OSError as error:
            _warn(f"{self.store.pixels} is damaged and cannot be written; the files are read instead", error)
            self._given_up = True

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_opened": None}  # A worker process opens the file itself.


def _decode(reader: Reader, with_sums: bool, path: str) -> tuple[np.ndarray, tuple[int, int]] | BadImage | None:
    """Return an image (C, H, W) and its sums; None for a sound image if the sums are not needed."""
    try:
        image = reader(path).contiguous().numpy()
    except BadImage as error:
        return error
    return (image, _sums(image)) if with_sums else None


def _sums(image: np.ndarray) -> tuple[int, int]:
    return zlib.crc32(image.data), int.from_bytes(hashlib.blake2b(image.data, digest_size=8).digest(), "little")


def _digest(content: bytes) -> str:
    return hashlib.blake2b(content, digest_size=16).hexdigest()


def _bytes(reader: Reader) -> int:
    return reader.channels * reader.size * reader.size


def _warn(what: str, error: OSError) -> None:
    warnings.warn(f"{what}: {error.strerror or error}", stacklevel=3)
