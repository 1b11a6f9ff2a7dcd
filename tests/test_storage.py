"""A file is there as a whole, or as it was before."""

from __future__ import annotations

import errno
import hashlib
import os
from pathlib import Path

import pytest
import torch

from jtln.storage import clear_leftovers, file_digest, kept_if_possible, replacing, save_torch, write_text


def test_replaces_at_the_end(tmp_path: Path) -> None:
    path = tmp_path / "new" / "file"
    with replacing(path) as file:
        file.write(b"one")
        assert not path.exists()
    with replacing(path) as file:
        file.write(b"two")
        file.flush()
        assert path.read_bytes() == b"one"
    assert path.read_bytes() == b"two"
    assert list(path.parent.iterdir()) == [path]
    (plain := tmp_path / "plain").touch()
    assert path.stat().st_mode == plain.stat().st_mode  # for those whom other files are for, too


def test_what_fails_leaves_nothing_behind(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"before")

    def interrupted() -> None:
        with replacing(path) as file:
            file.write(b"half")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert path.read_bytes() == b"before"
    assert list(tmp_path.iterdir()) == [path]


def test_a_full_disk_is_an_error_of_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever writes: Python's own files, and PyTorch, which would raise a RuntimeError."""
    path = tmp_path / "file"
    path.write_bytes(b"before")

    def full(handle: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr("os.fsync", full)
    for write in (write_text, lambda path, text: save_torch({"text": text}, path)):
        with pytest.raises(OSError, match="No space left on device") as caught:
            write(path, "new")
        assert (caught.value.errno, caught.value.filename) == (errno.ENOSPC, str(path))
        assert path.read_bytes() == b"before"
        assert list(tmp_path.iterdir()) == [path]


def test_text_and_tensors_are_read_again(tmp_path: Path) -> None:
    write_text(tmp_path / "text", "a\nb\u00e9\n")
    assert (tmp_path / "text").read_bytes() == "a\nb\u00e9\n".encode()
    save_torch({"x": torch.arange(3)}, tmp_path / "new" / "x.pt")
    assert torch.load(tmp_path / "new" / "x.pt", weights_only=True)["x"].tolist() == [0, 1, 2]


@pytest.mark.parametrize(("name", "left"), [("*", {"a", "b"}), ("a", {"a", "b", ".b."})])
def test_leftovers_of_a_kill_are_cleared(name: str, left: set[str], tmp_path: Path) -> None:
    for path in ("a", "b"):
        with replacing(tmp_path / path) as file:
            file.write(b"whole")
            (killed,) = tmp_path.glob(f".{path}.*")
            (tmp_path / f"{killed.name[:-4]}x{killed.suffix}").touch()  # what a killed process wrote there
    clear_leftovers(tmp_path, name)
    assert {path.name[:3] if path.name.startswith(".") else path.name for path in tmp_path.iterdir()} == left


def test_a_cache_that_cannot_be_written_is_a_warning(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    message = r"the curve .*it is lost: File exists: .*file.*cache=DIR"
    with (
        pytest.warns(UserWarning, match=message),
        kept_if_possible("the curve", "it is lost"),
        replacing(tmp_path / "file" / "new"),
    ):
        raise AssertionError("not reached")
    with pytest.raises(ValueError, match="mine"), kept_if_possible("the curve", "it is lost"):
        raise ValueError("mine")


def test_a_files_digest_is_read_again_only_where_the_file_changed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "weights"
    path.write_bytes(b"one")
    long_ago = path.stat().st_mtime_ns - 10**12
    os.utime(path, ns=(long_ago, long_ago))
    assert file_digest(path) == hashlib.sha256(b"one").hexdigest()
    with monkeypatch.context() as context:
        context.setattr("jtln.storage._read_digest", None)  # whoever reads fails
        assert file_digest(path) == hashlib.sha256(b"one").hexdigest()
    path.write_bytes(b"two")  # of the same size
    assert file_digest(path) == hashlib.sha256(b"two").hexdigest()
    path.write_bytes(b"six")  # perhaps within a tick of the file system
    assert file_digest(path) == hashlib.sha256(b"six").hexdigest()
