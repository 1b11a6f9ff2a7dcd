"""Published collections that are not there, or not whole: fetching them, and the messages where that fails."""

from __future__ import annotations

import io
import os
import shutil
import tarfile
import threading
import urllib.error
from collections.abc import Callable
from pathlib import Path

import layouts
import pytest
from collections_made import ALL, made, without_checksums
from torchvision import datasets

from jtln.data.collections.aircraft import Aircraft
from jtln.data.collections.base import classes_of
from jtln.data.collections.caltech import Caltech256
from jtln.data.collections.cub import CUB200
from jtln.data.collections.imagenet import ImageNet
from jtln.data.collections.places import Places365
from jtln.data.files import Reader
from jtln.errors import UserError

READER = Reader(16)
WHOLE = classes_of("aircraft")[1]


@pytest.fixture
def no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object, **__: object) -> None:
        raise urllib.error.URLError(OSError(-2, "Name or service not known"))

    monkeypatch.setattr("urllib.request.urlopen", fail)


@pytest.fixture
def serve(monkeypatch: pytest.MonkeyPatch) -> Callable[[Path], list[str]]:
    """``serve(file)`` makes every download return that file, and returns the requested addresses."""

    def run(file: Path) -> list[str]:
        asked: list[str] = []

        def fetch(url: str, filename: str | Path, **_: object) -> None:
            asked.append(url)
            shutil.copyfile(file, filename)

        monkeypatch.setattr("torchvision.datasets.utils._get_redirect_url", lambda url, **_: url)
        monkeypatch.setattr("torchvision.datasets.utils._urlretrieve", fetch)
        return asked

    return run


def packed(folder: Path, archive: Path) -> Path:
    """A .tar or .tar.gz of what lies in ``folder``."""
    with tarfile.open(archive, "w:gz" if archive.suffix == ".gz" else "w") as tar:
        for path in sorted(folder.iterdir()):
            tar.add(path, path.name)
    return archive


@pytest.mark.parametrize("name", ALL)
def test_a_root_that_is_not_there_is_named_with_what_it_should_hold(name: str, tmp_path: Path) -> None:
    with pytest.raises(UserError) as caught:
        ALL[name].collection(tmp_path / "nowhere", download=False).parts(READER)
    message = str(caught.value)
    assert message.startswith("expected ")
    assert f"in {tmp_path / 'nowhere'}, but got: " in message
    assert "dataset.root=DIR" in message
    assert "\n" not in message
    fetchable = name not in ("cars", "office31")
    assert ("dataset.download=true" in message) == fetchable
    assert ("be fetched" in message) == (not fetchable)
    assert not (tmp_path / "nowhere").exists()


@pytest.mark.usefixtures("no_network")
@pytest.mark.parametrize("name", sorted(set(ALL) - {"cars", "office31", "imagenet"}))
def test_without_a_network_the_remedy_is_named(name: str, tmp_path: Path) -> None:
    for _ in range(2):  # and the second try says the same
        with pytest.raises(UserError, match=r"Name or service not known.*root=DIR"):
            ALL[name].collection(tmp_path).parts(READER)


def test_a_collection_is_fetched_once(tmp_path: Path, serve: Callable[[Path], list[str]]) -> None:
    written = layouts.aircraft(tmp_path / "original", WHOLE, count=1)
    asked = serve(packed(tmp_path / "original", tmp_path / "aircraft.tar.gz"))
    root = tmp_path / "data"
    sizes: list[dict[str, int]] = []

    def read() -> None:
        sizes.append({part: len(images) for part, images in Aircraft(root).parts(READER).items()})

    several = [threading.Thread(target=read) for _ in range(3)]
    for each in several:
        each.start()
    for each in several:
        each.join()
    assert sizes == [{part: len(files) for part, files in written.items()}] * 3
    assert asked == ["https://www.robots.ox.ac.uk/~vgg/data/fgvc-aircraft/archives/fgvc-aircraft-2013b.tar.gz"]
    assert not list(root.glob(".*.unfinished"))


def test_caltech_and_cub_are_fetched(
    tmp_path: Path, serve: Callable[[Path], list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    without_checksums(monkeypatch)
    layouts.caltech256(tmp_path / "a", classes_of("caltech256")[1], count=1)
    asked = serve(packed(tmp_path / "a" / "caltech256", tmp_path / "a.tar"))
    assert len(Caltech256(tmp_path / "data").parts(READER)["train"]) == 256
    layouts.cub200(tmp_path / "b", classes_of("cub200")[1], count=1)
    asked += serve(packed(tmp_path / "b", tmp_path / "b.tar.gz"))
    parts = CUB200(tmp_path / "data").parts(READER)
    assert (len(parts["train"]), len(parts["test"])) == (200, 200)
    assert asked[0].startswith("https://data.caltech.edu/")


def test_a_wrong_checksum_is_no_copy(tmp_path: Path, serve: Callable[[Path], list[str]]) -> None:
    junk = tmp_path / "junk"
    junk.write_bytes(b"<html>not found</html>")
    serve(junk)
    with pytest.raises(UserError) as caught:
        CUB200(tmp_path / "data").parts(READER)
    message = str(caught.value)
    assert "File not found or corrupted" in message
    assert f"There is {tmp_path / 'data' / 'CUB_200_2011.tgz'}: if its download is incomplete, delete it" in message


def test_half_an_archive_is_named_and_what_came_of_it_is_not_taken_for_the_whole(
    tmp_path: Path, serve: Callable[[Path], list[str]]
) -> None:
    layouts.aircraft(tmp_path / "original", WHOLE, count=1)
    archive = packed(tmp_path / "original", tmp_path / "aircraft.tar.gz")
    archive.write_bytes(archive.read_bytes()[: archive.stat().st_size * 2 // 3])
    serve(archive)
    root = tmp_path / "data"
    with pytest.raises(UserError, match=r"There is .*fgvc-aircraft-2013b\.tar\.gz"):
        Aircraft(root).parts(READER)
    assert (root / "fgvc-aircraft-2013b" / "data").is_dir()  # a part of it is there
    for download in (True, False):
        with pytest.raises(UserError, match=r"delete .*fgvc-aircraft-2013b"):
            Aircraft(root, download=download).parts(READER)


def test_a_download_that_is_interrupted_can_be_repeated(
    tmp_path: Path, serve: Callable[[Path], list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    layouts.aircraft(tmp_path / "original", WHOLE, count=1)
    archive = packed(tmp_path / "original", tmp_path / "aircraft.tar.gz")

    def interrupt(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("torchvision.datasets.utils._get_redirect_url", interrupt)
        with pytest.raises(KeyboardInterrupt):
            Aircraft(tmp_path / "data").parts(READER)
    serve(archive)
    assert set(Aircraft(tmp_path / "data").parts(READER)) == {"train", "val", "test"}


def test_each_part_of_places_is_whole_or_not(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    without_checksums(monkeypatch)
    made("places365", tmp_path)
    shutil.rmtree(tmp_path / "val_256")

    def stopped(root: str, split: str, small: bool, download: bool = False) -> datasets.Places365:
        if download:
            (tmp_path / "val_256").mkdir()
            raise KeyboardInterrupt
        return Original(root, split=split, small=small)

    Original = datasets.Places365
    monkeypatch.setattr(datasets, "Places365", stopped)
    with pytest.raises(KeyboardInterrupt):
        Places365(tmp_path).parts(READER)
    for download in (True, False):
        with pytest.raises(UserError, match=r"delete .*val_256"):
            Places365(tmp_path, download=download).parts(READER)


@pytest.mark.parametrize(
    ("name", "lost"),
    [
        ("aircraft", "fgvc-aircraft-2013b/data/images_variant_test.txt"),
        ("cub200", "CUB_200_2011/train_test_split.txt"),
        ("dtd", "dtd/dtd/labels/val1.txt"),
        ("food101", "food-101/meta/test.json"),
        ("pets", "oxford-iiit-pet/annotations/test.txt"),
        ("cars", "stanford_cars/devkit/cars_meta.mat"),
    ],
)
def test_a_table_that_is_lost_is_named(name: str, lost: str, tmp_path: Path) -> None:
    made(name, tmp_path)
    (tmp_path / lost).unlink()
    with pytest.raises(UserError, match=Path(lost).name):
        ALL[name].collection(tmp_path).parts(READER)


@pytest.mark.parametrize(
    ("name", "table"), [("aircraft", "variants.txt"), ("cub200", "classes.txt"), ("food101", "train.json")]
)
def test_a_table_that_is_damaged_is_no_traceback(name: str, table: str, tmp_path: Path) -> None:
    made(name, tmp_path)
    (path,) = tmp_path.rglob(table)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(UserError, match=table):
        ALL[name].collection(tmp_path).parts(READER)


def test_a_root_that_may_not_be_read_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made("caltech256", tmp_path)
    monkeypatch.setattr(os, "access", lambda *_: False)
    with pytest.raises(UserError, match=r"permission.*chmod -R u\+rX"):
        ALL["caltech256"].collection(tmp_path).parts(READER)


def test_folders_without_images_are_no_copy(tmp_path: Path) -> None:
    for kind in classes_of("office31")[1]:
        (tmp_path / "office31/amazon/images" / kind).mkdir(parents=True)
    with pytest.raises(UserError, match=r"no images in .*back_pack"):
        ALL["office31"].collection(tmp_path).parts(READER)


def imagenet_archives(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The three archives as they are published, of two classes: one archive a class in the training archive."""
    import numpy as np
    from scipy.io import savemat

    monkeypatch.setattr("torchvision.datasets.imagenet.check_integrity", lambda path, md5=None: os.path.isfile(path))
    kinds = classes_of("imagenet")[1][:2]
    layouts.imagenet(root / "plain", kinds)
    with tarfile.open(root / "ILSVRC2012_img_train.tar", "w") as outer:
        for kind in kinds:
            inner = io.BytesIO()
            with tarfile.open(fileobj=inner, mode="w") as tar:
                for path in sorted((root / "plain/train" / kind).iterdir()):
                    tar.add(path, path.name)
            member = tarfile.TarInfo(f"{kind}.tar")
            member.size = len(inner.getvalue())
            outer.addfile(member, io.BytesIO(inner.getvalue()))
    val = sorted((root / "plain/val").rglob("*.JPEG"), key=lambda path: path.name)
    with tarfile.open(root / "ILSVRC2012_img_val.tar", "w") as tar:
        for path in val:
            tar.add(path, path.name)
    devkit = root / "devkit" / "ILSVRC2012_devkit_t12" / "data"
    devkit.mkdir(parents=True)
    fields = [(name, object) for name in ("ILSVRC2012_ID", "WNID", "words", "gloss", "num_children")]
    rows = [(label, kind, f"word {label}, other", "gloss", 0) for label, kind in enumerate(kinds, 1)]
    savemat(devkit / "meta.mat", {"synsets": np.array(rows, dtype=fields)[:, None]})
    layouts.lines(
        devkit / "ILSVRC2012_validation_ground_truth.txt", [kinds.index(path.parent.name) + 1 for path in val]
    )
    packed(root / "devkit", root / "devkit.tar.gz").rename(root / "ILSVRC2012_devkit_t12.tar.gz")
    shutil.rmtree(root / "plain")


def test_the_archives_of_imagenet_are_unpacked_where_they_lie(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    imagenet_archives(tmp_path, monkeypatch)
    with pytest.raises(UserError, match=r"ILSVRC2012_img_train\.tar"):
        ImageNet(tmp_path, download=False).parts(READER)
    parts = ImageNet(tmp_path).parts(READER)
    assert {part: len(images) for part, images in parts.items()} == {"train": 8, "test": 4}
    assert parts["train"].labels.unique().tolist() == [0, 1]
    for images in parts.values():
        for name, label in zip(images.names, images.labels.tolist(), strict=True):
            assert name.split("/")[1] == classes_of("imagenet")[1][label]
