"""The classes of a published classifier, as a source task without images."""

from __future__ import annotations

from pathlib import Path

import pytest
import timm.data
from PIL import Image

from jtln.data.category_pair import CategoryPair
from jtln.data.collections.classifier import Classifier
from jtln.data.collections.folder import Folder
from jtln.errors import UserError


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name in ("goldfish", "shed", "hut"):
        (tmp_path / "mine" / name).mkdir(parents=True)
        for index in range(5):
            Image.new("RGB", (16, 16), (40 * index, 80, len(name))).save(tmp_path / "mine" / name / f"{index}.png")
    return tmp_path / "mine"


def pair(folder: Path, **settings: object) -> CategoryPair:
    options = {"overlap": "keep", "validation": 0, "shots": None, "image_size": 16, **settings}
    return CategoryPair("mine", Folder(folder), Classifier(), "all", "rest", **options)  # type: ignore[arg-type]


def test_the_classes_are_imagenets_in_timms_order() -> None:
    classes = Classifier().classes
    info = timm.data.ImageNetInfo("imagenet-1k")
    assert list(classes.synsets or ()) == info.label_names()
    assert len(set(classes.names)) == 1000


@pytest.mark.parametrize(
    ("network", "size"),
    [
        ("tf_efficientnet_lite0", 1000),
        ("resnet50", 1000),
        ("convnext_tiny.in12k", 11821),
        ("vit_base_patch16_224.augreg_in21k", 21843),
        ("no such network", 1000),
        (None, 1000),
    ],
)
def test_timm_knows_what_a_network_tells_apart(network: str | None, size: int) -> None:
    classes = Classifier(network=network).classes
    assert len(classes) == size
    assert all(synset is not None for synset in classes.synsets or ())


def test_a_csv_file_of_other_classifiers(tmp_path: Path) -> None:
    (tmp_path / "own.csv").write_text("class,synset\nmug,n03797390\ncup,n03147509\n")
    assert Classifier(tmp_path / "own.csv").classes.names == ("mug", "cup")
    with pytest.raises(UserError, match="labels, but got 'imagenet-7'"):
        Classifier("imagenet-7")
    with pytest.raises(UserError, match="temperature, but got 0"):
        Classifier(temperature=0)


def test_a_pair_has_no_source_image_and_no_validation_image(folder: Path) -> None:
    spec = pair(folder)
    assert (spec.has_source_images, spec.classifier_size) == (False, 1000)
    assert spec.classifier_rows == tuple(range(1000))
    loaded = spec.load()
    assert [len(part) for part in (loaded.source.train, loaded.source.val, loaded.source.test)] == [0, 0, 0]
    assert [len(part) for part in (loaded.target.train, loaded.target.val, loaded.target.test)] == [12, 0, 3]


def test_classes_on_both_sides_are_left_out_of_the_classifier(folder: Path) -> None:
    spec = pair(folder, overlap="drop")
    rows = [index for index in range(1000) if index != 1]  # goldfish is the second class; shed and hut are none
    assert spec.classifier_rows == tuple(rows)
    assert (spec.dropped, spec.classifier_size) == (("goldfish",), 1000)


def test_own_validation_images_are_left_out_where_none_are_wanted(folder: Path) -> None:
    for part, name in (("train", "a"), ("train", "b"), ("val", "a"), ("val", "b"), ("test", "a"), ("test", "b")):
        (folder.parent / "parts" / part / name).mkdir(parents=True)
        for index in range(2):
            path = folder.parent / "parts" / part / name / f"{part}{index}.png"
            Image.new("RGB", (16, 16), (90 * index, len(part), ord(name))).save(path)
    assert len(pair(folder.parent / "parts").load().target.val) == 0
    with pytest.warns(UserWarning, match="validation"):
        assert len(pair(folder.parent / "parts", validation=1).load().target.val) == 4
