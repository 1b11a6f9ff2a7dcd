"""Image files decoded once: which of them are broken, and the pixels of the others in one memory-mapped file."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import sys
import time
import warnings
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import numpy as np
import torch
from filelock import FileLock, Timeout
from torch import Tensor
from tqdm import tqdm

from jtln.data.files import BadImage, FileImages, Reader
from jtln.data.images import ImageSet, as_indices
from jtln.errors import UserError, unknown
from jtln.storage import replacing

SHARE = 0.2  # of the free disk: what "auto" keeps takes at most this
_FORMAT = 1  # of the cached files; raised when a reader's tensors or the files' layout change
_PATIENCE = 2.0  # seconds without a word


class Skipped(NamedTuple):
    """An image that is left out, and why."""

    image: str  # its name in the set
    reason: str


class CachedImages(ImageSet):
    """Images that lie decoded in one file, which every process maps into its memory.

    Args:
        pixels: the file: (M, C, H, W) uint8 without a header.
        rows: (N,) which of its images are this set's.
        files: (N,) the files that they were read from.
    """

    in_memory = True

    def __init__(self, pixels: Path, rows: np.ndarray, files: FileImages) -> None:
        self.pixels = pixels
        self.rows = rows
        self.files = files
        self.labels = files.labels
        self.names = files.names
        self._open: np.ndarray | None = None

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        images, labels = self.__getitems__([index])
        return images[0], int(labels[0])

    def __getitems__(self, indices: list[int]) -> tuple[Tensor, Tensor]:
        # A copy, which a worker can hand over and a transform may write to.
        return torch.from_numpy(self._mapped()[self.rows[indices]]), self.labels[indices]

    def subset(self, indices: Iterable[int] | Tensor, labels: Tensor | None = None) -> CachedImages:
        chosen = as_indices(indices)
        return CachedImages(self.pixels, self.rows[chosen.numpy()], self.files.subset(chosen, labels))

    def fingerprint(self) -> str:
        """That of the files: whether the pixels are kept changes nothing."""
        return self.files.fingerprint()

    def hashes(self) -> np.ndarray:
        """(N,) uint64: images of the same pixels have the same. Found out once, and kept beside the pixels."""
        kept, images = self.pixels.with_suffix(".hashes"), self._mapped()
        try:
            known = np.fromfile(kept, dtype="<u8")
        except OSError:
            known = np.empty(0, dtype="<u8")
        if len(known) != len(images):
            digests = b"".join(hashlib.blake2b(image, digest_size=8).digest() for image in images)
            known = np.frombuffer(digests, dtype="<u8")
            with suppress(OSError), replacing(kept) as file:  # a cache that cannot be written to
                file.write(digests)
        return known[self.rows]

    def _mapped(self) -> np.ndarray:
        """All images of the file (M, C, H, W)."""
        if self._open is None:
            reader = self.files.reader
            flat = np.asarray(np.memmap(self.pixels, dtype=np.uint8, mode="r"))
            self._open = flat.reshape(-1, reader.channels, reader.size, reader.size)
        return self._open

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_open": None}  # a worker opens the file itself


def decoded(
    images: ImageSet, cache: Path | None, keep: bool | str, on_bad_image: str
) -> tuple[ImageSet, tuple[Skipped, ...]]:
    """``images`` ready for training: broken files found, and the others decoded where they are to be kept.

    What is found out is kept in ``cache/decoded`` under a hash of the files' names, sizes and times of change and of
    the reader, and shared by all processes and runs. A set that is not of files comes back as it is.

    Args:
        images: any image set.
        cache: a folder; None keeps nothing.
        keep: whether decoded pixels are kept: True, False, or "auto": where they take less than a fifth of the
            disk's free space. A disk that is full after all is no error: the files are read instead.
        on_bad_image: "error" or "skip", which leaves broken files out. Where nothing is kept, "error" means that one
            is found when it is read, and "skip" that all files are read once beforehand.

    Returns:
        the set, and the images that are not in it.

    Raises:
        UserError: an argument is none of the above; a file is broken; none is not.
    """
    if on_bad_image not in ("error", "skip"):
        raise unknown("dataset.on_bad_image", on_bad_image, ("error", "skip"))
    if not isinstance(keep, bool) and keep != "auto":
        raise unknown("dataset.decoded", keep, ("auto", "true", "false"))
    if not isinstance(images, FileImages) or not len(images):
        return images, ()
    store = None if cache is None else _Store(cache / "decoded", images)
    verdict = None
    if store is not None and (keep is True or (keep == "auto" and store.fits())):
        try:
            verdict = store.verdict(with_pixels=True)
        except OSError as error:
            _warn(f"decoded images cannot be kept in {store.folder}, and files are read instead", error)
            store = None
    kept = verdict is not None
    if verdict is None and on_bad_image == "skip":
        try:
            verdict = (store or _Store(None, images)).verdict(with_pixels=False)
        except OSError as error:
            _warn("which images are broken cannot be written down and is found out anew", error)
            verdict = _Store(None, images).verdict(with_pixels=False)
    if verdict is None:
        return images, ()
    return _sound(images, verdict, on_bad_image, store.pixels if kept and store is not None else None)


def cores() -> int:
    """Processor cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


@dataclass(frozen=True)
class _Verdict:
    """Which files are broken."""

    rows: np.ndarray  # (N,) the place of each file's pixels among those of the sound files; -1 where it is broken
    reasons: dict[int, str]  # of the broken files


def _sound(
    images: FileImages, verdict: _Verdict, on_bad_image: str, pixels: Path | None
) -> tuple[ImageSet, tuple[Skipped, ...]]:
    """The images that can be read, and the others; a UserError where there are others and they are not skipped."""
    broken = [f"{images.paths[index]}: {reason}" for index, reason in verdict.reasons.items()]
    if broken and (on_bad_image == "error" or len(broken) == len(images)):
        most = 10
        more = f"\n  ... and {len(broken) - most} more" if len(broken) > most else ""
        remedy = "Mend them or take them away"
        if on_bad_image == "error":
            remedy += ", or set dataset.on_bad_image=skip"
        listed = "".join(f"\n  {line}" for line in broken[:most])
        raise UserError(f"{len(broken)} of {len(images)} images cannot be read:{listed}{more}\n{remedy}")
    left = np.flatnonzero(verdict.rows >= 0)
    files = images if not broken else images.subset(torch.from_numpy(left))
    skipped = tuple(Skipped(images.names[index], reason) for index, reason in verdict.reasons.items())
    return (files if pixels is None else CachedImages(pixels, verdict.rows[left], files)), skipped


class _Store:
    """What is known of a set of files: a verdict in KEY.json, and pixels in KEY.u8.

    The order of the files does not matter: they are stored by name.
    """

    def __init__(self, folder: Path | None, images: FileImages) -> None:
        self.folder = folder
        self.images = images
        states = images.states()
        self.order = sorted(range(len(states)), key=states.__getitem__)
        digest = hashlib.blake2b(f"{_FORMAT} {images.reader!r}\n".encode(), digest_size=12)
        for index in self.order:
            digest.update(states[index].encode("utf-8", "surrogateescape"))
        self.key = digest.hexdigest()

    @property
    def pixels(self) -> Path:
        return self._path("u8")

    def fits(self) -> bool:
        """Whether the pixels take less than SHARE of the free disk, or are there already."""
        if self._read(with_pixels=True) is not None:
            return True
        assert self.folder is not None
        above = next(folder for folder in (self.folder, *self.folder.parents) if folder.exists())
        needed, free = len(self.images) * _bytes(self.images.reader), shutil.disk_usage(above).free
        if needed <= SHARE * free:
            return True
        warnings.warn(
            f"{needed / 1e9:.1f} GB of decoded images are not kept, because {self.folder} has only {free / 1e9:.1f} GB "
            "free: dataset.decoded=true keeps them all the same, cache=DIR keeps them elsewhere",
            stacklevel=4,
        )
        return False

    def verdict(self, with_pixels: bool) -> _Verdict:
        """What is known, or is found out now; an OSError where it cannot be written down."""
        if self.folder is None:
            return self._placed(self._look(None))
        known = self._read(with_pixels)
        if known is not None:
            return known
        self.folder.mkdir(parents=True, exist_ok=True)
        lock = FileLock(self._path("lock"))
        try:
            held = lock.acquire(timeout=_PATIENCE)
        except Timeout:
            print("waiting for another run, which decodes the same images", file=sys.stderr, flush=True)
            held = lock.acquire()
        with held:
            return self._read(with_pixels) or self._make(with_pixels)  # another run may have made it meanwhile

    def _make(self, with_pixels: bool) -> _Verdict:
        if with_pixels:
            part = self._path("u8.part")
            try:
                with open(part, "wb") as file:
                    reasons = self._look(file)
                os.replace(part, self.pixels)
            except BaseException:
                part.unlink(missing_ok=True)
                raise
        else:
            reasons = self._look(None)
        part = self._path("json.part")
        facts = {"format": _FORMAT, "images": len(self.order), "broken": sorted(reasons.items())}
        part.write_text(json.dumps(facts), encoding="utf-8")
        os.replace(part, self._path("json"))
        return self._placed(reasons)

    def _read(self, with_pixels: bool) -> _Verdict | None:
        """What is known; None where nothing is, or a file of the cache is broken."""
        if self.folder is None:
            return None
        try:
            facts = json.loads(self._path("json").read_text(encoding="utf-8"))
            reasons = {int(place): str(reason) for place, reason in facts["broken"]}
            size = (len(self.order) - len(reasons)) * _bytes(self.images.reader)
            if with_pixels and size and self.pixels.stat().st_size != size:
                return None
        except (OSError, ValueError, KeyError, TypeError):
            return None
        return self._placed(reasons)

    def _placed(self, reasons: dict[int, str]) -> _Verdict:
        """From places in the stored order to the set's own."""
        sound = np.array([place not in reasons for place in range(len(self.order))])
        rows = np.empty(len(self.order), dtype=np.int64)
        rows[self.order] = np.where(sound, sound.cumsum() - 1, -1)
        return _Verdict(rows, {self.order[place]: reason for place, reason in sorted(reasons.items())})

    def _look(self, file: BinaryIO | None) -> dict[int, str]:
        """Read every image, write the pixels down where asked to, and return what is wrong with the broken ones."""
        reasons = {}
        paths = [self.images.paths[index] for index in self.order]
        watch = _Watch("looking for broken images" if file is None else "decoding images", len(paths))
        for place, image in enumerate(_read_all(self.images.reader, paths)):
            if isinstance(image, BadImage):
                reasons[place] = image.reason
            elif file is not None:  # not by way of a memory map, which a full disk kills
                file.write(image.contiguous().numpy().data)
            watch.step()
        watch.bar.close()
        return reasons

    def _path(self, suffix: str) -> Path:
        assert self.folder is not None
        return self.folder / f"{self.key}.{suffix}"


class _Watch:
    """Says how far a long reading is: a bar, or one line where a bar would fill a file."""

    def __init__(self, what: str, total: int) -> None:
        self.what, self.total, self.done = what, total, 0
        self.silent_until = time.monotonic() + _PATIENCE
        self.bar = tqdm(total=total, desc=what, delay=_PATIENCE, leave=False, disable=not sys.stderr.isatty())

    def step(self) -> None:
        self.done += 1
        self.bar.update()
        if self.bar.disable and time.monotonic() > self.silent_until:
            seconds = _PATIENCE * self.total / self.done
            print(f"{self.what}: {self.total}, in about {seconds:.0f} s", file=sys.stderr, flush=True)
            self.silent_until = float("inf")


def _read_all(reader: Reader, paths: Sequence[str]) -> Iterator[Tensor | BadImage]:
    """The images in order, read by as many threads as there are cores: Pillow decodes without Python's lock."""

    def read(path: str) -> Tensor | BadImage:
        try:
            return reader(path)
        except BadImage as error:
            return error

    threads = cores()
    waiting: deque[Future[Tensor | BadImage]] = deque()
    with ThreadPoolExecutor(threads) as pool:
        for path in paths:
            waiting.append(pool.submit(read, path))
            if len(waiting) > 8 * threads:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()


def _bytes(reader: Reader) -> int:
    return reader.channels * reader.size * reader.size


def _warn(what: str, error: OSError) -> None:
    warnings.warn(f"{what}: {error.strerror or error}", stacklevel=3)
