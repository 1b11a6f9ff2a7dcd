"""A file is there as a whole, or as it was before."""

from __future__ import annotations

from pathlib import Path

import pytest

from jtln.storage import kept_if_possible, replacing


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


def test_a_cache_that_cannot_be_written_is_said_and_no_more(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    told = r"the curve cannot be kept in the cache, so it is lost: File exists: .*file.*\. Give a folder .*cache=DIR"
    with (
        pytest.warns(UserWarning, match=told),
        kept_if_possible("the curve", "it is lost"),
        replacing(tmp_path / "file" / "new"),
    ):
        raise AssertionError("not reached")
    with pytest.raises(ValueError, match="mine"), kept_if_possible("the curve", "it is lost"):
        raise ValueError("mine")
