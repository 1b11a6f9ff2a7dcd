import errno
import os
import pickle
import threading
import time
from pathlib import Path

import pytest
import torch
from PIL import Image

from jtln.data import cache as module
from jtln.data.cache import CachedImages, Skipped, with_image_cache
from jtln.data.files import BadImage, FileImages, Reader
from jtln.data.images import ArrayImages
from jtln.errors import UserError


class Counting(Reader):
    """Records what it reads."""

    seen: list[str] = []  # noqa: RUF012

    def __call__(self, path: str | Path) -> torch.Tensor:
        self.seen.append(Path(path).name)
        return super().__call__(path)


@pytest.fixture
def files(tmp_path: Path) -> FileImages:
    """Twelve images of a colour each, not in the order of their names; 3 and 7 are broken."""
    paths = []
    for index in [5, 3, 11, 0, 1, 2, 4, 7, 6, 8, 9, 10]:
        paths.append(tmp_path / "images" / f"{index:02d}.png")
        paths[-1].parent.mkdir(exist_ok=True)
        Image.new("RGB", (10, 8), (20 * index, index, 0)).save(paths[-1])
    paths[1].write_text("no image")
    paths[7].write_bytes(b"")
    Counting.seen.clear()
    return FileImages(paths, list(range(12)), Counting(4), tmp_path / "images")


SOUND = [0, 2, 3, 4, 5, 6, 8, 9, 10, 11]


@pytest.fixture
def sound(files: FileImages) -> FileImages:
    return files.subset(SOUND)


def test_kept_pixels_are_the_files(files: FileImages, sound: FileImages, tmp_path: Path) -> None:
    kept, skipped = with_image_cache(files, tmp_path / "cache", True, "skip")
    assert isinstance(kept, CachedImages)
    assert kept.in_memory
    assert skipped == (
        Skipped("03.png", "it is not an image, or of a kind that Pillow does not know"),
        Skipped("07.png", "the file is empty"),
    )
    assert kept.names == sound.names
    assert torch.equal(kept.labels, sound.labels)
    images, labels = kept.__getitems__(list(range(10)))
    assert torch.equal(images, sound.__getitems__(list(range(10)))[0])
    assert torch.equal(labels, sound.labels)
    assert torch.equal(kept[3][0], sound[3][0])
    assert kept[3][1] == sound[3][1]
    assert kept.fingerprint() == sound.fingerprint()
    part = kept.subset([9, 0], torch.tensor([5, 6]))
    assert isinstance(part, CachedImages)
    assert torch.equal(part.__getitems__([0, 1])[0], sound.__getitems__([9, 0])[0])
    assert part.labels.tolist() == [5, 6]
    assert part.fingerprint() == sound.subset([9, 0], torch.tensor([5, 6])).fingerprint()


def test_what_is_decoded_once_is_there(files: FileImages, tmp_path: Path) -> None:
    first, skipped = with_image_cache(files, tmp_path / "cache", True, "skip")
    assert len(Counting.seen) == 12
    for order in (range(12), range(11, -1, -1)):  # in any order
        again, skipped_again = with_image_cache(files.subset(order), tmp_path / "cache", "auto", "skip")
        assert isinstance(again, CachedImages)
        assert sorted(skipped_again) == sorted(skipped)
        of = dict(zip(first.names, first.__getitems__(list(range(10)))[0], strict=True))
        assert all(torch.equal(of[name], again[i][0]) for i, name in enumerate(again.names))
    assert len(Counting.seen) == 12
    assert not list((tmp_path / "cache").rglob("*.part"))


def test_anything_else_is_decoded_anew(sound: FileImages, tmp_path: Path) -> None:
    cache = tmp_path / "cache"

    def reads(images: FileImages) -> int:
        Counting.seen.clear()
        kept, _ = with_image_cache(images, cache, True, "error")
        assert torch.equal(kept.__getitems__([0])[0], images.__getitems__([0])[0])
        return len(Counting.seen) - 1

    assert reads(sound) == 10
    assert reads(sound) == 0
    assert reads(FileImages(sound.paths, sound.labels, Counting(5), sound.root)) == 10
    assert reads(sound.subset([0, 1])) == 2
    (pixels,) = [path for path in (cache / "decoded").glob("*.u8") if path.stat().st_size == 2 * 48]
    pixels.write_bytes(b"cut off")
    assert reads(sound.subset([0, 1])) == 2
    Image.new("RGB", (10, 8), "white").save(sound.paths[0])
    os.utime(sound.paths[0], ns=(0, 1))
    assert reads(sound.looked_at_again()) == 10


def test_broken_files_are_an_error_that_lists_them(files: FileImages, tmp_path: Path) -> None:
    for _ in range(2):  # found, and then known
        with pytest.raises(UserError, match="2 of 12 ") as caught:
            with_image_cache(files, tmp_path / "cache", True, "error")
        assert f"{files.paths[1]}: it is not an image" in str(caught.value)
        assert f"{files.paths[7]}: the file is empty" in str(caught.value)
        assert "on_bad_image=skip" in str(caught.value)
    assert len(Counting.seen) == 12


def test_only_ten_are_named(tmp_path: Path) -> None:
    paths = [tmp_path / f"{index:02d}.jpg" for index in range(30)]
    for path in paths:
        path.write_text("no image")
    Image.new("L", (4, 4)).save(paths[0])
    images = FileImages(paths, [0] * 30, Reader(4))
    with pytest.raises(UserError) as caught:
        with_image_cache(images, tmp_path / "cache", True, "error")
    assert str(caught.value).count(".jpg") == 10
    assert "and 19 more" in str(caught.value)
    with pytest.raises(UserError, match="29 of 29 "):  # nothing would be left
        with_image_cache(images.subset(range(1, 30)), tmp_path / "cache", True, "skip")


def test_without_pixels(files: FileImages, sound: FileImages, tmp_path: Path) -> None:
    same, skipped = with_image_cache(files, tmp_path / "cache", False, "error")
    assert same is files
    assert skipped == ()
    assert not Counting.seen
    for cache, reads in ((tmp_path / "cache", 12), (tmp_path / "cache", 0), (None, 12)):
        Counting.seen.clear()
        left, skipped = with_image_cache(files, cache, False, "skip")
        assert isinstance(left, FileImages)
        assert left.names == sound.names
        assert [name for name, _ in skipped] == ["03.png", "07.png"]
        assert len(Counting.seen) == reads
    assert not list((tmp_path / "cache").rglob("*.u8"))
    kept, _ = with_image_cache(files, tmp_path / "cache", True, "skip")  # the pixels as well, later
    assert isinstance(kept, CachedImages)


def test_no_cache_and_sets_in_memory(sound: FileImages, tmp_path: Path) -> None:
    assert with_image_cache(sound, None, True, "error") == (sound, ())
    array = ArrayImages(torch.zeros(2, 1, 4, 4, dtype=torch.uint8), torch.zeros(2), ["a", "b"])
    assert with_image_cache(array, tmp_path, True, "skip") == (array, ())
    assert not list(tmp_path.rglob("decoded"))


def test_auto_looks_at_the_disk(sound: FileImages, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = module.shutil.disk_usage(tmp_path)
    monkeypatch.setattr(module.shutil, "disk_usage", lambda path: usage._replace(free=10 * 48 * 4))
    with pytest.warns(UserWarning, match="decoded=true"):
        images, _ = with_image_cache(sound, tmp_path / "cache", "auto", "error")
    assert images is sound
    monkeypatch.setattr(module.shutil, "disk_usage", lambda path: usage._replace(free=10 * 48 * 5))
    assert isinstance(with_image_cache(sound, tmp_path / "cache", "auto", "error")[0], CachedImages)


class FullDisk:
    def write(self, data: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")


def test_a_full_disk(files: FileImages, sound: FileImages, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    look = module._Store._look
    monkeypatch.setattr(module._Store, "_look", lambda self, file: look(self, file and FullDisk()))
    with pytest.warns(UserWarning, match="No space left on device"):
        images, skipped = with_image_cache(sound, tmp_path / "cache", True, "error")
    assert images is sound
    with pytest.warns(UserWarning, match="No space left on device"):
        images, skipped = with_image_cache(files, tmp_path / "cache", True, "skip")
    assert images.names == sound.names
    assert len(skipped) == 2
    assert not list((tmp_path / "cache").rglob("*.u8*"))


def test_a_cache_that_cannot_be_written(files: FileImages, sound: FileImages, tmp_path: Path) -> None:
    (tmp_path / "cache").write_text("a file where a folder should be")
    with pytest.warns(UserWarning, match=r"File exists|Not a directory"):
        assert with_image_cache(sound, tmp_path / "cache", True, "error")[0] is sound
    with pytest.warns(UserWarning, match=r"File exists|Not a directory"):
        images, skipped = with_image_cache(files, tmp_path / "cache", False, "skip")
    assert images.names == sound.names
    assert len(skipped) == 2


def test_a_pickle_is_small_and_reads_the_file(sound: FileImages, tmp_path: Path) -> None:
    kept, _ = with_image_cache(sound, tmp_path / "cache", True, "error")
    before = kept.__getitems__([1, 2])[0]
    data = pickle.dumps(kept)
    assert len(data) < 4000
    assert torch.equal(pickle.loads(data).__getitems__([1, 2])[0], before)
    before.zero_()  # a batch is a copy
    assert kept.__getitems__([1, 2])[0].any()


def test_two_runs_at_a_time_decode_once(sound: FileImages, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_PATIENCE", 0.05)
    slow = Reader.__call__

    def read(self: Reader, path: str | Path) -> torch.Tensor:
        time.sleep(0.03)
        return slow(self, path)

    monkeypatch.setattr(Reader, "__call__", read)
    results = []
    runs = [
        threading.Thread(target=lambda: results.append(with_image_cache(sound, tmp_path / "cache", True, "error")))
        for _ in range(2)
    ]
    for run in runs:
        run.start()
    for run in runs:
        run.join()
    assert len(Counting.seen) == 10
    assert all(isinstance(images, CachedImages) for images, _ in results)


def test_a_long_decoding_prints_a_line(
    sound: FileImages, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(module, "_PATIENCE", 3600.0)
    with_image_cache(sound, tmp_path / "cache", True, "error")
    assert capsys.readouterr().err == ""
    monkeypatch.setattr(module, "_PATIENCE", 0.0)
    with_image_cache(sound, tmp_path / "other", True, "error")
    assert capsys.readouterr().err.count("decoding images: 10") == 1


def test_senseless_settings(sound: FileImages, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"'ignore'.*skip"):
        with_image_cache(sound, tmp_path, True, "ignore")
    with pytest.raises(UserError, match=r"'yes'.*auto"):
        with_image_cache(sound, tmp_path, "yes", "skip")


def test_a_file_that_breaks_later_is_found_when_read(sound: FileImages) -> None:
    images, _ = with_image_cache(sound, None, "auto", "error")
    Path(sound.paths[0]).write_text("no image")
    with pytest.raises(BadImage):
        images[0]
