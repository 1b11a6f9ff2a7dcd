"""Tiny copies of published image collections, in the layout in which each was published.

Each function writes a few small images of some classes, and the collection's own tables, below ``root``, and returns
for each part what it wrote: (path below root, what the collection calls the class).
"""

from __future__ import annotations

import json
import pickle
import random
import zlib
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from PIL import Image

Written = dict[str, list[tuple[str, str]]]


def image(path: Path, shade: int, size: tuple[int, int] = (40, 32)) -> None:
    """A JPEG of a colour, with noise, so that no two are the same."""
    path.parent.mkdir(parents=True, exist_ok=True)
    colour = np.array([shade * 67 % 200, shade * 101 % 200, shade * 151 % 200])
    noise = np.random.default_rng(zlib.crc32(path.name.encode())).integers(0, 56, (size[1], size[0], 1))
    Image.fromarray((colour + noise).astype(np.uint8)).save(path, "JPEG")


def lines(path: Path, content: Sequence[object]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(f"{line}\n" for line in content), encoding="utf-8")


def _by_folder(root: Path, folder: str, kinds: Sequence[str], names: Callable[[int, int], str], count: int) -> Written:
    written = [(f"{folder}/{kind}/{names(i, n)}", kind) for i, kind in enumerate(kinds) for n in range(1, count + 1)]
    for number, (path, kind) in enumerate(written):
        image(root / path, kinds.index(kind), (32, 40) if number % 3 == 0 else (40, 32))
    return {"train": written}


def caltech256(root: Path, kinds: Sequence[str], count: int = 4) -> Written:
    """With the clutter category, and the stray entries that the published archive has in two classes."""
    base = "caltech256/256_ObjectCategories"
    for n in (1, 2):
        image(root / base / "257.clutter" / f"257_{n:04d}.jpg", 0)
    written = _by_folder(root, base, kinds, lambda i, n: f"{kinds[i][:3]}_{n:04d}.jpg", count)
    if "056.dog" in kinds:
        (root / base / "056.dog" / "greg" / "vision309").mkdir(parents=True)
    if "198.spider" in kinds:
        (root / base / "198.spider" / "RENAME2").write_text("#!/bin/sh\n")
    return written


def caltech101(root: Path, kinds: Sequence[str], count: int = 4) -> Written:
    image(root / "caltech101/101_ObjectCategories/BACKGROUND_Google/image_0001.jpg", 0)
    (root / "caltech101/Annotations").mkdir()
    return _by_folder(root, "caltech101/101_ObjectCategories", kinds, lambda i, n: f"image_{n:04d}.jpg", count)


def office31(root: Path, kinds: Sequence[str], count: int = 4) -> Written:
    """Returns the amazon domain; webcam has one image a class less, dslr two."""
    for domain, fewer in (("dslr", 2), ("webcam", 1)):
        _by_folder(root, f"office31/{domain}/images", kinds, lambda i, n: f"frame_{n:04d}.jpg", count - fewer)
    return _by_folder(root, "office31/amazon/images", kinds, lambda i, n: f"frame_{n:04d}.jpg", count)


def aircraft(root: Path, kinds: Sequence[str], count: int = 2) -> Written:
    """``kinds`` are variants ("737-700"); the tables of families and manufacturers are not read."""
    data = root / "fgvc-aircraft-2013b" / "data"
    lines(data / "variants.txt", sorted(kinds))
    lines(data / "families.txt", ["Boeing 707", "A300"])
    lines(data / "manufacturers.txt", ["Airbus", "Boeing"])
    written: Written = {}
    number = 34958
    for part in ("train", "val", "test"):
        rows = []
        for kind in [*kinds] * count:
            number += 1
            image(data / "images" / f"{number:07d}.jpg", kinds.index(kind))
            rows.append((f"{number:07d}", kind))
        random.Random(part).shuffle(rows)
        lines(data / f"images_variant_{part}.txt", [f"{stem} {kind}" for stem, kind in rows])
        written[part] = [(f"fgvc-aircraft-2013b/data/images/{stem}.jpg", kind) for stem, kind in rows]
    both = [line for part in ("train", "val") for line in _read(data / f"images_variant_{part}.txt")]
    lines(data / "images_variant_trainval.txt", both)
    return written


def pets(root: Path, kinds: Sequence[str], count: int = 4) -> Written:
    """``kinds`` as torchvision writes them ("American Bulldog"); cats' files have capitals, dogs' have none."""
    base = root / "oxford-iiit-pet"
    written: Written = {"train": [], "test": []}
    for part, name in (("train", "trainval"), ("test", "test")):
        rows = []
        for label, kind in enumerate(kinds, 1):
            cat = kind in ("Abyssinian", "Bengal")
            breed = kind.replace(" ", "_") if cat else kind.replace(" ", "_").lower()
            for n in range(1, count + 1):
                stem = f"{breed}_{n if part == 'train' else 100 + n}"
                image(base / "images" / f"{stem}.jpg", label)
                rows.append(f"{stem} {label} {1 if cat else 2} 1")
                written[part].append((f"oxford-iiit-pet/images/{stem}.jpg", kind))
        lines(base / "annotations" / f"{name}.txt", rows)
    return written


def flowers102(root: Path, kinds: Sequence[str], count: int = 2) -> Written:
    """``kinds`` are the first classes; two thirds of the images are training and validation images."""
    from scipy.io import savemat

    base = root / "flowers-102"
    labels = [label for label in range(1, len(kinds) + 1) for _ in range(3 * count)]
    order = np.random.default_rng(0).permutation(len(labels)) + 1  # the ids of the images, in order of their labels
    of_id = dict(zip(order.tolist(), labels, strict=True))
    for number, label in of_id.items():
        image(base / "jpg" / f"image_{number:05d}.jpg", label)
    parts = {name: np.sort(order[index::3]) for index, name in enumerate(("trnid", "valid", "tstid"))}
    savemat(base / "imagelabels.mat", {"labels": np.array([[of_id[i + 1] for i in range(len(labels))]], np.uint8)})
    savemat(base / "setid.mat", {name: ids[None].astype(np.uint16) for name, ids in parts.items()})
    return {
        part: [(f"flowers-102/jpg/image_{i:05d}.jpg", kinds[of_id[i] - 1]) for i in parts[name].tolist()]
        for part, name in (("train", "trnid"), ("val", "valid"), ("test", "tstid"))
    }


def dtd(root: Path, kinds: Sequence[str], count: int = 2) -> Written:
    base, written = root / "dtd" / "dtd", {}
    for offset, part in enumerate(("train", "val", "test")):
        names = [f"{kind}/{kind}_{offset * count + n:04d}.jpg" for kind in kinds for n in range(1, count + 1)]
        for name in names:
            image(base / "images" / name, kinds.index(name.split("/")[0]))
        lines(base / "labels" / f"{part}1.txt", names)
        written[part] = [(f"dtd/dtd/images/{name}", name.split("/")[0]) for name in names]
    return written


def cub200(root: Path, kinds: Sequence[str], count: int = 3) -> Written:
    base, written = root / "CUB_200_2011", Written(train=[], test=[])
    images, labels, split = [], [], []
    for label, kind in enumerate(kinds, 1):
        for n in range(2 * count):
            name = f"{kind}/{kind.partition('.')[2]}_{n:04d}_{label * 100 + n}.jpg"
            image(base / "images" / name, label)
            images.append(f"{len(images) + 1} {name}")
            labels.append(f"{len(images)} {label}")
            split.append(f"{len(images)} {n % 2}")
            written["train" if n % 2 else "test"].append((f"CUB_200_2011/images/{name}", kind))
    lines(base / "images.txt", images)
    lines(base / "image_class_labels.txt", labels)
    lines(base / "train_test_split.txt", split)
    lines(base / "classes.txt", [f"{label} {kind}" for label, kind in enumerate(kinds, 1)])
    return written


def cars(root: Path, kinds: Sequence[str], count: int = 3) -> Written:
    from scipy.io import savemat

    base, written = root / "stanford_cars", {}
    fields = ("bbox_x1", "bbox_y1", "bbox_x2", "bbox_y2", "class", "fname")
    tables = {"train": base / "devkit/cars_train_annos.mat", "test": base / "cars_test_annos_withlabels.mat"}
    (base / "devkit").mkdir(parents=True)
    for part, table in tables.items():
        labels = np.random.default_rng(len(part)).permutation(np.repeat(np.arange(1, len(kinds) + 1), count)).tolist()
        rows = []
        for number, label in enumerate(labels, 1):
            image(base / f"cars_{part}" / f"{number:05d}.jpg", label)
            rows.append((1, 1, 39, 31, label, f"{number:05d}.jpg"))
        savemat(table, {"annotations": np.array([rows], dtype=[(field, object) for field in fields])[:, : len(rows)]})
        written[part] = [(f"stanford_cars/cars_{part}/{row[5]}", kinds[row[4] - 1]) for row in rows]
    names = np.empty((1, len(kinds)), dtype=object)
    names[0] = list(kinds)
    savemat(base / "devkit/cars_meta.mat", {"class_names": names})
    return written


def food101(root: Path, kinds: Sequence[str], count: int = 3) -> Written:
    base, written = root / "food-101", {}
    for offset, part in enumerate(("train", "test")):
        names = {kind: [f"{kind}/{offset * 10**6 + 134 + n}" for n in range(count)] for kind in kinds}
        for kind, stems in names.items():
            for stem in stems:
                image(base / "images" / f"{stem}.jpg", kinds.index(kind))
        (base / "meta").mkdir(parents=True, exist_ok=True)
        (base / "meta" / f"{part}.json").write_text(json.dumps(names))
        written[part] = [(f"food-101/images/{stem}.jpg", kind) for kind, stems in names.items() for stem in stems]
    return written


def imagenet(root: Path, kinds: Sequence[str], count: int = 4) -> Written:
    written: Written = {"train": [], "test": []}
    for label, kind in enumerate(kinds):
        train = [f"train/{kind}/{kind}_{n * 13}.JPEG" for n in range(1, count + 1)]
        test = [f"val/{kind}/ILSVRC2012_val_{label * 10 + n:08d}.JPEG" for n in range(1, 3)]
        for part, names in (("train", train), ("test", test)):
            for name in names:
                image(root / name, label)
                written[part].append((name, kind))
    return written


def places365(root: Path, kinds: Sequence[str], count: int = 4) -> Written:
    """``kinds`` as the list of categories has them: "/a/airfield"."""
    lines(root / "categories_places365.txt", [f"{kind} {label}" for label, kind in enumerate(kinds)])
    train = [(f"{kind}/{n:08d}.jpg", label) for label, kind in enumerate(kinds) for n in range(1, count + 1)]
    test = [(f"Places365_val_{label * 3 + n:08d}.jpg", label) for label in range(len(kinds)) for n in range(1, 3)]
    written: Written = {}
    for part, table, folder, rows in (
        ("train", "places365_train_standard.txt", "data_256_standard", train),
        ("test", "places365_val.txt", "val_256", test),
    ):
        lines(root / table, [f"{name} {label}" for name, label in rows])
        for name, label in rows:
            image(root / folder / name.lstrip("/"), label)
        written[part] = [(f"{folder}/{name.lstrip('/')}", kinds[label]) for name, label in rows]
    return written


def cifar10(root: Path, kinds: Sequence[str], count: int = 10) -> Written:
    files = {f"data_batch_{n}": "train" for n in range(1, 6)} | {"test_batch": "test"}
    base = root / "cifar-10-batches-py"
    return _cifar(base, files, "batches.meta", ("labels", "label_names"), kinds, count)


def cifar100(root: Path, kinds: Sequence[str], count: int = 10) -> Written:
    base = root / "cifar-100-python"
    return _cifar(base, {"train": "train", "test": "test"}, "meta", ("fine_labels", "fine_label_names"), kinds, count)


def _cifar(
    base: Path, files: dict[str, str], meta: str, keys: tuple[str, str], kinds: Sequence[str], count: int
) -> Written:
    """``count`` images of every class in each file; the paths returned are the images' places in their part."""
    base.mkdir(parents=True)
    written: Written = {"train": [], "test": []}
    rng = np.random.default_rng(0)
    for name, part in files.items():
        labels = rng.permutation(np.repeat(np.arange(len(kinds)), count)).tolist()
        pixels = (np.array(labels)[:, None] * 20 % 200 + rng.integers(0, 56, (len(labels), 3072))).astype(np.uint8)
        (base / name).write_bytes(pickle.dumps({"data": pixels, keys[0]: labels, "batch_label": name}))
        written[part] += [(f"{part}/{len(written[part]) + i:05d}", kinds[label]) for i, label in enumerate(labels)]
    (base / meta).write_bytes(pickle.dumps({keys[1]: list(kinds)}))
    return written


def _read(path: Path) -> list[str]:
    return path.read_text(encoding="utf-8").splitlines()
