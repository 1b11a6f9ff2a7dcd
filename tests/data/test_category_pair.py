import itertools
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from task_parts import parts

from jtln.data.category_pair import CategoryPair
from jtln.data.collections.base import Collection
from jtln.data.collections.folder import Folder
from jtln.data.files import Reader
from jtln.data.images import ArrayImages, ImageSet
from jtln.data.pairs import Pair, Task
from jtln.errors import UserError
from jtln.names.class_set import ClassSet

NAMES = ("ant", "bee", "cat", "dog", "elk", "fox")


class Made(Collection):
    """Return a collection with ``sizes`` images a class in each part; every image has the colour of its class."""

    name = "made"

    def __init__(self, names: tuple[str, ...] = NAMES, channels: int = 3, synsets: Any = None, **sizes: int) -> None:
        self.classes = ClassSet(names, synsets)
        self.channels = channels
        self.sizes = sizes or {"train": 40}
        self.reads = 0

    def parts(self, reader: Reader) -> dict[str, ImageSet]:
        self.reads += 1
        return {part: self._part(part, size, reader) for part, size in self.sizes.items()}

    def _part(self, part: str, size: int, reader: Reader) -> ArrayImages:
        labels = torch.arange(len(self.classes)).repeat(size)
        images = torch.zeros(len(labels), reader.channels, reader.size, reader.size, dtype=torch.uint8)
        images[:, 0] = labels[:, None, None]
        names = [f"{part}/{self.classes.names[label]}/{index}" for index, label in enumerate(labels.tolist())]
        return ArrayImages(images, labels, names)


def spec(target: Collection | None = None, **settings: Any) -> CategoryPair:
    usual: dict[str, Any] = {"target_classes": 0.5, "image_size": 2, "shots": 5}
    return CategoryPair("made", target or Made(), **{**usual, **settings})


def each(task: Task) -> dict[str, list[int]]:
    """Images of every class in each part."""
    return {part: images.labels.bincount(minlength=len(task.classes)).tolist() for part, images in parts(task).items()}


def names(task: Task) -> dict[str, set[str]]:
    return {part: set(images.names) for part, images in parts(task).items()}


# Classes.


def test_a_drawn_half_and_the_rest() -> None:
    first, again, other = spec(), spec(), spec(split_seed=1)
    assert len(first.target_classes) == len(first.source_classes) == 3
    assert sorted([*first.target_classes, *first.source_classes]) == sorted(NAMES)
    assert again.target_classes == first.target_classes
    drawn = {spec(split_seed=seed).target_classes.names for seed in range(20)}
    assert len(drawn) > 5
    assert spec(seed=1).target_classes == first.target_classes
    assert other.split_seed == 1


def test_labels_are_places_in_the_tasks_own_classes() -> None:
    pair = spec(target_classes=["fox", "ant"], source_classes=["dog", "bee", "cat"]).load()
    for task in (pair.source, pair.target):
        for images in parts(task).values():
            for index, name in enumerate(images.names):
                image, label = images[index]
                assert name.split("/")[1] == task.classes.names[label]
                assert int(image[0, 0, 0]) == NAMES.index(task.classes.names[label])  # the pixels, too, are of it


def test_a_source_of_its_own_loses_what_the_target_has() -> None:
    other = Made(("Dog", "hound", "cow", "owl"), synsets=["n02084071", "n02087551", None, None])
    target = Made(("dog", "puppy"), synsets=[None, "hound.n.01"])
    dropped = spec(target, source=other, target_classes="all")
    assert dropped.source_classes.names == ("cow", "owl")
    assert dropped.dropped == ("Dog", "hound")
    assert dropped.source_classes.synsets == (None, None)
    kept = spec(target, source=other, target_classes="all", overlap="keep")
    assert (kept.source_classes.names, kept.dropped) == (other.classes.names, ())
    named = spec(target, source=other, target_classes="all", source_classes=["cow", "Dog", "owl"])
    assert (named.source_classes.names, named.dropped) == (("cow", "owl"), ("Dog",))
    assert spec().dropped == ()


def test_links_of_the_user_count_for_both_tasks(tmp_path: Path) -> None:
    (tmp_path / "links.csv").write_text("class,synset\nhound,dog.n.01\nrex,dog.n.01\n")
    target, source = Made(("rex", "elk")), Made(("hound", "cow", "owl"))
    linked = spec(target, source=source, target_classes="all", links=tmp_path / "links.csv")
    assert linked.target_classes.synsets == ("dog.n.01", None)
    assert linked.dropped == ("hound",)
    assert {len(part.labels.unique()) for part in parts(linked.load().source).values()} == {2}


# Parts.


def test_shares_of_what_has_no_official_parts() -> None:
    pair = spec(shots=None, validation=0.25, test=0.2, source_validation=3).load()
    assert each(pair.target) == {"train": [24] * 3, "val": [8] * 3, "test": [8] * 3}  # 40, 32 without the test images
    assert each(pair.source) == {"train": [29] * 3, "val": [3] * 3, "test": [8] * 3}
    images = [images for task in (pair.source, pair.target) for images in parts(task).values()]
    assert len({name for part in images for name in part.names}) == sum(map(len, images)) == 240


def test_official_parts() -> None:
    collection = Made(train=10, val=6, test=4)
    pair = spec(collection, shots=None, validation=None, source_validation=None).load()
    for task in (pair.source, pair.target):
        assert each(task) == {"train": [10] * 3, "val": [6] * 3, "test": [4] * 3}
        assert {part: {name.split("/")[0] for name in there} for part, there in names(task).items()} == {
            part: {part} for part in ("train", "val", "test")
        }
    assert collection.reads == 1  # once for both tasks
    drawn = spec(collection, shots=None, validation=4, source_validation=None).load()
    assert each(drawn.target) == {"train": [12] * 3, "val": [4] * 3, "test": [4] * 3}  # drawn out of both
    assert each(drawn.source) == {"train": [10] * 3, "val": [6] * 3, "test": [4] * 3}
    assert {name.split("/")[0] for name in drawn.target.test.names} == {"test"}


def test_caltechs_protocol() -> None:
    fewer, more = (spec(train_per_class=count, shots=None, validation=5, test=0.5).load() for count in (15, 30))
    assert each(fewer.target) == {"train": [10] * 3, "val": [5] * 3, "test": [25] * 3}
    assert each(more.target) == {"train": [25] * 3, "val": [5] * 3, "test": [10] * 3}
    assert set(more.target.test.names) < set(fewer.target.test.names)
    assert each(more.source)["test"] == [20] * 3  # the source is split by shares


def test_seed_moves_the_target_and_split_seed_the_source() -> None:
    settings = {"target_classes": ["ant", "bee"]}
    base, seed, split = (spec(**settings, **more).load() for more in ({}, {"seed": 1}, {"split_seed": 1}))
    assert names(seed.source) == names(base.source)
    for part in ("train", "val", "test"):
        assert names(split.source)[part] != names(base.source)[part]
        assert (names(seed.target)[part] != names(base.target)[part]) == (part != "test")
    # What one seed tests, no other labels or validates on.
    assert names(seed.target)["test"] == names(base.target)["test"] != names(split.target)["test"]
    protocol = [spec(**settings, train_per_class=30, seed=value).load() for value in (0, 1)]
    assert names(protocol[0].target)["test"] != names(protocol[1].target)["test"]
    assert [spec(**settings).seeds_differ_in_test, spec(train_per_class=30).seeds_differ_in_test] == [False, True]


@pytest.mark.parametrize("settings", [{}, {"train_per_class": 30}])
def test_labelled_images_are_nested_and_balanced(settings: dict[str, Any]) -> None:
    ladder: list[dict[str, Any]] = [
        {"shots": 1},
        {"shots": 2},
        {"shots": 10},
        {"shots": None, "rate": 0.5},
        {"shots": None, "rate": 0.75},
        {"shots": None},
    ]
    tasks = [spec(**settings, **rung).load().target for rung in ladder]
    for smaller, larger in itertools.pairwise(tasks):
        assert set(smaller.train.names) < set(larger.train.names)
        assert names(smaller)["val"] == names(larger)["val"]
        assert names(smaller)["test"] == names(larger)["test"]
    for task in tasks:
        assert len(set(each(task)["train"])) == 1
        assert not names(task)["train"] & (names(task)["val"] | names(task)["test"])
    left = each(tasks[-1])["train"][0]
    assert each(tasks[3])["train"][0] == int(0.5 * left + 0.5)


# Pixels.


def test_grey_beside_colour() -> None:
    pair_spec = spec(Made(channels=1), source=Made(("owl", "cow"), channels=3), target_classes="all")
    assert pair_spec.channels == 3
    pair = pair_spec.load()
    assert pair.target.train[0][0].shape == pair.source.train[0][0].shape == (3, 2, 2)
    assert spec(Made(channels=1)).load().source.train[0][0].shape == (1, 2, 2)


@pytest.mark.parametrize(
    ("settings", "stored"),
    [
        ({"image_size": 224}, 224),
        ({"image_size": 224, "crop": 0.5}, 256),
        ({"image_size": 64, "crop": 0.5}, 73),
        ({"image_size": 224, "crop": 0.5, "stored_size": 224}, 224),
        ({"image_size": 64, "stored_size": 100}, 100),
    ],
)
def test_stored_size(settings: dict[str, Any], stored: int) -> None:
    built = spec(**settings)
    assert built.stored_size == stored
    assert built.image_size == settings["image_size"]


def photographs(root: Path, classes: tuple[str, ...] = ("ant", "bee", "cat", "dog"), count: int = 12) -> Path:
    for number, name in enumerate(classes):
        (root / name).mkdir(parents=True)
        for index in range(count):
            Image.new("RGB", (9, 7), (40 * number, 10 * index, 0)).save(root / name / f"{index:02d}.png")
    return root


def folders(root: Path, cache: Path | None, **settings: Any) -> Pair:
    usual: dict[str, Any] = {"target_classes": ["ant", "bee"], "image_size": 4, "shots": 2}
    return CategoryPair("x", Folder(root), cache=cache, **{**usual, **settings}).load()


def test_broken_images_are_skipped_and_listed(tmp_path: Path) -> None:
    root = photographs(tmp_path / "x")
    (root / "ant" / "03.png").write_bytes(b"")
    (root / "dog" / "04.jpg").write_text("not a picture")
    for cache in (None, tmp_path / "cache"):
        pair = folders(root, cache, on_bad_image="skip")
        broken = [str(root / name) for name in ("ant/03.png", "dog/04.jpg")]
        assert sorted(image for image, _ in pair.skipped) == broken
        everything = [name for task in (pair.source, pair.target) for there in names(task).values() for name in there]
        assert not {"ant/03.png", "dog/04.jpg"} & set(everything)
        assert Counter(name.split("/")[0] for name in names(pair.source)["train"]) == {"cat": 9, "dog": 9}
    with pytest.raises(UserError, match=r"(?s)2 of 49 .*ant/03\.png"):
        folders(root, tmp_path / "cache")
    assert folders(root, None).skipped == ()  # where nothing is kept they are found when they are read


def test_both_tasks_share_one_decoded_file(tmp_path: Path) -> None:
    root = photographs(tmp_path / "x")
    pair = folders(root, tmp_path / "cache")
    assert len(list((tmp_path / "cache").rglob("*.u8"))) == 1
    assert pair.target.train[0][0].shape == (3, 4, 4)
    folders(root, tmp_path / "cache", target_classes=["cat", "ant"], seed=3, split_seed=2)
    assert len(list((tmp_path / "cache").rglob("*.u8"))) == 1


def test_a_class_without_a_sound_image_is_named(tmp_path: Path) -> None:
    root = photographs(tmp_path / "x", ("ant", "bee", "cat", "dog", "elk"))
    for path in (root / "bee").iterdir():
        path.write_text("no")
    with pytest.raises(UserError, match=r"train.*'bee' \(12\)"):
        folders(root, None, on_bad_image="skip")
    without = {"target_classes": ["ant", "dog"], "source_classes": ["cat", "elk"]}
    assert folders(root, None, on_bad_image="skip", **without).skipped == ()


def test_classes_without_a_test_image_are_warned_of(tmp_path: Path) -> None:
    photographs(tmp_path / "x" / "train")
    photographs(tmp_path / "x" / "test", ("ant", "cat", "dog"))
    with pytest.warns(UserWarning, match="1 of the 2 target classes.*: bee"):
        folders(tmp_path / "x", None)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"rate": 0.15}, r"5 and 0\.15.*rate=0\.15 .*shots=null"),
        ({"shots": 0}, "shots.* 0|got 0"),
        ({"shots": 2.5}, r"got 2\.5"),
        ({"shots": 100}, r"'\w+'\).* 26 .*shots.* 26"),
        ({"shots": None, "rate": 1.5}, r"\(0, 1\].*rate"),
        ({"validation": -1}, r"\bvalidation.*got -1"),
        ({"validation": "many"}, r"\bvalidation.*'many'"),
        ({"validation": True}, r"\bvalidation.*True"),
        ({"validation": 32}, r"\bvalidation.* 31"),
        ({"validation": None}, r"made.*\bvalidation=0\.2"),
        ({"source_validation": None}, r"made.*source_validation=0\.2"),
        ({"source_validation": 32}, r"source_validation.* 31"),
        ({"test": 3}, r"\btest.*got 3"),
        ({"test": None}, r"\btest=null.*test=0\.2"),
        ({"train_per_class": 40}, r"train_per_class.* 39"),
        ({"split_seed": -1}, r"split_seed.*-1"),
        ({"seed": -1}, r"seed.*-1"),
        ({"crop": 2.0}, r"crop.*2\.0"),
        ({"image_size": None}, r"image_size.*None"),
        ({"stored_size": 1}, r"stored_size=null"),
        ({"fit": "corp"}, r"fit 'corp'.*'crop'"),
        ({"overlap": "dorp"}, r"'dorp'.*'drop'"),
        ({"on_bad_image": "ignore"}, r"'ignore'.*error, skip"),
        ({"decoded": "maybe"}, r"'maybe'.*auto, true, false"),
        ({"target_classes": "all"}, r"source.*got 0.*dataset/source=FILE"),
        ({"target_classes": ["ant"]}, "two target classes.*'ant'"),
        ({"target_classes": ["ant", "bee"], "source_classes": ["bee", "cat"]}, "on both sides: bee"),
        ({"source_classes": 4}, r"2 to 3 .*source_classes"),
        ({"source": ["cat", "dog"]}, r"source_classes"),
        (
            {"source": Made(("ANT", "bees", "Bee", "owl")), "target_classes": "all", "source_classes": ["ANT"]},
            "no target",
        ),
    ],
)
def test_mistakes_are_explained(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        spec(**settings).load()


def test_train_per_class_does_not_break_official_test_parts() -> None:
    with pytest.raises(UserError, match=r"train_per_class=null"):
        spec(Made(train=10, test=5), train_per_class=5).load()
