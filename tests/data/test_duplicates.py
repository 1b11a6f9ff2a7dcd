import shutil
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from jtln.data.cache import CachedImages, with_image_cache
from jtln.data.category_pair import CategoryPair
from jtln.data.collections.folder import Folder
from jtln.data.duplicates import Repeat, repeats, unseen
from jtln.data.files import FileImages, Reader
from jtln.data.images import ImageSet
from jtln.data.pairs import Pair
from jtln.training.run_folder import write_split

CLASSES = ("ant", "bee", "cat", "dog")


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Twelve images of noise a class, no two alike."""
    noise = np.random.default_rng(0)
    for name in CLASSES:
        (tmp_path / "x" / name).mkdir(parents=True)
        for index in range(12):
            pixels = noise.integers(0, 255, (8, 8, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(tmp_path / "x" / name / f"{index:02d}.png")
    return tmp_path / "x"


def load(root: Path, cache: bool = True, **settings: Any) -> Pair:
    usual: dict[str, Any] = {"target_classes": ["ant", "bee"], "image_size": 8, "shots": 2}
    kept = root.parent / "cache" if cache else None
    return CategoryPair("x", Folder(root), cache=kept, **{**usual, **settings}).load()


def compared(images: Iterable[ImageSet]) -> dict[str, tuple[bytes, int]]:
    """The pixels and label of each image, read from its file."""
    return {
        name: (image.numpy().tobytes(), label)
        for part in images
        for name, (image, label) in zip(part.names, (part[index] for index in range(len(part))), strict=True)
    }


def test_images_of_one_kind_are_not_repeats(root: Path) -> None:
    assert repeats(load(root)) == ()


def test_what_is_in_two_parts_or_classes_is_found(root: Path) -> None:
    pair = load(root)
    target, source = pair.target, pair.source
    copies = {  # a copy takes the place of an image in another part
        target.test.names[0]: target.train.names[1],
        target.test.names[1]: target.val.names[0],
        target.val.names[1]: target.train.names[0],
        target.test.names[2]: source.train.names[3],
        source.train.names[0]: next(name for name in source.val.names if name[:3] != source.train.names[0][:3]),
    }
    for copy, of in copies.items():
        if of.startswith("ant/"):  # as another format holds them
            Image.open(root / of).save(root / copy, format="BMP")
        else:
            shutil.copy(root / of, root / copy)
    again = load(root)
    found = repeats(again)
    parts = {"test": again.target.test, "validation": again.target.val, "source": again.target.test}
    others = {
        "test": (again.target.train, again.target.val),
        "validation": (again.target.train,),
        "source": (again.source.train,),
    }
    for what in parts:  # pixel by pixel
        known = {pixels for pixels, _ in compared(others[what]).values()}
        expected = {name for name, (pixels, _) in compared([parts[what]]).items() if pixels in known}
        assert expected
        assert {Path(each.image).relative_to(root).as_posix() for each in found if each.what == what} == expected
    tasks = {
        "target": compared([again.target.train, again.target.val, again.target.test]),
        "source": compared([again.source.train, again.source.val]),
    }
    torn = [each for each in found if each.what == "classes"]
    assert torn
    for each in torn:
        held = tasks["target" if Path(each.image).parent.name in ("ant", "bee") else "source"]
        first, second = (held[Path(path).relative_to(root).as_posix()] for path in (each.image, each.twin))
        assert first[0] == second[0]
        assert first[1] != second[1]


def test_files_that_are_not_kept_are_not_looked_at(root: Path) -> None:
    for path in (root / "ant").iterdir():
        shutil.copy(root / "bee" / "00.png", path)
    assert repeats(load(root))
    assert unseen(load(root)) == 0
    assert repeats(load(root, cache=False)) == ()
    assert unseen(load(root, cache=False)) == 24 + 12  # all of the source; of the target two a class and part


def test_hashes_are_of_the_pixels_and_kept(root: Path, tmp_path: Path) -> None:
    paths = sorted(root.rglob("*.png"))
    shutil.copy(paths[3], paths[40])
    images, _ = with_image_cache(FileImages(paths, [0] * 48, Reader(8)), tmp_path / "kept", True, "error")
    assert isinstance(images, CachedImages)
    hashes = images.hashes()
    pixels = [images[index][0].numpy().tobytes() for index in range(48)]
    same = [[first == second for second in pixels] for first in pixels]
    assert np.array_equal(hashes[:, None] == hashes[None], same)
    assert np.array_equal(images.subset(torch.tensor([40, 3])).hashes(), hashes[[40, 3]])  # type: ignore[attr-defined]
    (kept,) = (tmp_path / "kept").rglob("*.sums")
    for spoilt in (kept.read_bytes()[::-1], b"cut off"):
        kept.write_bytes(spoilt)
        with pytest.warns(UserWarning, match="damaged"):
            again, _ = with_image_cache(FileImages(paths, [0] * 48, Reader(8)), tmp_path / "kept", True, "error")
        assert np.array_equal(again.hashes(), hashes)  # type: ignore[attr-defined]


def test_they_are_listed_in_the_run_folder(root: Path, tmp_path: Path) -> None:
    pair = load(root)
    write_split(tmp_path, pair)
    assert not (tmp_path / "repeated.csv").exists()
    write_split(tmp_path, pair, [Repeat("test", "a,b.png", "c.png")])
    assert (tmp_path / "repeated.csv").read_text().split() == ["what,image,twin", 'test,"a,b.png",c.png']
