"""Image files of any format that Pillow reads, as labelled images of one size."""

from __future__ import annotations

import hashlib
import math
import os
import warnings
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageOps, UnidentifiedImageError
from torch import Tensor

from jtln.data.content import Content, contents
from jtln.data.grey_levels import eight_bits, is_deep
from jtln.data.images import ImageSet, as_indices, check_labels
from jtln.errors import UserError, unknown

FITS = ("crop", "squash", "pad")

# Pillow warns of damaged metadata and large photographs, which are readable; a decompression bomb is an error below.
warnings.filterwarnings("ignore", module=r"PIL\..*")


class BadImage(UserError):
    """An image file that cannot be read.

    Attributes:
        path: the file.
        reason: what is wrong with it.
    """

    def __init__(self, path: str | Path, reason: str) -> None:
        super().__init__(
            f"cannot read the image {path}: {reason}. Repair or remove it, or set dataset.on_bad_image=skip"
        )
        self.path = str(path)
        self.reason = reason

    def __reduce__(self) -> tuple[Any, ...]:
        return BadImage, (self.path, self.reason)  # By default an exception is pickled by its message alone.


@dataclass(frozen=True)
class Reader:
    """A function from an image file to a (channels, size, size) uint8 tensor.

    Any mode becomes grey or RGB: transparent pixels become white, 16 bits a channel become 8, and the first frame of an
    animation is used. The EXIF orientation is applied, and resizing is bilinear and antialiased, as in torchvision.

    Args:
        size: the side, in pixels, > 0.
        fit: "crop" resizes the shorter side and takes the central square; "squash" resizes both sides; "pad" resizes
            the longer side and fills the rest with white.
        channels: 1 (grey) or 3 (RGB).
        white: the white level, > 0, of all grey images of more than 8 bits; lighter levels become white, and 0 is
            black. None uses the level that a file declares: 65535 for 16 bits, the range in a TIFF file's tags, 1 for
            floats; a file without a declared level is a BadImage. :func:`jtln.data.grey_levels.common_white` finds the
            level of a set.

    Raises:
        UserError: a setting is out of range.
    """

    size: int
    fit: str = "crop"
    channels: int = 3
    white: float | None = None

    def __post_init__(self) -> None:
        if self.size < 1:
            raise UserError(
                f"expected images of 1 pixel a side or more, but got a size of {self.size}: set a larger one"
            )
        if self.fit not in FITS:
            raise unknown("fit", self.fit, FITS)
        if self.channels not in (1, 3):
            raise UserError(f"expected 1 (grey) or 3 (RGB) channels, but got {self.channels}: set one of the two")
        if self.white is not None and not 0 < self.white < math.inf:
            raise UserError(f"expected a grey level above 0 for white, but got {self.white}: set white=4095")

    def __call__(self, path: str | Path) -> Tensor:
        """Return the image (channels, size, size) uint8; raise a BadImage if the file cannot be read."""
        try:
            with Image.open(path) as image:
                if image.format in ("JPEG", "MPO"):  # Decoding at 1/2, 1/4 or 1/8 of the size is faster.
                    image.draft("L" if self.channels == 1 else None, (self.size, self.size))
                image.load()
                _turn(image)
                square = self._square(self._plain(image))
        except Exception as error:  # Pillow's parsers raise errors of many types.
            raise BadImage(path, _reason(path, error)) from None
        pixels = torch.from_numpy(np.array(square))  # (size, size) or (size, size, 3)
        return pixels[None] if self.channels == 1 else pixels.permute(2, 0, 1)

    def _plain(self, image: Image.Image) -> Image.Image:
        """Return the image in mode L, RGB or RGBA, with 8 bits a channel."""
        if is_deep(image):
            return eight_bits(image, self.white)
        if image.has_transparency_data:
            return image.convert("RGBA")
        if image.mode == "LAB":
            return _from_lab(image)
        if image.mode in ("L", "RGB"):
            return image
        return image.convert("L" if image.mode == "1" else "RGB")

    def _square(self, image: Image.Image) -> Image.Image:
        """Resize an L, RGB or RGBA image to the size, in L or RGB."""
        width, height = image.size
        side = (self.size, self.size)
        box = (0.0, 0.0, float(width), float(height))
        if self.fit == "crop":
            short = min(width, height)
            left, top = (width - short) / 2, (height - short) / 2
            box = (left, top, left + short, top + short)
        elif self.fit == "pad":
            scale = self.size / max(width, height)
            side = (max(1, round(width * scale)), max(1, round(height * scale)))
        if image.size != side:
            image = image.resize(side, Image.Resampling.BILINEAR, box, reducing_gap=3.0)
        if image.mode == "RGBA":  # Pillow weighs colours by alpha when it resizes, so alpha is removed after that.
            image = Image.alpha_composite(Image.new("RGBA", side, "white"), image)
        image = image.convert("L" if self.channels == 1 else "RGB")
        if side != (self.size, self.size):
            canvas = Image.new(image.mode, (self.size, self.size), "white")
            canvas.paste(image, ((self.size - side[0]) // 2, (self.size - side[1]) // 2))
            image = canvas
        return image


class FileImages(ImageSet):
    """Image files, read on access.

    Args:
        paths: (N,) the files.
        labels: (N,) integers.
        reader: decodes the files.
        root: a folder that is removed from the start of the names; None: names are the paths.

    Raises:
        UserError: the numbers of labels and files differ; on access, a file cannot be read (BadImage).
    """

    def __init__(
        self,
        paths: Sequence[str | Path],
        labels: Tensor | Sequence[int],
        reader: Reader,
        root: str | Path | None = None,
    ) -> None:
        self.paths = [os.fspath(path) for path in paths]
        self.labels = torch.as_tensor(labels, dtype=torch.int64)
        check_labels(len(self.paths), self.labels)
        self.reader = reader
        self.root = None if root is None else os.fspath(root)
        self._contents: list[Content] | None = None  # computed on first use
        prefix = "" if self.root is None else os.path.join(self.root, "")
        self.names = [path.removeprefix(prefix).replace(os.sep, "/") for path in self.paths]

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        return self.reader(self.paths[index]), int(self.labels[index])

    def subset(self, indices: Iterable[int] | Tensor, labels: Tensor | None = None) -> FileImages:
        chosen = as_indices(indices)
        paths = [self.paths[index] for index in chosen.tolist()]
        found = FileImages(paths, self.labels[chosen] if labels is None else labels, self.reader, self.root)
        if self._contents is not None:
            found._contents = [self._contents[index] for index in chosen.tolist()]
        return found

    def read_by(self, reader: Reader) -> FileImages:
        """Return the same files with another reader."""
        found = FileImages(self.paths, self.labels, reader, self.root)
        found._contents = self._contents
        return found

    def contents(self, cache: str | Path | None = None) -> list[Content]:
        """Return the content of each file (N,), see :func:`jtln.data.content.contents`.

        The result is computed once for the set and its subsets; :meth:`looked_at_again` returns a set without it.

        Args:
            cache: the folder that runs share; None: results are kept in this process only.
        """
        if self._contents is None:
            self._contents = contents(self.paths, self.root, cache)
        return self._contents

    def looked_at_again(self) -> FileImages:
        """Return the same files without the stored result of :meth:`contents`."""
        return FileImages(self.paths, self.labels, self.reader, self.root)

    def digests(self) -> list[str]:
        """Return a digest of each file's content and of the reader (N,)."""
        reader = hashlib.blake2b(repr(self.reader).encode(), digest_size=8).hexdigest()
        return [f"{content.digest}-{reader}" for content in self.contents()]

    def fingerprint(self) -> str:
        """Return a hash (32 hex digits) of the files' names and contents, of the labels and the reader."""
        digest = hashlib.blake2b(repr(self.reader).encode(), digest_size=16)
        digest.update(self.labels.numpy().astype("<i8").tobytes())
        for name, content in zip(self.names, self.contents(), strict=True):
            digest.update(f"{name}\0{content.digest}\n".encode("utf-8", "surrogateescape"))
        return digest.hexdigest()


def _turn(image: Image.Image) -> None:
    """Apply the EXIF orientation."""
    try:
        ImageOps.exif_transpose(image, in_place=True)
    except Exception:  # Metadata may be damaged while the pixels are readable.
        return


def _from_lab(image: Image.Image) -> Image.Image:
    from PIL import ImageCms  # A separate library, needed for a rare format only.

    lab, rgb = ImageCms.createProfile("LAB"), ImageCms.createProfile("sRGB")
    turned = ImageCms.applyTransform(image, ImageCms.buildTransform(lab, rgb, "LAB", "RGB"))
    assert turned is not None
    return turned


def _reason(path: str | Path, error: Exception) -> str:
    """Return the reason why the file cannot be read."""
    if isinstance(error, OSError) and error.strerror:
        return error.strerror.lower()
    if os.path.getsize(path) == 0:
        return "the file is empty"
    if isinstance(error, UnidentifiedImageError):
        return "it is not an image, or of a kind that Pillow does not know"
    if isinstance(error, Image.DecompressionBombError):
        return f"more than {2 * (Image.MAX_IMAGE_PIXELS or 0):,} pixels, which may be an attack"
    return (str(error).strip().splitlines() or [type(error).__name__])[0].rstrip(".")
