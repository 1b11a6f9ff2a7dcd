import csv
import gzip
import hashlib
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from task_parts import parts

from jtln.assets.fashion.make import choose, read_idx
from jtln.data.category_pair import CategoryPair
from jtln.data.collections.fashion import ASSETS, SOURCE, TARGET, Fashion, FashionFull
from jtln.data.files import Reader
from jtln.data.images import ImageSet
from jtln.data.pairs import Pair
from jtln.errors import UserError

SPLITS = Path(__file__).parents[2] / "files" / "fashion_splits.csv"


def fashion(**settings: Any) -> CategoryPair:
    """As conf/dataset/fashion.yaml has it."""
    usual = {"source_classes": SOURCE, "target_classes": TARGET, "shots": 10, "validation": 20, "source_validation": 50}
    return CategoryPair("fashion", Fashion(), **{**usual, "image_size": 28, "shift": 2, **settings})


@pytest.fixture(scope="module")
def pair() -> Pair:
    return fashion().load()


def pixels(images: ImageSet) -> list[bytes]:
    return [image.numpy().tobytes() for image in images.__getitems__(list(range(len(images))))[0]]


def test_default_split_is_balanced(pair: Pair) -> None:
    assert pair.source.classes.names == SOURCE
    assert pair.target.classes.names == TARGET
    for task, sizes in ((pair.source, (750, 50, 200)), (pair.target, (10, 20, 1000))):
        for images, size in zip(parts(task).values(), sizes, strict=True):
            assert images.labels.bincount().tolist() == [size] * len(task.classes)
            assert images[0][0].shape == (1, 28, 28)


def test_no_image_is_in_two_parts(pair: Pair) -> None:
    everything = [images for task in (pair.source, pair.target) for images in parts(task).values()]
    names = [name for images in everything for name in images.names]
    assert len(set(names)) == len(names)
    for task in (pair.source, pair.target):
        # Fashion-MNIST itself repeats a few pictures, of which two or fewer may fall apart in the source.
        train, val, test = (set(pixels(images)) for images in parts(task).values())
        if task is pair.target:
            assert not train & val
            assert not train & test
            assert not val & test
        else:
            assert len(train & val) + len(train & test) + len(val & test) <= 2


def test_official_parts_stay_apart(pair: Pair) -> None:
    for task in (pair.source, pair.target):
        assert {name.split("/")[0] for name in [*task.train.names, *task.val.names]} == {"train"}
        assert {name.split("/")[0] for name in task.test.names} == {"test"}


def test_shots_are_nested_and_validation_stays() -> None:
    few, more, most = (fashion(shots=shots, seed=5).load().target for shots in (5, 10, None))
    assert set(few.train.names) < set(more.train.names) < set(most.train.names)
    assert most.train.labels.bincount().tolist() == [280] * 4
    assert few.val.names == more.val.names == most.val.names
    assert not set(most.train.names) & set(most.val.names)


def test_the_seed_moves_the_target_alone(pair: Pair) -> None:
    again, other, split = fashion().load(), fashion(seed=1).load(), fashion(split_seed=1).load()
    assert again.target.train.fingerprint() == pair.target.train.fingerprint()
    assert other.target.train.names != pair.target.train.names
    assert other.target.val.names != pair.target.val.names
    for part, images in parts(pair.source).items():
        assert parts(other.source)[part].fingerprint() == images.fingerprint()
    assert split.source.val.names != pair.source.val.names
    assert split.target.train.names == pair.target.train.names


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_splits_are_those_of_the_results_in_the_readme(seed: int) -> None:
    """tests/files/fashion_splits.csv was written by commit 4f5f16f, before there were other collections."""
    target = fashion(seed=seed).load().target
    with open(SPLITS, newline="", encoding="utf-8") as file:
        rows = [row for row in csv.DictReader(file) if row["seed"] == str(seed)]
    for part, images in (("train", target.train), ("val", target.val)):
        assert list(images.names) == [row["image"] for row in rows if row["part"] == part]


def test_the_source_is_that_of_the_results_in_the_readme(pair: Pair) -> None:
    digests = {
        part: hashlib.sha256("\n".join(images.names).encode()).hexdigest()[:16]
        for part, images in parts(pair.source).items()
    }
    assert digests == {"train": "91dad2ef17a9e84e", "val": "6e6faded0529798e", "test": "0f5da8eb2cbb11fc"}
    assert pair.source.train.fingerprint() == "b31f159a15c52a1a5989c5bc207f7b76"


def test_parts_are_the_official_ones_at_the_size_and_channels_asked_for() -> None:
    read = Fashion().parts(Reader(14, channels=3))
    assert {part: len(images) for part, images in read.items()} == {"train": 6000, "test": 5200}
    image, label = read["train"][0]
    assert image.shape == (3, 14, 14)
    assert (image[0] == image[2]).all()
    assert 0 <= label < 10


def test_other_classes_are_labelled_in_the_order_given() -> None:
    spec = fashion(source_classes=["Bag", "Dress", "Shirt"], target_classes=["Sneaker", "Coat"], image_size=32)
    target = spec.load().target
    assert target.test.labels.bincount().tolist() == [1000, 200]
    assert target.test[0][0].shape == (1, 32, 32)
    with np.load(ASSETS / "fashion.npz") as arrays:
        coats = set(arrays["test_index"][arrays["test_labels"] == 4].tolist())
    named = {
        int(name.split("/")[1]) for name, label in zip(target.test.names, target.test.labels, strict=True) if label
    }
    assert named == coats


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"target_classes": ["Bag", "Dress"]}, ": Dress"),
        ({"target_classes": ["Bags", "Shirt"]}, "'Bags'.*'Bag'"),
        ({"target_classes": "Bag"}, "target.*'Bag'"),
        ({"source_classes": ["Coat"]}, "two source classes.*'Coat'"),
        ({"shots": 281}, r"'Pullover'\).* 280"),
        ({"validation": 300}, "validation.* 299"),
        ({"source_validation": 800}, "source_validation.* 799"),
    ],
)
def test_mistakes_are_explained(settings: dict, message: str) -> None:
    with pytest.raises(UserError, match=message):
        fashion(**settings).load()


def write_idx(path: Path, array: np.ndarray) -> None:
    header = bytes([0, 0, 8, array.ndim]) + struct.pack(f">{array.ndim}I", *array.shape)
    path.write_bytes(header + array.astype(np.uint8).tobytes())


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    """A Fashion-MNIST of 30 training and 10 test images, in the layout torchvision expects."""
    raw = tmp_path / "FashionMNIST" / "raw"
    raw.mkdir(parents=True)
    rng = np.random.default_rng(0)
    for prefix, count in (("train", 30), ("t10k", 10)):
        write_idx(raw / f"{prefix}-images-idx3-ubyte", rng.integers(0, 256, (count, 28, 28)))
        write_idx(raw / f"{prefix}-labels-idx1-ubyte", np.arange(count) % 10)
    return tmp_path


def test_the_whole_set_is_read_from_root(copy: Path) -> None:
    settings = {"source_classes": SOURCE, "target_classes": TARGET, "validation": 1, "source_validation": 1}
    pair = CategoryPair("x", FashionFull(root=copy, download=False), shots=1, image_size=28, **settings).load()
    assert [len(images) for images in parts(pair.source).values()] == [12, 6, 6]
    assert [len(images) for images in parts(pair.target).values()] == [4, 4, 4]
    raw = copy / "FashionMNIST" / "raw" / "t10k-images-idx3-ubyte"
    original = np.frombuffer(raw.read_bytes(), np.uint8, offset=16).reshape(10, 28, 28)
    assert pair.target.test.names == ["test/00002", "test/00006", "test/00007", "test/00008"]
    assert np.array_equal(pair.target.test[0][0][0].numpy(), original[2])


def test_a_missing_copy_is_explained(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"train-images-idx3-ubyte.*dataset\.root=DIR"):
        FashionFull(tmp_path, download=False).parts(Reader(28))


def test_a_failed_download_is_explained(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def offline(*args: object, **kwargs: object) -> None:
        raise RuntimeError("Error downloading train-images-idx3-ubyte.gz:\nTried http://..., got: offline")

    monkeypatch.setattr("torchvision.datasets.mnist.download_and_extract_archive", offline)
    with pytest.raises(UserError, match=r"Error downloading train-images.*dataset\.root=DIR"):
        FashionFull(tmp_path).parts(Reader(28))


def test_a_broken_copy_is_explained(copy: Path) -> None:
    (copy / "FashionMNIST" / "raw" / "train-images-idx3-ubyte").write_bytes(b"\0\0\x08\x03")
    with pytest.raises(UserError, match=r"dataset\.root=DIR"):
        FashionFull(copy, download=False).parts(Reader(28))


def test_making_the_embedded_part(tmp_path: Path) -> None:
    labels = np.random.default_rng(0).permutation(np.repeat(np.arange(10), 1200))
    kept = choose(labels, "train")
    assert np.bincount(labels[kept]).tolist() == [800, 800, 300, 800, 800, 800, 300, 300, 300, 800]
    assert np.array_equal(kept, choose(labels, "train"))
    path = tmp_path / "labels.gz"
    write_idx(path, labels)
    path.write_bytes(gzip.compress(path.read_bytes()))
    assert np.array_equal(read_idx(path), labels)
