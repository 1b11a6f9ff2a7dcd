"""Files that other processes read, or that a kill may cut off, while they are written anew."""

from __future__ import annotations

import functools
import hashlib
import io
import os
import tempfile
import time
import warnings
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, BinaryIO

from jtln.errors import UserError

_SUFFIX = ".tmp"
_SETTLED = 2.0  # seconds: a file that changed later may change again within one tick of the file system


def _umask() -> int:
    os.umask(mask := os.umask(0o077))
    return mask


def given_path(given: object, argument: str, expected: str, remedy: str | None = None) -> Path:
    """Return the path that the user gave, with ``~`` for the home folder.

    Args:
        given: a path or a text.
        argument: its name.
        expected: what should lie there, for the error.
        remedy: what to do, for the error; None: set the argument.

    Raises:
        UserError: it is no path, empty or white space, which would mean the current folder.
    """
    if not isinstance(given, str | os.PathLike) or not os.fspath(given).strip():
        raise UserError(f"expected {expected} for {argument}, but got {given!r}: {remedy or f'set {argument}=FILE'}")
    return Path(given).expanduser()


@contextmanager
def replacing(path: Path) -> Iterator[BinaryIO]:
    """Open a file that takes the place of ``path`` at the end: a reader sees the whole of it or none.

    It is written beside ``path``, synced to the disk and renamed. Where writing fails, what was there before stays, and
    nothing else is left behind.

    Raises:
        OSError: with ``path`` as its filename.
    """
    temporary = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=_SUFFIX)
        with os.fdopen(handle, "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.chmod(temporary, 0o666 & ~_umask())
        os.replace(temporary, path)
    except BaseException as error:
        if temporary is not None:
            Path(temporary).unlink(missing_ok=True)
        if isinstance(error, OSError) and error.errno is not None:
            raise OSError(error.errno, os.strerror(error.errno), str(path)) from error
        raise


def file_digest(path: Path) -> str:
    """Return the SHA-256 of a file's content, which is read again only where the file may have changed."""
    status = path.stat()
    if abs(time.time() - status.st_mtime) < _SETTLED:
        return _read_digest(path)
    return _known_digest(path, (status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns))


@functools.lru_cache(maxsize=64)
def _known_digest(path: Path, state: tuple[int, ...]) -> str:
    return _read_digest(path)


def _read_digest(path: Path) -> str:
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while chunk := file.read(1 << 20):
            digest.update(chunk)
    return digest.hexdigest()


def write_text(path: Path, text: str) -> None:
    """Write a text file whole or not at all."""
    with replacing(path) as file:
        file.write(text.encode("utf-8"))


def writable(text: str) -> str:
    r"""Return the text with \udcXX for what cannot be written: a file's name may be in another encoding."""
    return text.encode("utf-8", "backslashreplace").decode("utf-8")


def save_torch(content: Any, path: Path) -> None:
    """Write what ``torch.load`` reads, whole or not at all.

    ``torch.save`` to a file raises a RuntimeError where the disk is full; bytes that Python writes raise an OSError.
    """
    import torch

    buffer = io.BytesIO()
    torch.save(content, buffer)
    with replacing(path) as file:
        file.write(buffer.getbuffer())


def read_torch(path: Path) -> Any:
    """Read what :func:`save_torch` wrote, onto the CPU. Nothing in it is executed.

    ``torch.load`` takes tensors with changed bytes as they are: here each part is compared with its checksum.

    Raises:
        OSError: the file cannot be opened.
        Exception: of some other kind, where it is not whole.
    """
    import torch

    with zipfile.ZipFile(path) as parts:
        if (damaged := parts.testzip()) is not None:
            raise ValueError(f"the checksum of {damaged} is another one")
    return torch.load(path, map_location="cpu", weights_only=True)


def clear_leftovers(folder: Path, name: str = "*") -> None:
    """Delete the files of :func:`replacing` that a killed process left in ``folder``.

    Only a process that alone may write there can call this.

    Args:
        folder: the folder of the file that was to be replaced.
        name: of that file; "*": of any.
    """
    for path in folder.glob(f".{name}.*{_SUFFIX}"):
        with suppress(OSError):
            path.unlink()


@contextmanager
def kept_if_possible(what: str, loss: str) -> Iterator[None]:
    """Write to the cache, which a run can do without: where it fails, a warning says so, and the run goes on.

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
