"""Grey images of more than 8 bits: their white level, and their conversion to 8 bits."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import BinaryIO, NamedTuple

import numpy as np
from PIL import Image

from jtln.errors import UserError

# White levels of integer images: 8, 10, 12 or 16 bits, stored in 16.
WHITES = (255.0, 1023.0, 4095.0, 65535.0)
OVERSHOOT = 1.1  # Resampling or rounding can raise levels in [0, 1] above 1.
_FAINT = 1 / 16  # A set of float images whose levels stay below this does not use the range [0, 1].
# TIFF tags: Min/MaxSampleValue belong to unsigned images, SMin/SMaxSampleValue to any.
_BITS, _MIN, _MAX, _FORMAT, _SMIN, _SMAX = 258, 280, 281, 339, 340, 341
_SIGNED = 2  # of _FORMAT
_RESCALED = ("PPM", "JPEG2000")  # Pillow rescales the integers of these formats to 0 ... 65535.


class Levels(NamedTuple):
    """The grey levels of one image of more than 8 bits.

    Attributes:
        low, high: the smallest and the largest level.
        whole: whether the levels are integers.
        black, white: the range that the file declares; None if it declares none.
        sixteen: whether it is an unsigned 16-bit file, in which white is 65535 unless it declares another range.
    """

    low: float
    high: float
    whole: bool
    black: float | None
    white: float | None
    sixteen: bool

    @property
    def declares(self) -> bool:
        """True if the file declares a range that contains all its levels."""
        return self.white is not None and self.black is not None and self.black <= self.low <= self.high <= self.white


def is_deep(image: Image.Image) -> bool:
    """Return whether the image is grey with more than 8 bits."""
    return image.mode in ("I", "F") or image.mode.startswith("I;16")


def read_levels(file: BinaryIO) -> Levels | None:
    """Return the grey levels of an open image file; None if it is not deep or cannot be read."""
    head = file.read(32)
    if _is_shallow(head):
        return None
    file.seek(0)
    try:
        with Image.open(file) as image:
            if not is_deep(image) or _is_rescaled(image):
                return None
            return levels_of(image)
    except Exception:  # Pillow's parsers raise errors of many types; the reader reports them later.
        return None


def _is_shallow(head: bytes) -> bool:
    """Return whether the first bytes are those of a common 8-bit format, which Pillow then need not open."""
    if head.startswith(b"\x89PNG\r\n\x1a\n"):
        depth, colour = head[24:26].ljust(2, b"\0")
        return depth != 16 or colour != 0
    return head.startswith((b"\xff\xd8", b"GIF8", b"BM", b"RIFF"))


def levels_of(image: Image.Image) -> Levels:
    """Return the levels of a deep image."""
    values = np.asarray(image)
    finite = values[np.isfinite(values)] if values.dtype.kind == "f" else values
    low, high = (float(finite.min()), float(finite.max())) if finite.size else (0.0, 0.0)
    black, white = _declared(image)
    tags = getattr(image, "tag_v2", {})
    unsigned = _number(tags.get(_FORMAT)) != _SIGNED
    bits = {"PNG": 16.0, "TIFF": _number(tags.get(_BITS))}.get(image.format or "")
    sixteen = (unsigned and bits == 16) or (bits is None and image.mode.startswith("I;16"))
    if white is None and unsigned and bits is not None and 8 < bits < 16:
        black, white = 0.0, 2.0**bits - 1
    return Levels(low, high, image.mode != "F", black, white, sixteen)


def _declared(image: Image.Image) -> tuple[float | None, float | None]:
    """Return the range in a TIFF file's tags."""
    tags = getattr(image, "tag_v2", {})
    white, black = _number(tags.get(_SMAX)), _number(tags.get(_SMIN))
    if white is None and image.mode != "F":
        white, black = _number(tags.get(_MAX)), None  # MinSampleValue is the image's own minimum, not black.
    if white is None or not white > (black or 0.0):
        return None, None
    return black if black is not None and black < 0 else 0.0, white


def _number(value: object) -> float | None:
    """Return a TIFF tag's number; None if it has none."""
    first = value[0] if isinstance(value, tuple) and value else value
    return float(first) if isinstance(first, int | float) and math.isfinite(first) else None


def _is_rescaled(image: Image.Image) -> bool:
    return image.format in _RESCALED and image.mode != "F"


def eight_bits(image: Image.Image, white: float | None) -> Image.Image:
    """Return a deep image with 8 bits: in mode L, or RGBA if the file declares a transparent grey level.

    Args:
        image: a grey image of more than 8 bits.
        white: the white level; None: as the file declares.

    Raises:
        ValueError: ``white`` is None and the file declares no range that contains its levels.
    """
    values = np.nan_to_num(np.asarray(image, dtype=np.float32), posinf=0.0, neginf=0.0)
    black, white = _range(image, white)
    grey = Image.fromarray(((values - black) * (255 / (white - black))).clip(0, 255).round().astype(np.uint8))
    clear = image.info.get("transparency")
    if not isinstance(clear, int):
        return grey
    alpha = Image.fromarray(np.where(np.asarray(image) == clear, 0, 255).astype(np.uint8))
    return Image.merge("LA", (grey, alpha)).convert("RGBA")


def _range(image: Image.Image, white: float | None) -> tuple[float, float]:
    """Return the grey levels of black and white."""
    if _is_rescaled(image):
        return 0.0, 65535.0
    if white is not None:
        return 0.0, white
    levels = levels_of(image)
    if levels.declares and levels.black is not None and levels.white is not None:
        return levels.black, levels.white
    if levels.sixteen:
        return 0.0, 65535.0
    if levels.whole or levels.low < 0 or levels.high > OVERSHOOT:
        raise ValueError(
            f"its grey levels, {levels.low:g} to {levels.high:g}, have no declared white: set white=NUMBER"
        )
    return 0.0, 1.0


def common_white(levels: Mapping[str, Levels]) -> float | None:
    """Return one white level for all images of a set; None if each file's own declaration is valid.

    - Integers: the smallest of 8, 10, 12 and 16 bits that contains the highest level of the set. So 16-bit files whose
      upper 4 bits are empty count as 12-bit images.
    - Floats: 1, if the levels go from 0 to about 1.

    Some programs write an image's own extremes into the tags. A declared range is therefore used only if all files
    have the same range, or each a whole number of bits, and all levels lie within it.

    Args:
        levels: of the deep images, by their path.

    Raises:
        UserError: the white level cannot be determined.
    """
    whole = {path: each for path, each in levels.items() if each.whole}
    floats = {path: each for path, each in levels.items() if not each.whole}
    white = _white_of_whole(whole)
    _check_floats(floats)
    if white is not None and floats:
        highest = max(each.high for each in whole.values())
        raise UserError(
            "expected grey images of more than 8 bits to be all whole numbers or all floats, but got "
            f"{len(whole)} with levels to {highest:g} ({next(iter(whole))}) and {len(floats)} floats "
            f"({next(iter(floats))}): convert one kind to the other, or all to 8 bits"
        )
    return white


def _white_of_whole(levels: Mapping[str, Levels]) -> float | None:
    believed = _believed(levels)
    loose = {path: each for path, each in levels.items() if not (believed and each.declares)}
    if not loose:
        return None
    _refuse_negative(loose)
    path = max(loose, key=lambda path: loose[path].high)
    least = next((white for white in WHITES if loose[path].high <= white), None)
    if least is None:
        raise _unknown(loose, path)
    if least == WHITES[-1] and believed and all(each.sixteen for each in loose.values()):
        return None
    declared = [each.white for each in levels.values() if believed and each.declares and each.white is not None]
    return max([least, *declared])


def _check_floats(levels: Mapping[str, Levels]) -> None:
    """Raise a UserError unless the files declare one common range, or the levels go from 0 to about 1."""
    ranges = {(each.black, each.white) for each in levels.values()}
    if not levels or (len(ranges) == 1 and all(each.declares for each in levels.values())):
        return
    _refuse_negative(levels)
    path = max(levels, key=lambda path: levels[path].high)
    if not (levels[path].high == 0 or _FAINT <= levels[path].high <= OVERSHOOT):
        raise _unknown(levels, path)


def _believed(levels: Mapping[str, Levels]) -> bool:
    """Return whether the ranges in the files' tags describe the set, and not each single image."""
    tagged = [each for each in levels.values() if each.white is not None]
    ranges = {(each.black, each.white) for each in tagged}
    bits = all(math.log2(each.white + 1).is_integer() for each in tagged if each.white is not None)
    return all(each.declares for each in tagged) and (len(ranges) == 1 or bits)


def _refuse_negative(levels: Mapping[str, Levels]) -> None:
    path = min(levels, key=lambda path: levels[path].low)
    if levels[path].low < 0:
        raise _unknown(levels, path)


def _unknown(levels: Mapping[str, Levels], path: str) -> UserError:
    """Return the error for a set whose white level is unknown because of the image at ``path``."""
    low, high = min(each.low for each in levels.values()), max(each.high for each in levels.values())
    kind = "whole numbers from 0 to 65535" if levels[path].whole else "floats from 0 to 1"
    example = next((white for white in WHITES if white / 2 < high <= white), high)
    return UserError(
        f"expected grey levels that are {kind}, or TIFF files that declare one range (SMaxSampleValue), but got "
        f"{low:g} to {high:g} in {len(levels)} images, {path} among them: set dataset.white=NUMBER, the level that is "
        f"white, dataset.white={example:g} for instance; levels below 0 are black then"
    )
