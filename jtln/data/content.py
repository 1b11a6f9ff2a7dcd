"""The content of image files: a digest of each, and the grey levels of deep images, read once and cached."""

from __future__ import annotations

import hashlib
import json
import os
import stat
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import NamedTuple

from jtln.data.grey_levels import Levels, read_levels
from jtln.data.passes import Watch, in_order, one_at_a_time
from jtln.storage import replacing

_FORMAT = 1  # version of the cache file
_THREADS = 16  # A network file system handles many requests in parallel.
# Seconds. A file that changed less than this before it was read may change again without a new time stamp.
_SETTLED = 2.0
_CHUNK = 1 << 20  # bytes


class Content(NamedTuple):
    """The content of a file.

    Attributes:
        digest: 32 hex digits of its bytes; a short text if it cannot be read.
        levels: of a grey image of more than 8 bits, see :mod:`jtln.data.grey_levels`; None for other files.
    """

    digest: str
    levels: Levels | None = None


Memory = dict[str, tuple[str, Content]]  # path -> the state of the file (see _state) and its content then
_memory: Memory = {}  # of this process, by absolute path


def contents(paths: Sequence[str], folder: str | Path | None = None, cache: str | Path | None = None) -> list[Content]:
    """Return the content of each file; files that have not changed are not read again.

    A file counts as unchanged if its device, inode, size, ctime and mtime are the same. Results are cached in this
    process and, across processes and runs, in one file of ``cache/contents`` for each data folder. A cache that is
    damaged or cannot be written is ignored.

    Args:
        paths: (N,) of the files.
        folder: that contains them; None: their deepest common folder.
        cache: the folder that runs share; None: results are cached in this process only.

    Returns:
        (N,) contents.
    """
    absolute = [path if os.path.isabs(path) else os.path.abspath(path) for path in paths]
    some = [absolute[start : start + 256] for start in range(0, len(absolute), 256)]  # One task a file is slower.
    with ThreadPoolExecutor(_THREADS) as threads:
        states = {path: state for found in threads.map(_states, some) for path, state in found}
    found = _unchanged(states, _memory)
    if len(found) < len(states):
        _remember(states, found, None if cache is None else _file(Path(cache), folder, absolute))
    return [found[path] for path in absolute]


def _remember(states: Mapping[str, str], found: dict[str, Content], file: Path | None) -> None:
    """Add the contents missing from ``found``, from the cache file or by reading the image files."""
    with ExitStack() as stack:
        recalled: Memory = {}
        if file is not None:
            with suppress(OSError, NotImplementedError):  # NotImplementedError: a file system without locks
                file.parent.mkdir(parents=True, exist_ok=True)
                waiting = "waiting for another run, which is reading the same images"
                stack.enter_context(one_at_a_time(file.with_suffix(".lock"), waiting))
            recalled = _recall(file)
        left = {path: state for path, state in states.items() if path not in found}
        again = _unchanged(left, recalled)
        found.update(again)
        _memory.update({path: recalled[path] for path in again})
        read = _read_all([path for path in left if path not in again])
        found.update({path: content for path, (_, content) in read.items()})
        lasting: Memory = {path: (state, content) for path, (state, content) in read.items() if state}
        _memory.update(lasting)
        if file is not None and lasting:
            _keep(file, recalled | lasting)


def _unchanged(states: Mapping[str, str], memory: Memory) -> dict[str, Content]:
    """Return the remembered contents of the files whose state is unchanged."""
    known = ((path, state, memory.get(path)) for path, state in states.items())
    return {path: entry[1] for path, state, entry in known if entry is not None and state and entry[0] == state}


def _states(paths: Sequence[str]) -> list[tuple[str, str]]:
    return [(path, _state(path)) for path in paths]


def _state(path: str) -> str:
    """Return a text that changes whenever the file does; empty if there is no such file."""
    try:
        return _written(os.stat(path))
    except OSError:
        return ""


def _written(status: os.stat_result) -> str:
    numbers = (status.st_dev, status.st_ino, status.st_size, status.st_ctime_ns, status.st_mtime_ns)
    return " ".join(map(str, numbers))


def _read_all(paths: Sequence[str]) -> Memory:
    """Return the state and content of each file; the state is empty if a change could go unnoticed."""
    with Watch("reading image files", len(paths)) as watch:
        read: Memory = {}
        for path, entry in zip(paths, in_order(_read, paths, _THREADS), strict=True):
            read[path] = entry
            watch.step()
    return read


def _read(path: str) -> tuple[str, Content]:
    try:
        if not stat.S_ISREG(os.stat(path).st_mode):  # Reading a pipe would block.
            return "", Content("not a file")
        with open(path, "rb") as file:
            now, before = time.time(), os.fstat(file.fileno())
            digest = hashlib.blake2b(digest_size=16)
            while chunk := file.read(_CHUNK):
                digest.update(chunk)
            file.seek(0)
            content = Content(digest.hexdigest(), read_levels(file))
            lasts = now - before.st_ctime_ns / 1e9 > _SETTLED and _state(path) == _written(before)
            return _written(before) if lasts else "", content
    except OSError as error:  # The reader reports the error later.
        return "", Content(f"unreadable: {error.errno}")


def _file(cache: Path, folder: str | Path | None, paths: Sequence[str]) -> Path:
    """Return the cache file of a data folder."""
    whole = os.path.commonpath(paths) if folder is None else os.path.abspath(folder)
    name = hashlib.blake2b(os.fsencode(whole), digest_size=12).hexdigest()
    return cache / "contents" / f"{name}.json"


def _recall(file: Path) -> Memory:
    """Return the content of a cache file; empty if it is missing, damaged or of another version."""
    try:
        seal, _, text = file.read_bytes().partition(b"\n")
        if seal != _seal(text):
            return {}
        kept = json.loads(text)
        if kept["format"] != _FORMAT:
            return {}
        return {
            path: (state, Content(digest, None if levels is None else Levels(*levels)))
            for path, (state, digest, levels) in kept["files"].items()
        }
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return {}


def _keep(file: Path, memory: Memory) -> None:
    files = {path: (state, *content) for path, (state, content) in memory.items()}
    text = json.dumps({"format": _FORMAT, "files": files}, separators=(",", ":")).encode()
    with suppress(OSError), replacing(file) as opened:
        opened.write(_seal(text) + b"\n" + text)


def _seal(text: bytes) -> bytes:
    """Return the digest that precedes the content of a cache file."""
    return hashlib.blake2b(text, digest_size=16).hexdigest().encode()
