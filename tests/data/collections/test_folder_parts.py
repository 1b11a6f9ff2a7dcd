"""The user's own parts, paths that are empty, and what identifies the user's own images."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from layouts import dtd
from PIL import Image
from task_parts import parts
from tiny import TinySpec

from jtln.costs.file import FileCost
from jtln.costs.taxonomy import TaxonomyCost
from jtln.data import content
from jtln.data.category_pair import CategoryPair
from jtln.data.collections.caltech import Caltech101
from jtln.data.collections.cifar import CIFAR10
from jtln.data.collections.fashion import Fashion, FashionFull
from jtln.data.collections.folder import Folder
from jtln.data.collections.imagenet import ImageNet
from jtln.data.collections.office import Office31
from jtln.data.collections.textures import DTD
from jtln.data.pairs import Task
from jtln.errors import UserError

NAMES = ("ant", "bee", "cat", "dog")
COUNTS = {"train": 8, "val": 4, "test": 3}


def picture(path: Path, value: tuple[int, int, int]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (6, 5), value).save(path)


@pytest.fixture
def by_patient(tmp_path: Path) -> Path:
    """train/, val/ and test/ with a folder for each of four classes, from different patients."""
    for number, (part, count) in enumerate(COUNTS.items()):
        for label, name in enumerate(NAMES):
            for index in range(count):
                picture(tmp_path / "x" / part / name / f"{part}{index}.bmp", (60 * label, 80 * number, index))
    return tmp_path / "x"


def table(root: Path) -> Path:
    """The same as a CSV file."""
    lines = [f"{path.relative_to(root.parent)},{path.parent.name},{path.parts[-3]}" for path in root.rglob("*.bmp")]
    path = root.parent / "list.csv"
    path.write_text("\n".join(["path,label,split", *sorted(lines)]) + "\n")
    return path


def spec(root: Path, **settings: Any) -> CategoryPair:
    usual: dict[str, Any] = {"target_classes": ["ant", "bee"], "image_size": 4, "shots": None}
    return CategoryPair("x", Folder(root), **{**usual, **settings})


def origins(task: Task) -> dict[str, set[str]]:
    """Return the user's parts from which the images of each part of the task come."""
    return {
        part: {next(name for name in COUNTS if f"{name}/" in each) for each in images.names}
        for part, images in parts(task).items()
    }


OWN = {part: {part} for part in COUNTS}


# Parts.


@pytest.mark.parametrize("listed", [False, True])
@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"validation": 0.5, "source_validation": 2},
        {"validation": None, "source_validation": None},
        {"validation": 3},
    ],
)
@pytest.mark.filterwarnings("ignore:.*is not used")
def test_a_validation_part_of_your_own_stays_one(by_patient: Path, listed: bool, settings: dict[str, Any]) -> None:
    loaded = spec(table(by_patient) if listed else by_patient, **settings).load()
    for task in (loaded.source, loaded.target):
        assert origins(task) == OWN
        assert {part: len(images) for part, images in parts(task).items()} == {k: 2 * n for k, n in COUNTS.items()}


@pytest.mark.parametrize("listed", [False, True])
def test_it_is_pooled_where_that_is_asked_for(by_patient: Path, listed: bool) -> None:
    loaded = spec(table(by_patient) if listed else by_patient, pool_validation=True, validation=0.25).load()
    for task in (loaded.source, loaded.target):
        assert origins(task)["test"] == {"test"}
        assert origins(task)["train"] == {"train", "val"}
    assert [len(part) for part in parts(loaded.target).values()] == [18, 6, 6]
    official = spec(by_patient, pool_validation=True, validation=None, source_validation=None).load()
    assert origins(official.target) == OWN


def test_a_line_tells_what_is_not_used(by_patient: Path, recwarn: pytest.WarningsRecorder) -> None:
    def lines(**settings: Any) -> list[str]:
        recwarn.clear()
        spec(by_patient, **settings).load()
        return [str(each.message).split(" is not used")[0] for each in recwarn if "is not used" in str(each.message)]

    assert lines() == ["dataset.validation=0.2", "dataset.source_validation=0.1"]
    assert lines(validation=None, source_validation=5) == ["dataset.source_validation=5"]
    assert lines(validation=None, source_validation=None) == []
    assert lines(pool_validation=True) == []
    shutil.rmtree(by_patient / "val")
    assert lines() == []


def test_without_a_validation_part_a_share_is_drawn(by_patient: Path) -> None:
    shutil.rmtree(by_patient / "val")
    loaded = spec(by_patient, validation=2).load()
    assert {part: len(images) for part, images in parts(loaded.target).items()} == {"train": 12, "val": 4, "test": 6}
    assert origins(loaded.target) == {"train": {"train"}, "val": {"train"}, "test": {"test"}}


@pytest.mark.filterwarnings("ignore:.*is not used")
def test_labelled_images_are_of_the_training_part(by_patient: Path) -> None:
    for settings in ({"shots": 3}, {"rate": 0.5}):
        assert origins(spec(by_patient, **settings).load().target) == OWN


@pytest.mark.filterwarnings("ignore:.*is not used")
def test_a_validation_part_without_some_classes(by_patient: Path) -> None:
    shutil.rmtree(by_patient / "val" / "ant")
    with pytest.warns(UserWarning, match="1 of the 2 target classes have no validation image.*: ant"):
        spec(by_patient).load()
    shutil.rmtree(by_patient / "val" / "bee")
    with pytest.raises(UserError, match=r"validation images of the target.*pool_validation=true"):
        spec(by_patient).load()


def test_a_published_validation_part_is_pooled(tmp_path: Path) -> None:
    written = dtd(tmp_path, ("banded", "dotted", "grid", "lined"), 4)
    settings: dict[str, Any] = {"image_size": 4, "target_classes": ["banded", "grid"], "shots": None}
    loaded = CategoryPair("x", DTD(tmp_path), validation=2, **settings).load()
    official = {path for path, kind in written["val"] if kind in ("banded", "grid")}
    assert {part: len(images) for part, images in parts(loaded.target).items()} == {"train": 12, "val": 4, "test": 8}
    assert len(official & {*loaded.target.train.names, *loaded.target.val.names}) == 8
    kept = CategoryPair("x", DTD(tmp_path), validation=None, **settings).load()
    assert set(kept.target.val.names) == official


@pytest.mark.parametrize("value", [None, 1, "yes"])
def test_senseless_pooling(by_patient: Path, value: Any) -> None:
    with pytest.raises(UserError, match=r"dataset\.pool_validation"):
        spec(by_patient, pool_validation=value)


# Empty paths.


@pytest.mark.parametrize("path", ["", "  ", "\t"])
@pytest.mark.parametrize(
    ("make", "argument"),
    [
        (Folder, "root"),
        (Caltech101, "root"),
        (CIFAR10, "root"),
        (ImageNet, "root"),
        (Office31, "root"),
        (FashionFull, "root"),
        (lambda path: CategoryPair("x", Fashion(), links=path), "links"),
        (lambda path: CategoryPair("x", Fashion(), cache=path), "cache"),
        (FileCost, "file"),
        (TaxonomyCost, "file"),
    ],
)
def test_an_empty_path_is_not_the_current_folder(
    by_patient: Path, make: Callable[[str], Any], argument: str, path: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(by_patient)  # where a data set lies
    with pytest.raises(UserError, match=rf"\b{argument}\b.*{path!r}".replace("\\t", "\\\\t")):
        make(path)
    assert sorted(each.name for each in by_patient.iterdir()) == ["test", "train", "val"]


def test_what_is_no_path() -> None:
    for path in (None, 3):
        with pytest.raises(UserError, match=rf"\broot\b.*{path}"):
            Caltech101(path)  # type: ignore[arg-type]
    assert TaxonomyCost(None).file is None


def test_a_path_may_begin_with_a_space(by_patient: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    by_patient.rename(by_patient.with_name(" x"))
    monkeypatch.chdir(by_patient.parent)
    assert Folder(" x").classes.names == NAMES


# Identity.


@pytest.fixture
def settled(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(content, "_SETTLED", -1.0)


def test_the_identity_is_of_names_contents_and_classes(by_patient: Path, tmp_path: Path) -> None:
    base = spec(by_patient).identity
    assert len(base) == 32
    assert spec(by_patient, shots=1, seed=3, image_size=8, validation=None, cache=tmp_path / "c").identity == base
    shutil.copytree(by_patient, tmp_path / "copy")
    assert spec(tmp_path / "copy").identity == base
    changes: dict[str, Callable[[Path], Any]] = {
        "pixels": lambda root: picture(root / "train" / "ant" / "train0.bmp", (1, 2, 3)),
        "name": lambda root: (root / "train/ant/train0.bmp").rename(root / "train/ant/other.bmp"),
        "class": lambda root: (root / "train/ant/train0.bmp").rename(root / "train/bee/other.bmp"),
        "part": lambda root: (root / "train/ant/train0.bmp").rename(root / "val/ant/train0.bmp"),
        "source": lambda root: picture(root / "test" / "dog" / "test0.bmp", (1, 2, 3)),
        "more": lambda root: picture(root / "val" / "cat" / "new.bmp", (1, 2, 3)),
        "less": lambda root: (root / "val" / "cat" / "val1.bmp").unlink(),
    }
    found = {base}
    for name, change in changes.items():
        shutil.copytree(by_patient, tmp_path / name)
        change(tmp_path / name)
        found.add(spec(tmp_path / name).identity)
    found.add(spec(by_patient, target_classes=["ant", "cat"]).identity)
    assert len(found) == 1 + len(changes) + 1


def test_a_class_that_is_on_neither_side_does_not_count(by_patient: Path) -> None:
    classes = {"target_classes": ["ant", "bee"], "source_classes": ["cat", "dog"]}
    base = spec(by_patient, **classes).identity
    for part in COUNTS:
        picture(by_patient / part / "elk" / "0.bmp", (1, 2, 3))
    assert spec(by_patient, **classes).identity == base
    assert spec(by_patient).identity != base


def test_a_second_identity_reads_no_file(by_patient: Path, tmp_path: Path, settled: None, monkeypatch: Any) -> None:
    monkeypatch.setattr(content, "_memory", {})
    first = spec(by_patient, cache=tmp_path / "c").identity
    monkeypatch.setattr(content, "_read", None)
    assert spec(by_patient, cache=tmp_path / "c").identity == first
    monkeypatch.setattr(content, "_memory", {})  # as in another process
    assert spec(by_patient, cache=tmp_path / "c").identity == first


def test_published_collections_count_by_name_and_classes(by_patient: Path, tmp_path: Path) -> None:
    assert TinySpec().identity == ""
    halves = [CategoryPair("x", Fashion(), target_classes=0.5, split_seed=seed) for seed in (0, 0, 1)]
    identities = [each.identity for each in halves]
    assert identities[0] == identities[1] != identities[2]
    both = CategoryPair("x", Folder(by_patient), Fashion(), image_size=4)
    before = both.identity
    picture(by_patient / "train" / "ant" / "train0.bmp", (9, 9, 9))
    assert both.identity != before
    absent = [CategoryPair("x", DTD(tmp_path / root), target_classes=0.5) for root in ("here", "there")]
    assert absent[0].identity == absent[1].identity  # wherever it is to lie
