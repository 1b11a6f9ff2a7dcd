"""The published collections, on tiny copies in their own layouts: which images there are, in which class and part."""

from __future__ import annotations

import warnings
from pathlib import Path

import layouts
import pytest
import torch
from collections_made import ALL, made, without_checksums
from PIL import Image
from torchvision import datasets
from torchvision.transforms.v2 import functional as v2

from jtln.data.collections.base import Listed, Published, by_folder, classes_of
from jtln.data.collections.caltech import Caltech256
from jtln.data.collections.imagenet import ImageNet
from jtln.data.collections.office import Office31
from jtln.data.files import FileImages, Reader
from jtln.errors import UserError

READER = Reader(16)
OFFICIAL = {
    "aircraft": {"train", "val", "test"},
    "flowers102": {"train", "val", "test"},
    "dtd": {"train", "val", "test"},
}
UNDIVIDED = {"caltech101", "caltech256", "office31"}


@pytest.fixture(autouse=True)
def tiny_copies(monkeypatch: pytest.MonkeyPatch) -> None:
    without_checksums(monkeypatch)
    monkeypatch.setattr("urllib.request.urlopen", lambda *_, **__: pytest.fail("wanted to fetch something"))


def partial(collection: type[Published], root: Path, **settings: object) -> Published:
    """The collection, without the warning that a copy lacks classes."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*are left out.*")
        return collection(root, **settings)


@pytest.mark.parametrize("name", ALL)
def test_every_image_is_in_its_class_and_part(name: str, tmp_path: Path) -> None:
    written = made(name, tmp_path)
    collection = partial(ALL[name].collection, tmp_path, download=False)
    parts = collection.parts(READER)
    assert set(parts) == (OFFICIAL.get(name) or ({"train"} if name in UNDIVIDED else {"train", "test"}))
    classes, kinds = classes_of(name)
    name_of = dict(zip(kinds, classes.names, strict=True))
    for part, images in parts.items():
        got = {(path, collection.classes.names[label]) for path, label in zip(images.names, images.labels, strict=True)}
        assert got == {(path, name_of[kind]) for path, kind in written[part]}
        assert len(images) == len(written[part])
        image, label = images[3]
        assert image.shape == (3, 16, 16)
        assert label == images.labels[3]


@pytest.mark.parametrize("name", ALL)
def test_all_classes_are_known_without_a_copy(name: str, tmp_path: Path) -> None:
    collection = ALL[name].collection(tmp_path / "nothing")
    assert collection.classes == classes_of(name)[0]
    assert not (tmp_path / "nothing").exists()


def test_a_table_of_classes_outside_the_package(tmp_path: Path) -> None:
    (tmp_path / "toys.csv").write_text("class,folder,synset\nTeddy bear,teddy,teddy.n.01\nyo-yo,,\n", encoding="utf-8")
    for kind in ("teddy", "yo-yo"):
        (tmp_path / "toys" / kind).mkdir(parents=True)
        Image.new("RGB", (8, 8)).save(tmp_path / "toys" / kind / "0.png")

    class Toys(Published):
        name, folder, layout, table = "toys", "toys", "toys/teddy/*.png", tmp_path / "toys.csv"

        def files(self) -> dict[str, Listed]:
            return {"train": by_folder(self.root / self.folder, self.kinds)}

    toys = Toys(tmp_path)
    assert toys.classes.names == ("Teddy bear", "yo-yo")
    assert toys.parts(READER)["train"].labels.tolist() == [0, 1]


TORCHVISION = {
    "aircraft": (datasets.FGVCAircraft, {"split": "test"}),
    "caltech101": (datasets.Caltech101, {}),
    "caltech256": (datasets.Caltech256, {}),
    "cars": (datasets.StanfordCars, {"split": "test"}),
    "dtd": (datasets.DTD, {"split": "test"}),
    "flowers102": (datasets.Flowers102, {"split": "test"}),
    "food101": (datasets.Food101, {"split": "test"}),
    "pets": (datasets.OxfordIIITPet, {"split": "test"}),
    "places365": (datasets.Places365, {"split": "val", "small": True}),
}


@pytest.mark.parametrize("name", TORCHVISION)
def test_images_and_classes_are_those_that_torchvision_reads(name: str, tmp_path: Path) -> None:
    kinds = ("001.ak47", "002.american-flag", "003.backpack") if name == "caltech256" else ALL[name].kinds
    ALL[name].make(tmp_path, kinds)
    if name == "caltech256":  # torchvision's labels are right only in a copy without gaps
        (clutter,) = (tmp_path / "caltech256/256_ObjectCategories").glob("257.*")
        for path in clutter.iterdir():
            path.rename(path.with_name(path.name.replace("257", "004")))
    make, settings = TORCHVISION[name]
    theirs = make(str(tmp_path), **settings)
    called = getattr(theirs, "classes", None) or getattr(theirs, "categories", None)
    collection = partial(ALL[name].collection, tmp_path, download=False)
    ours = collection.parts(READER)["test" if settings else "train"]
    assert isinstance(ours, FileImages)
    classes, all_kinds = classes_of(name)
    kind_of = dict(zip(classes.names, all_kinds, strict=True))
    by_path = {}
    for path, label in zip(ours.paths, ours.labels.tolist(), strict=True):
        with Image.open(path) as image:
            by_path[v2.pil_to_tensor(image.convert("RGB")).numpy().tobytes()] = kind_of[collection.classes.names[label]]
    got = 0
    for index in range(len(theirs)):
        image, label = theirs[index]
        if called[label] == "257.clutter":
            continue
        assert by_path[v2.pil_to_tensor(image.convert("RGB")).numpy().tobytes()] == called[label]
        got += 1
    assert got == len(ours)


def test_small_images_come_in_the_size_that_the_reader_gives(tmp_path: Path) -> None:
    made("cifar10", tmp_path)
    theirs = datasets.CIFAR10(str(tmp_path), train=False)
    whole = ALL["cifar10"].collection(tmp_path).parts(Reader(32))["test"]
    assert torch.equal(whole[7][0], v2.pil_to_tensor(theirs[7][0]))
    assert theirs.classes[theirs[7][1]] == ALL["cifar10"].collection(tmp_path).classes.names[whole[7][1]]
    halved = ALL["cifar10"].collection(tmp_path).parts(Reader(16))["test"]
    assert torch.equal(halved[7][0], v2.resize(whole[7][0], [16, 16], antialias=True))


# What a copy lacks, or has besides.


def test_classes_that_a_copy_lacks_are_left_out_with_a_warning(tmp_path: Path) -> None:
    made("caltech256", tmp_path)
    with pytest.warns(UserWarning, match=r"5 of .*256 classes.*AK-47, American flag"):
        collection = Caltech256(tmp_path)
    classes, kinds = classes_of("caltech256")
    there = [name for name, kind in zip(classes, kinds, strict=True) if kind in ALL["caltech256"].kinds]
    assert list(collection.classes) == there
    images = collection.parts(READER)["train"]
    assert set(images.labels.tolist()) == set(range(5))


def test_a_whole_copy_is_no_reason_to_warn(tmp_path: Path, recwarn: pytest.WarningsRecorder) -> None:
    layouts.office31(tmp_path, classes_of("office31")[1], count=3)
    assert len(Office31(tmp_path).classes) == 31
    assert not recwarn


def test_labels_do_not_depend_on_what_a_copy_lacks(tmp_path: Path) -> None:
    """It does not depend on gaps in the numbers of a class's files, which torchvision takes for missing files."""
    made("caltech256", tmp_path)
    folder = tmp_path / "caltech256/256_ObjectCategories"
    (folder / "056.dog" / "056_0002.jpg").unlink()
    (folder / "056.dog" / "._056_0001.jpg").write_bytes(b"macOS")
    (folder / ".DS_Store").write_bytes(b"macOS")
    collection = partial(Caltech256, tmp_path)
    images = collection.parts(READER)["train"]
    dogs = [name[-12:] for name, label in zip(images.names, images.labels, strict=True) if "056.dog" in name]
    assert dogs == ["056_0001.jpg", "056_0003.jpg", "056_0004.jpg"]
    assert {collection.classes.names[label] for label in images.labels[:4].tolist()} == {"backpack"}


# Which folder root may be.


@pytest.mark.parametrize(
    ("name", "level"),
    [
        ("caltech256", "caltech256"),
        ("caltech256", "caltech256/256_ObjectCategories"),
        ("aircraft", "fgvc-aircraft-2013b"),
        ("aircraft", "fgvc-aircraft-2013b/data"),
        ("office31", "office31"),
        ("office31", "office31/amazon"),
        ("office31", "office31/amazon/images"),
        ("cub200", "CUB_200_2011"),
        ("dtd", "dtd"),
        ("imagenet", "train"),
    ],
)
def test_root_may_be_a_folder_within(name: str, level: str, tmp_path: Path) -> None:
    written = made(name, tmp_path)
    parts = partial(ALL[name].collection, tmp_path / level, download=False).parts(READER)
    assert {part: len(images) for part, images in parts.items()} == {part: len(each) for part, each in written.items()}


@pytest.mark.parametrize("name", ["caltech256", "caltech101"])
def test_the_categories_may_lie_in_any_folder(name: str, tmp_path: Path) -> None:
    written = made(name, tmp_path / "original")
    (inner,) = (path for path in (tmp_path / "original" / name).iterdir() if "ObjectCategories" in path.name)
    inner.rename(tmp_path / inner.name)
    assert len(partial(ALL[name].collection, tmp_path).parts(READER)["train"]) == len(written["train"])
    (tmp_path / inner.name).rename(tmp_path / "mine")
    assert len(partial(ALL[name].collection, tmp_path / "mine").parts(READER)["train"]) == len(written["train"])


@pytest.mark.parametrize(("domain", "images"), [("amazon", 24), ("webcam", 18), ("dslr", 12)])
@pytest.mark.parametrize("renamed", ["office31", "Office-31", "."])
def test_office_has_three_domains(domain: str, images: int, renamed: str, tmp_path: Path) -> None:
    made("office31", tmp_path)
    (tmp_path / "mine" / renamed).parent.mkdir(exist_ok=True)
    (tmp_path / "office31").rename(tmp_path / "mine" / renamed)
    office = partial(Office31, tmp_path / "mine", domain=domain)
    found = office.parts(READER)["train"]
    assert len(found) == images
    assert all(f"{domain}/images" in name for name in found.names)


def test_an_unknown_domain_is_named() -> None:
    with pytest.raises(UserError, match=r"'amazn'.*amazon, dslr, webcam.*'amazon'"):
        Office31(domain="amazn")


def test_imagenet_without_a_validation_part_trains_alone(tmp_path: Path) -> None:
    written = made("imagenet", tmp_path)
    for path in sorted((tmp_path / "val").rglob("*"), reverse=True):
        path.unlink() if path.is_file() else path.rmdir()
    (tmp_path / "val").rmdir()
    parts = partial(ImageNet, tmp_path).parts(READER)
    assert {part: len(images) for part, images in parts.items()} == {"train": len(written["train"])}


def test_the_aircraft_know_their_makers() -> None:
    classes, _ = classes_of("aircraft")
    makers = [path[-2] for path in classes.paths or () if path]
    assert (len(makers), makers.count("Boeing"), makers.count("Airbus")) == (100, 22, 13)
