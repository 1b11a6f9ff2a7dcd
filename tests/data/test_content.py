import hashlib
import json
import os
import shutil
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from jtln.data import cache as cache_module
from jtln.data import content as module
from jtln.data.cache import CachedImages, with_image_cache
from jtln.data.content import contents
from jtln.data.files import FileImages, Reader
from jtln.errors import UserError


@pytest.fixture(autouse=True)
def settled(monkeypatch: pytest.MonkeyPatch) -> None:
    """Files count as settled at once, and the cache of an earlier test is empty."""
    monkeypatch.setattr(module, "_SETTLED", -1.0)
    monkeypatch.setattr(module, "_memory", {})


@pytest.fixture
def reads(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The files that are opened, in the order of their names."""
    seen: list[str] = []
    read = module._read
    monkeypatch.setattr(module, "_read", lambda path: (seen.append(Path(path).name), read(path))[1])
    return seen


def bitmaps(folder: Path, value: int, count: int = 4) -> list[Path]:
    """BMP files of equal length and equal times of change."""
    folder.mkdir(parents=True)
    paths = [folder / f"{index}.bmp" for index in range(count)]
    for index, path in enumerate(paths):
        Image.new("RGB", (5, 4), (value, index, 0)).save(path)
        os.utime(path, ns=(10**18, 10**18))
    return paths


def images_of(folder: Path, paths: list[Path]) -> FileImages:
    return FileImages(paths, [0] * len(paths), Reader(4), folder)


def forget() -> None:
    module._memory.clear()


# Identity.


def test_same_names_sizes_and_times_but_other_pixels(tmp_path: Path) -> None:
    first, second = (
        images_of(tmp_path / name, bitmaps(tmp_path / name, value)) for name, value in (("a", 9), ("b", 90))
    )
    for mine, other in zip(first.paths, second.paths, strict=True):
        a, b = os.stat(mine), os.stat(other)
        assert (a.st_size, a.st_mtime_ns) == (b.st_size, b.st_mtime_ns)
    assert first.names == second.names
    assert first.fingerprint() != second.fingerprint()
    for files, value in ((first, 9), (second, 90)):
        kept, _ = with_image_cache(files, tmp_path / "cache", True, "error")
        assert isinstance(kept, CachedImages)
        assert kept.__getitems__([0, 1, 2, 3])[0][:, 0, 0, 0].tolist() == [value] * 4
    assert len(list((tmp_path / "cache").rglob("*.u8"))) == 2


def test_a_file_written_anew_with_its_old_time_is_another(tmp_path: Path) -> None:
    paths = bitmaps(tmp_path / "a", 9)
    files = images_of(tmp_path / "a", paths)
    before = files.fingerprint()
    with_image_cache(files, tmp_path / "cache", True, "error")
    status = paths[2].stat()
    Image.new("RGB", (5, 4), (200, 2, 0)).save(paths[2])
    os.utime(paths[2], ns=(status.st_atime_ns, status.st_mtime_ns))
    assert (paths[2].stat().st_size, paths[2].stat().st_mtime_ns) == (status.st_size, status.st_mtime_ns)
    again = files.looked_at_again()
    assert again.fingerprint() != before
    kept, _ = with_image_cache(again, tmp_path / "cache", True, "error")
    assert int(kept[2][0][0, 0, 0]) == 200


def test_a_copy_elsewhere_is_the_same(tmp_path: Path) -> None:
    paths = bitmaps(tmp_path / "a", 9)
    shutil.copytree(tmp_path / "a", tmp_path / "b")
    copies = images_of(tmp_path / "b", [tmp_path / "b" / path.name for path in paths])
    for path in copies.paths:
        os.utime(path)
    assert copies.fingerprint() == images_of(tmp_path / "a", paths).fingerprint()
    with_image_cache(images_of(tmp_path / "a", paths), tmp_path / "cache", True, "error")
    with_image_cache(copies, tmp_path / "cache", True, "error")
    assert len(list((tmp_path / "cache").rglob("*.u8"))) == 1


def test_a_digest_is_blake2b_of_the_bytes(tmp_path: Path) -> None:
    path = tmp_path / "x"
    path.write_bytes(os.urandom(3 * module._CHUNK + 7))
    assert contents([str(path)])[0].digest == hashlib.blake2b(path.read_bytes(), digest_size=16).hexdigest()


# What is remembered.


def test_what_was_read_is_only_looked_at_again(tmp_path: Path, reads: list[str]) -> None:
    paths = [str(path) for path in bitmaps(tmp_path / "a", 9)]
    first = contents(paths, tmp_path / "a", tmp_path / "cache")
    assert sorted(reads) == ["0.bmp", "1.bmp", "2.bmp", "3.bmp"]
    for fresh in (False, True):  # in this process, and in another one
        if fresh:
            forget()
        reads.clear()
        assert contents(paths[::-1], tmp_path / "a", tmp_path / "cache") == first[::-1]
        assert reads == []
    Path(paths[1]).write_bytes(b"new")
    assert contents(paths, tmp_path / "a", tmp_path / "cache")[1] != first[1]
    assert reads == ["1.bmp"]
    os.replace(paths[2], tmp_path / "aside")  # the same bytes under another inode
    shutil.copy2(tmp_path / "aside", paths[2])
    reads.clear()
    assert contents(paths, tmp_path / "a", tmp_path / "cache")[2] == first[2]
    assert reads == ["2.bmp"]
    assert len(list((tmp_path / "cache" / "contents").glob("*.json"))) == 1


def test_another_process_reads_nothing(tmp_path: Path) -> None:
    paths = [str(path) for path in bitmaps(tmp_path / "a", 9)]
    code = (
        "import sys, json; from jtln.data import content; content._SETTLED = -1.0; seen = []; read = content._read\n"
        "content._read = lambda path: (seen.append(path), read(path))[1]\n"
        f"found = content.contents({paths!r}, None, {str(tmp_path / 'cache')!r})\n"
        "print(json.dumps([len(seen), [each.digest for each in found]]))"
    )
    first, second = (
        json.loads(subprocess.run([sys.executable, "-c", code], capture_output=True, check=True, timeout=600).stdout)
        for _ in range(2)
    )
    assert (first[0], second[0]) == (4, 0)
    assert first[1] == second[1] == [each.digest for each in contents(paths)]


def test_the_parts_of_a_folder_share_one_file(tmp_path: Path, reads: list[str]) -> None:
    train, val = bitmaps(tmp_path / "a" / "train", 1), bitmaps(tmp_path / "a" / "val", 2)
    for part in (train, val):
        contents([str(path) for path in part], tmp_path / "a", tmp_path / "cache")
    forget()
    reads.clear()
    contents([str(path) for path in (*val, *train)], tmp_path / "a", tmp_path / "cache")
    assert reads == []
    assert len(list((tmp_path / "cache" / "contents").glob("*.json"))) == 1


@pytest.mark.parametrize(
    "spoil",
    [
        lambda path: path.write_bytes(b""),
        lambda path: path.write_bytes(b"[]"),
        lambda path: path.write_bytes(path.read_bytes().replace(b"0", b"1")),
        lambda path: path.write_bytes(path.read_bytes()[:-20]),
        lambda path: path.write_bytes(b"\0" * path.stat().st_size),
        lambda path: (path.unlink(), path.mkdir()),
    ],
)
def test_a_broken_memory_is_passed_over(tmp_path: Path, spoil: Callable[[Path], Any], reads: list[str]) -> None:
    paths = [str(path) for path in bitmaps(tmp_path / "a", 9)]
    first = contents(paths, None, tmp_path / "cache")
    (kept,) = (tmp_path / "cache" / "contents").glob("*.json")
    spoil(kept)
    forget()
    reads.clear()
    assert contents(paths, None, tmp_path / "cache") == first
    assert len(reads) == 4


def test_a_cache_that_cannot_be_written_is_passed_over(tmp_path: Path) -> None:
    paths = [str(path) for path in bitmaps(tmp_path / "a", 9)]
    (tmp_path / "cache").write_text("a file where a folder should be")
    assert contents(paths, None, tmp_path / "cache") == contents(paths)


def test_what_has_just_changed_is_read_again(tmp_path: Path, reads: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """A file could change again within one tick of the file system's clock, with the same times."""
    monkeypatch.setattr(module, "_SETTLED", 600.0)
    paths = [str(path) for path in bitmaps(tmp_path / "a", 9, count=1)]
    for times in (1, 2):
        contents(paths, None, tmp_path / "cache")
        assert len(reads) == times
    assert not list((tmp_path / "cache" / "contents").glob("*.json"))


def test_files_that_cannot_be_read_differ_from_those_that_can(tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "empty").write_bytes(b"")
    paths = [str(tmp_path / name) for name in ("none", "folder", "pipe", "empty")]
    digests = [each.digest for each in contents(paths)]
    assert len(set(digests[:1] + digests[1:2] + digests[3:])) == 3
    assert [len(digest) == 32 for digest in digests] == [False, False, False, True]
    (tmp_path / "none").write_bytes(b"")
    assert contents(paths)[0] == contents(paths)[3]


def test_a_name_that_is_no_text(tmp_path: Path) -> None:
    path = os.fsdecode(os.fsencode(tmp_path) + b"/caf\xe9.bmp")
    Image.new("RGB", (5, 4)).save(path, "BMP")
    first = contents([path], None, tmp_path / "cache")
    forget()
    assert contents([path], None, tmp_path / "cache") == first
    assert len(FileImages([path], [0], Reader(4), tmp_path).fingerprint()) == 32


def test_a_long_reading_prints_a_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    class Impatient(module.Watch):
        def __init__(self, what: str, total: int) -> None:
            super().__init__(what, total, 0.0)

    monkeypatch.setattr(module, "Watch", Impatient)
    contents([str(path) for path in bitmaps(tmp_path / "a", 9)])
    assert capsys.readouterr().err.count(": 4,") == 1


def test_two_threads_read_once(tmp_path: Path, reads: list[str]) -> None:
    paths = [str(path) for path in bitmaps(tmp_path / "a", 9)]
    threads = [threading.Thread(target=contents, args=(paths, None, tmp_path / "cache")) for _ in range(3)]
    for each in threads:
        each.start()
    for each in threads:
        each.join()
    assert sorted(reads) == ["0.bmp", "1.bmp", "2.bmp", "3.bmp"]


def test_images_that_change_while_they_are_decoded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Their pixels are not stored under the key of their earlier content."""
    paths = bitmaps(tmp_path / "a", 9)
    look = cache_module._Store._look

    def change(self: Any, file: Any) -> Any:
        Image.new("RGB", (5, 4), "white").save(paths[0])
        return look(self, file)

    monkeypatch.setattr(cache_module._Store, "_look", change)
    with pytest.raises(UserError, match="changed"):
        with_image_cache(images_of(tmp_path / "a", paths), tmp_path / "cache", True, "error")
    assert not list((tmp_path / "cache").rglob("*.u8*"))


# Damage to the pixels.


@pytest.fixture
def noise(tmp_path: Path) -> FileImages:
    random = np.random.default_rng(0)
    (tmp_path / "noise").mkdir()
    paths = [tmp_path / "noise" / f"{index:02d}.png" for index in range(12)]
    for path in paths:
        Image.fromarray(random.integers(0, 255, (8, 8, 3), dtype=np.uint8)).save(path)
    (tmp_path / "noise" / "03.png").write_text("no image")
    return FileImages(paths, list(range(12)), Reader(8), tmp_path / "noise")


SOUND = [index for index in range(12) if index != 3]
SIZE = 3 * 8 * 8


def flip(path: Path, place: int) -> None:
    content = bytearray(path.read_bytes())
    content[place] ^= 1
    path.write_bytes(content)


@pytest.mark.parametrize(
    ("suffix", "spoil"),
    [
        ("u8", lambda path: path.write_bytes(b"\0" * path.stat().st_size)),
        ("u8", lambda path: flip(path, 0)),
        ("u8", lambda path: flip(path, 11 * SIZE - 1)),
        ("u8", lambda path: path.write_bytes(path.read_bytes()[SIZE:] + path.read_bytes()[:SIZE])),
        ("u8", lambda path: path.write_bytes(path.read_bytes()[:-1])),
        ("sums", lambda path: flip(path, 40)),
        ("sums", lambda path: path.write_bytes(b"\0" * path.stat().st_size)),
        ("json", lambda path: path.write_text(path.read_text().replace("[3,", "[4,"))),
        ("json", lambda path: path.write_bytes(b"\0" * path.stat().st_size)),
    ],
)
def test_a_damaged_cache_is_decoded_anew(
    noise: FileImages, tmp_path: Path, suffix: str, spoil: Callable[[Path], Any]
) -> None:
    expected = noise.subset(SOUND).__getitems__(list(range(11)))[0]
    with_image_cache(noise, tmp_path / "cache", True, "skip")
    (kept,) = (tmp_path / "cache" / "decoded").glob(f"*.{suffix}")
    spoil(kept)

    def read() -> tuple[Any, Any]:
        images, skipped = with_image_cache(noise, tmp_path / "cache", True, "skip")
        return images.__getitems__(list(range(11)))[0], skipped

    with pytest.warns(UserWarning, match=r"\.u8 is damaged"):
        pixels, skipped = read()
    assert torch.equal(pixels, expected)
    assert [name for name, _ in skipped] == ["03.png"]
    again, _ = with_image_cache(noise, tmp_path / "cache", True, "skip")
    assert torch.equal(again.__getitems__(list(range(11)))[0], expected)


def test_damage_is_found_in_the_images_that_are_read(
    noise: FileImages, tmp_path: Path, recwarn: pytest.WarningsRecorder
) -> None:
    images, _ = with_image_cache(noise.subset(SOUND), tmp_path / "cache", True, "error")
    expected = images.__getitems__(list(range(11)))[0]
    (kept,) = (tmp_path / "cache" / "decoded").glob("*.u8")
    flip(kept, 7 * SIZE + 5)
    again, _ = with_image_cache(noise.subset(SOUND), tmp_path / "cache", True, "error")
    part = again.subset([0, 1, 2])
    assert torch.equal(part.__getitems__([0, 1, 2])[0], expected[:3])
    assert not [each for each in recwarn if "damaged" in str(each.message)]
    assert torch.equal(again.__getitems__([7, 1])[0], expected[[7, 1]])
    assert len([each for each in recwarn if "damaged" in str(each.message)]) == 1
    assert torch.equal(part.__getitems__([0, 1, 2])[0], expected[:3])


def test_every_image_is_checked_once(noise: FileImages, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    images, _ = with_image_cache(noise.subset(SOUND), tmp_path / "cache", True, "error")
    checks = []
    crc32 = cache_module.zlib.crc32
    monkeypatch.setattr(cache_module.zlib, "crc32", lambda data: (checks.append(1), crc32(data))[1])
    for _ in range(3):
        images.__getitems__([0, 1, 1])
        images.subset([1, 5]).__getitems__([0, 1])
    assert len(checks) == 3 + 1  # an image that is twice in its first batch is checked twice


def test_where_the_cache_cannot_be_mended_files_are_read(
    noise: FileImages, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sound = noise.subset(SOUND)
    expected = sound.__getitems__(list(range(11)))[0]
    with_image_cache(sound, tmp_path / "cache", True, "error")
    (kept,) = (tmp_path / "cache" / "decoded").glob("*.u8")
    kept.write_bytes(b"\0" * kept.stat().st_size)
    images, _ = with_image_cache(sound, tmp_path / "cache", True, "error")
    assert isinstance(images, CachedImages)

    def refuse(self: Any, with_pixels: bool) -> None:
        raise OSError(30, "Read-only file system")

    hashes = images.hashes()
    monkeypatch.setattr(cache_module._Store, "_make", refuse)
    with pytest.warns(UserWarning, match=r"\.u8 is damaged.*Read-only file system"):
        assert torch.equal(images.__getitems__(list(range(11)))[0], expected)
    assert torch.equal(images.__getitems__([4, 2])[0], expected[[4, 2]])
    assert np.array_equal(images.hashes(), hashes)


def test_two_processes_that_find_the_damage_decode_once(
    noise: FileImages, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sound = noise.subset(SOUND)
    first, _ = with_image_cache(sound, tmp_path / "cache", True, "error")
    (kept,) = (tmp_path / "cache" / "decoded").glob("*.u8")
    damaged = kept.stat().st_ino
    with open(kept, "r+b") as file:
        file.write(b"\0" * SIZE * 11)
    second, _ = with_image_cache(sound, tmp_path / "cache", True, "error")
    made = []
    make = cache_module._Store._make
    monkeypatch.setattr(
        cache_module._Store, "_make", lambda self, with_pixels: (made.append(1), make(self, with_pixels))[1]
    )
    expected = sound.__getitems__([0, 5])[0]
    for images in (first, second):  # each with a map of its own
        assert isinstance(images, CachedImages)
        images.pixels._open()
    with pytest.warns(UserWarning, match="damaged"):
        read = [images.__getitems__([0, 5])[0] for images in (first, second)]
    assert all(torch.equal(each, expected) for each in read)
    assert len(made) == 1
    assert kept.stat().st_ino != damaged


def test_pixels_are_on_the_disk_before_they_have_their_name(
    noise: FileImages, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    events = []
    sync, rename = os.fsync, os.replace

    def synced(handle: int) -> None:
        events.append(("sync", os.fstat(handle).st_ino))
        sync(handle)

    def renamed(old: Any, new: Any) -> None:
        events.append(("rename", os.stat(old).st_ino))
        rename(old, new)

    monkeypatch.setattr(os, "fsync", synced)
    monkeypatch.setattr(os, "replace", renamed)
    with_image_cache(noise.subset(SOUND), tmp_path / "cache", True, "error")
    (kept,) = (tmp_path / "cache" / "decoded").glob("*.u8")
    places = [events.index((what, kept.stat().st_ino)) for what in ("sync", "rename")]
    assert places == sorted(places)


def test_hashes_are_made_with_the_pixels(noise: FileImages, tmp_path: Path) -> None:
    images, _ = with_image_cache(noise.subset(SOUND), tmp_path / "cache", True, "error")
    assert isinstance(images, CachedImages)
    expected = [hashlib.blake2b(image.numpy().tobytes(), digest_size=8).digest() for image, _ in images]
    assert images.hashes().astype("<u8").tobytes() == b"".join(expected)
    assert np.array_equal(images.subset([4, 0]).hashes(), images.hashes()[[4, 0]])
