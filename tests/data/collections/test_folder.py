import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from jtln.data.category_pair import CategoryPair
from jtln.data.collections.folder import Folder
from jtln.data.files import BadImage, Reader
from jtln.errors import UserError

READER = Reader(4)


def picture(path: Path, value: int = 100, mode: str = "RGB", size: tuple[int, int] = (6, 5)) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, (value, value, value)).convert(mode).save(path)
    return path


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """Three classes of four images, with hidden and system files."""
    root = tmp_path / "photos"
    for number, name in enumerate(("dog", "cat", "owl")):
        for index in range(4):
            picture(root / name / f"{index}.png", 50 * number + index)
    for name in (
        ".DS_Store",
        "Thumbs.db",
        "desktop.ini",
        "cat/.DS_Store",
        "cat/Thumbs.db",
        "cat/._0.png",
        "readme.txt",
    ):
        (root / name).write_text("x")
    (root / ".git" / "objects").mkdir(parents=True)
    (root / "__MACOSX").mkdir()
    return root


def table(tmp_path: Path, text: str, pictures: int = 4) -> Path:
    for index in range(pictures):
        picture(tmp_path / "images" / f"{index}.png", index)
    (tmp_path / "list.csv").write_text(text, encoding="utf-8")
    return tmp_path / "list.csv"


def test_a_folder_a_class(photos: Path) -> None:
    collection = Folder(photos)
    assert collection.classes.names == ("cat", "dog", "owl")
    (part,) = collection.parts(READER).values()
    assert list(part.names) == [f"{name}/{index}.png" for name in ("cat", "dog", "owl") for index in range(4)]
    assert part.labels.tolist() == [0] * 4 + [1] * 4 + [2] * 4
    assert torch.equal(part[5][0], torch.full((3, 4, 4), 1, dtype=torch.uint8))  # dog/1.png
    assert part[5][1] == 1


def test_any_size_mode_and_format(tmp_path: Path) -> None:
    kinds = {"a.JPG": "RGB", "b.jpeg": "CMYK", "c.png": "RGBA", "d.gif": "P", "e.bmp": "1", "f.tiff": "I;16"}
    kinds |= {"g.webp": "RGB", "h.pgm": "L", "i.png": "LA", "j.jp2": "RGB", "k": "L"}
    for number, (name, mode) in enumerate(kinds.items()):
        path = tmp_path / "x" / name
        path.parent.mkdir(exist_ok=True)
        image = Image.new("L", (5 + number, 20 - number), 100)
        with open(path, "wb") as file:
            image.convert("I;16" if mode == "I;16" else mode).save(file, "png" if name == "k" else None)
    (tmp_path / "y").mkdir()
    picture(tmp_path / "y" / "a.png")
    part = Folder(tmp_path).parts(READER)["train"]
    assert len(part) == len(kinds) + 1
    images, _ = part.__getitems__(list(range(len(part))))
    assert images.shape == (12, 3, 4, 4)


def test_folders_in_folders_and_links(photos: Path, tmp_path: Path) -> None:
    picture(photos / "cat" / "wild" / "lynx" / "0.png")
    (photos / "cat" / "loop").symlink_to(photos / "cat")
    elsewhere = picture(tmp_path / "elsewhere" / "1.png").parent
    (photos / "cat" / "wild" / "all").symlink_to(photos)  # above the class's own folder
    (photos / "fox").symlink_to(elsewhere)
    (photos / "owl" / "link.png").symlink_to(elsewhere / "1.png")
    collection = Folder(photos)
    assert collection.classes.names == ("cat", "dog", "fox", "owl")
    names = list(collection.parts(READER)["train"].names)
    assert [name for name in names if name.startswith("cat/")] == [
        *(f"cat/{index}.png" for index in range(4)),
        "cat/wild/lynx/0.png",
    ]
    assert {"fox/1.png", "owl/link.png"} <= set(names)


@pytest.mark.parametrize(
    ("train", "validation", "test"),
    [("train", "val", "test"), ("Train", "Valid", "Test"), ("training", "validation", "testing")],
)
def test_parts_that_are_there_are_kept(tmp_path: Path, train: str, validation: str, test: str) -> None:
    for part, count in ((train, 3), (validation, 2), (test, 1)):
        for name in ("cat", "dog"):
            for index in range(count):
                picture(tmp_path / part / name / f"{index}.png")
    read = Folder(tmp_path).parts(READER)
    assert {part: images.labels.bincount().tolist() for part, images in read.items()} == {
        "train": [3, 3],
        "val": [2, 2],
        "test": [1, 1],
    }
    assert read["val"].names[0] == f"{validation}/cat/0.png"


def test_a_class_may_be_called_train(tmp_path: Path) -> None:
    for name in ("train", "bus", "test"):
        picture(tmp_path / name / "0.png")
    assert Folder(tmp_path).classes.names == ("bus", "test", "train")
    for name in ("cat", "dog"):
        picture(tmp_path / "parts" / "train" / name / "0.png")
    assert Folder(tmp_path / "parts").classes.names == ("cat", "dog")


def test_class_names_are_what_a_table_can_hold(tmp_path: Path) -> None:
    folders = ("  dog ", "A\u0308pfel", "caf\udce9")  # as macOS writes an umlaut; as Latin-1 writes an accent
    for name in folders:
        picture(tmp_path / name / "0.png")
    collection = Folder(tmp_path)
    assert collection.classes.names == ("caf\\udce9", "dog", "\xc4pfel")
    assert set(collection.parts(READER)["train"].names) == {f"{name}/0.png" for name in folders}


def test_a_table(tmp_path: Path) -> None:
    absolute = picture(tmp_path / "elsewhere" / "a.png", 200)
    lines = ["path,label,split", "images/0.png,dog,train", f"{absolute},cat,train", "images/1.png,dog,val"]
    collection = Folder(table(tmp_path / "x", "\ufeff" + "\r\n".join([*lines, "images/2.png,cat,Test", ""])))
    assert collection.classes.names == ("cat", "dog")
    parts = collection.parts(READER)
    assert {part: images.labels.tolist() for part, images in parts.items()} == {
        "train": [1, 0],
        "val": [1],
        "test": [0],
    }
    assert list(parts["val"].names) == ["images/1.png"]
    assert int(parts["train"][1][0][0, 0, 0]) == 200


def test_a_table_without_splits_and_with_semicolons(tmp_path: Path) -> None:
    parts = Folder(table(tmp_path, "label;path\ndog;images/0.png\ncat;images/1.png\n")).parts(READER)
    assert parts.keys() == {"train"}
    assert parts["train"].labels.tolist() == [1, 0]


def test_classes_are_known_before_an_image_is_read(tmp_path: Path) -> None:
    assert Folder(table(tmp_path, "path,label\na.png,cat\nb.png,dog\n")).classes.names == ("cat", "dog")
    for name in ("cat", "dog"):
        (tmp_path / "x" / name).mkdir(parents=True)
    assert Folder(tmp_path / "x").classes.names == ("cat", "dog")


# Mistakes.


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("file,class\na,b\n", r"'path' and 'label'.*list\.csv"),
        ("path,label,weight\nimages/0.png,cat,1\n", r"'weight'"),
        ("path,label\n", r"list\.csv"),
        ("path,label\nimages/0.png,\n", r"list\.csv.*: images/0\.png,$"),
        ("path,label,split\nimages/0.png,cat,dev\n", r"list\.csv.*images/0\.png,cat,dev"),
        ("path,label\nimages/0.png,cat\nimages/0.png,dog\n", r"'images/0\.png' twice"),
        ("path,label\nimages/0.png,cat\nimages/9.png,dog\n", r"list\.csv.* 1 of 2 .*9\.png"),
        ("path,label,split\nimages/0.png,cat,train\nimages/1.png,owl,val\n", r"\bval\b.*list\.csv.*owl"),
    ],
)
def test_mistakes_in_a_table(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        Folder(table(tmp_path, text)).parts(READER)


def empty_class(root: Path) -> None:
    (root / "bat").mkdir()
    (root / "bat" / ".DS_Store").write_text("x")


def only_files(root: Path) -> None:
    for name in ("cat", "dog", "owl"):
        (root / name).rename(root / f".{name}")


def only_in_validation(root: Path) -> None:
    for part in ("train", "val"):
        for name in ("cat", "dog"):
            picture(root / "sub" / part / name / "0.png")
    picture(root / "sub" / "val" / "lynx" / "0.png")


def two_validations(root: Path) -> None:
    for part in ("train", "val", "valid"):
        picture(root / "sub" / part / "cat" / "0.png")


def a_flat_test_part(root: Path) -> None:
    for name in ("train/cat", "train/dog", "test"):
        picture(root / "sub" / name / "0.png")


def more_than_parts(root: Path) -> None:
    for name in ("Train/cat", "Train/dog", "Test/cat", "annotations"):
        picture(root / "sub" / name / "0.png")


def a_folder_between(root: Path) -> None:
    for name in ("cat", "dog"):
        picture(root / "sub" / "mine" / name / "0.png")


def a_blank_name(root: Path) -> None:
    (root / "  ").mkdir()


def a_name_twice(root: Path) -> None:
    (root / "cat ").mkdir()


@pytest.mark.parametrize(
    ("spoil", "where", "message"),
    [
        (a_flat_test_part, "sub", r"sub/test.*no folder"),
        (more_than_parts, "sub", r"sub.*Test, Train and also annotations"),
        (a_folder_between, "sub", r"sub/mine.*\(cat, dog\)"),
        (a_blank_name, "", r"blank.*'.*/photos/  '"),
        (a_name_twice, "", r"'cat' twice.*'.*/photos/cat '"),
        (empty_class, "", r"none in .*photos/bat"),
        (only_files, "", r"photos.*no folder"),
        (only_in_validation, "sub", r"\bval\b.*sub.*lynx"),
        (two_validations, "sub", r"sub.*train, val, valid"),
        (lambda root: None, "nowhere", r"photos/nowhere.*dataset\.source\.root"),
        (lambda root: None, "readme.txt", r"'path' and 'label'.*readme\.txt"),
    ],
)
def test_mistakes_in_a_folder(photos: Path, spoil: Callable[[Path], None], where: str, message: str) -> None:
    spoil(photos)
    with pytest.raises(UserError, match=message):
        Folder(photos / where).parts(READER)


def test_no_folder_at_all() -> None:
    with pytest.raises(UserError, match=r"dataset\.source\.root=DIR.*dataset\.target\.root=DIR"):
        Folder(None)


@pytest.mark.parametrize("where", ["", "cat"])
def test_a_folder_that_may_not_be_read(photos: Path, where: str, monkeypatch: pytest.MonkeyPatch) -> None:
    scan, closed = os.scandir, str(photos / where)

    def refuse(path: Any) -> Any:  # tests may be run by root, who may read everything
        if str(path) == closed:
            raise PermissionError(13, "Permission denied", closed)
        return scan(path)

    monkeypatch.setattr("os.scandir", refuse)
    with pytest.raises(UserError, match=rf"permission.*{closed}"):
        Folder(photos).parts(READER)


def test_what_is_no_image_is_an_error_or_skipped(photos: Path) -> None:
    (photos / "cat" / "notes.txt").write_text("not a picture")
    (photos / "dog" / "gone.png").symlink_to(photos / "nowhere.png")
    part = Folder(photos).parts(READER)["train"]
    with pytest.raises(BadImage, match=r"cat/notes\.txt.*on_bad_image=skip"):
        part[list(part.names).index("cat/notes.txt")]
    settings: dict[str, Any] = {"target_classes": ["cat", "dog"], "image_size": 4, "shots": 1}
    with pytest.raises(UserError, match=r"source.*got 1"):
        CategoryPair("x", Folder(photos), **settings)
    picture(photos / "fox" / "0.png")
    for index in range(1, 3):
        picture(photos / "fox" / f"{index}.png")
    pair = CategoryPair("x", Folder(photos), on_bad_image="skip", **settings).load()
    assert {Path(each.image).name for each in pair.skipped} == {"notes.txt", "gone.png"}
    with pytest.raises(UserError, match=r"shots.* 2"):
        CategoryPair("x", Folder(photos), on_bad_image="skip", **{**settings, "shots": 3}).load()


@pytest.mark.parametrize("names", [("train", "dev"), ("val", "test"), ("Train", "holdout", "test")])
def test_parts_of_other_names_are_no_classes(tmp_path: Path, names: tuple[str, ...]) -> None:
    for name in names:
        for each in ("dog", "cat"):
            picture(tmp_path / name / each / "0.png")
    with pytest.raises(UserError, match=rf"{names[-2]}.*{names[-1]}|{names[-1]}.*{names[-2]}"):
        Folder(tmp_path)


def test_a_class_may_be_called_as_a_part_is(tmp_path: Path) -> None:
    for name in ("train/steam", "train/diesel", "bus", "tram"):
        picture(tmp_path / name / "0.png")
    assert Folder(tmp_path).classes.names == ("bus", "train", "tram")


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        ("path,label\nimages/0.png,wolf, grey\n", r"2 cells in line 2 .*list\.csv.*'grey'"),
        ("path,label,label\nimages/0.png,wolf,bus\n", r"column.*list\.csv.*'label'"),
        (
            "path,label\nimages/0.png,wolf\n./images/0.png,wolf\n",
            r"'\./images/0\.png' twice",
        ),
        (
            "path,label,split\nimages/0.png,a,train\nimages/../images/0.png,a,test\n",
            r"'images/\.\./images/0\.png' twice",
        ),
        (
            'path,label\n"images/0.png,wolf\nimages/1.png,bus\n',
            r"'images/0\.png,wolf'.*quote",
        ),
        (
            'path,label\nimages/0.png,"' + "a" * 200_000,
            r"list\.csv.*quote",
        ),
    ],
)
def test_a_table_with_cells_too_many_or_an_image_twice(tmp_path: Path, lines: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        Folder(table(tmp_path, lines))


def test_an_image_is_no_table(photos: Path) -> None:
    with pytest.raises(UserError, match=r"image .*0\.png"):
        Folder(next(photos.rglob("*0.png")))


def test_empty_cells_at_the_end_are_nothing(tmp_path: Path) -> None:
    """As spreadsheets write them."""
    path = table(tmp_path, "path,label\nimages/0.png,wolf,,\nimages/1.png,bus, \n")
    assert Folder(path).classes.names == ("bus", "wolf")
