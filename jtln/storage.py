"""Files that other processes read while they are written anew."""

from __future__ import annotations

import os
import tempfile
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO


def _umask() -> int:
    os.umask(mask := os.umask(0o077))
    return mask


@contextmanager
def replacing(path: Path) -> Iterator[BinaryIO]:
    """A file to write to that takes the place of ``path`` at the end: a reader sees the whole of it or none.

    Where writing fails, what was there before stays, and nothing else is left behind.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(dir=path.parent, suffix=".tmp")
    try:
        with os.fdopen(handle, "wb") as file:
            yield file
        os.chmod(temporary, 0o666 & ~_umask())
        os.replace(temporary, path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise


@contextmanager
def kept_if_possible(what: str, loss: str) -> Iterator[None]:
    """Writing to the cache, which a run can do without: where it fails, a warning says so, and the run goes on.

    Args:
        what: is kept there.
        loss: what follows where it is not.
    """
    try:
        yield
    except OSError as error:
        place = f" {error.filename}" if error.filename else ""
        warnings.warn(
            f"{what} cannot be kept in the cache, so {loss}: {error.strerror or error}:{place}. Give a folder that may "
            "be written with cache=DIR or $JTLN_CACHE",
            stacklevel=3,
        )
