"""The user's own images: a folder for each class, or a CSV file that lists them."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from pathlib import Path

from jtln.data.collections.base import IMAGES, Collection
from jtln.data.files import FileImages, Reader
from jtln.data.images import ImageSet
from jtln.errors import UserError
from jtln.names.class_set import ClassSet, composed, read_table
from jtln.storage import given_path

PARTS = {"train": "train", "training": "train", "val": "val", "valid": "val", "validation": "val"}  # accepted names
PARTS |= {"test": "test", "testing": "test"}
IGNORED = frozenset({"thumbs.db", "desktop.ini", "__macosx", "@eadir"})  # and all names that start with a dot
COLUMNS = ("path", "label", "split")
WANTED = "a folder with a folder of images for each class, or a CSV file of path and label,"
Files = list[tuple[str, str]]  # path and class of each image


class Folder(Collection):
    """Images of any size, mode and format that Pillow reads, in the user's own folder or listed in a CSV file.

    A folder has a folder for each class (``root/dog/1.jpg``, with subfolders), or ``train/`` and optionally ``val/``
    (or ``valid/``, ``validation/``) and ``test/``, in any case, each with a folder for each class. A CSV file has the
    columns path (relative to the file, or absolute) and label, and optionally split: train, val or test. Classes are
    sorted by name. Symbolic links are followed; hidden and system files (``Thumbs.db``) are ignored; every other file
    counts as an image.

    Args:
        root: the folder or the CSV file.

    Raises:
        UserError: the folder or table is missing, unreadable or without classes, or a class is missing in the training
            part; on ``parts``, a class folder is empty or files of the table are missing.
    """

    name = "folder"
    own_parts = True

    def __init__(self, root: str | Path | None) -> None:
        self.root = given_path(root, "root", WANTED, "set dataset.source.root=DIR and dataset.target.root=DIR")
        if os.path.isfile(self.root):
            self._rows = _read_csv(self.root)
            self.folder = self.root.parent
            names = {part: {label for _, label in files} for part, files in self._rows.items()}
        else:
            self._rows = {}
            self.folder = self.root
            self._folders = _class_folders(self.root)
            names = {part: set(folders) for part, folders in self._folders.items()}
        self.classes = ClassSet(_ordered(self.root, names))

    def parts(self, reader: Reader) -> dict[str, ImageSet]:
        if self._rows:
            rows = self._rows
            _check_there(self.root, [path for files in rows.values() for path, _ in files])
        else:
            rows = {part: _files(folders) for part, folders in self._folders.items()}
        label_of = {name: label for label, name in enumerate(self.classes)}
        return {
            part: FileImages([path for path, _ in files], [label_of[name] for _, name in files], reader, self.folder)
            for part, files in rows.items()
        }


def _class_folders(root: Path) -> dict[str, dict[str, str]]:
    """Return the folder of each class, for each part."""
    found = _folders(root)
    parts = {name: _folders(path) for name, path in found.items() if name.lower() in PARTS}
    kinds = {PARTS[name.lower()] for name, inner in parts.items() if inner}
    if "train" in kinds and (len(kinds) > 1 or len(parts) == len(found)):  # Otherwise train may be a class.
        return _parts(root, found, parts)
    if kinds and all(map(_folders, found.values())):  # All folders hold folders, so they are parts and not classes.
        raise UserError(
            f"expected class folders, or train/ and optionally val/ and test/ with class folders, in {root}, but got "
            f"{_some([*found])}, which all hold folders: rename the training part train, and the others val and test"
        )
    if not found:
        raise UserError(
            f"expected a folder of images for each class in {root}, but got no folder: sort the images into folders, "
            "or give a CSV file of path and label"
        )
    if len(found) == 1 and (inner := _folders(alone := next(iter(found.values())))):
        raise UserError(
            f"expected a folder of images for each class in {root}, but got the one folder {alone}, which holds "
            f"folders itself ({_some([*inner], 3)}): set dataset.source.root or dataset.target.root to that one"
        )
    return {"train": found}


def _parts(root: Path, found: dict[str, str], parts: dict[str, dict[str, str]]) -> dict[str, dict[str, str]]:
    """Return the class folders of each part; raise a UserError if the layout is wrong."""
    if others := [name for name in found if name not in parts]:
        raise UserError(
            f"expected class folders, or only train/, val/ and test/ with class folders, in {root}, but got "
            f"{_some([*parts])} and also {_some(others)}: move the latter elsewhere"
        )
    if bare := [found[name] for name, inner in parts.items() if not inner]:
        raise UserError(
            f"expected a folder of images for each class in {_some(bare)}, but got no folder: sort the images into "
            "folders, or move this part elsewhere, and a share of the training images is taken in its place"
        )
    if len({PARTS[name.lower()] for name in parts}) < len(parts):
        raise UserError(
            f"expected one folder of each of the training, validation and test images in {root}, but got "
            f"{', '.join(sorted(parts))}: move these images into one"
        )
    return {PARTS[name.lower()]: inner for name, inner in parts.items()}


def _folders(root: str | Path) -> dict[str, str]:
    """Return class name -> path of the folders in ``root``, in order."""
    folders: dict[str, str] = {}
    for path in (path for path, is_folder in _entries(root) if is_folder):
        name = _called(Path(path).name)
        if not name or name in folders:
            got = f"'{name}' twice" if name else "a blank one"
            raise UserError(
                f"expected a unique class name, apart from surrounding spaces, for each folder, but got {got}: rename "
                f"the folder '{path}'"
            )
        folders[name] = path
    return folders


def _called(name: str) -> str:
    """Return a class's name in the form of a table cell.

    Surrounding spaces are removed, accents are composed, and bytes that are no UTF-8 text are escaped.
    """
    return composed(name).encode("utf-8", "backslashreplace").decode("utf-8").strip()


def _entries(folder: str | Path) -> list[tuple[str, bool]]:
    """Return the path of each entry of ``folder`` except ignored ones, sorted by name, and whether it is a folder."""
    try:
        with os.scandir(folder) as entries:
            shown = [entry for entry in entries if not entry.name.startswith(".") and entry.name.lower() not in IGNORED]
            return [(entry.path, entry.is_dir()) for entry in sorted(shown, key=lambda entry: entry.name)]
    except PermissionError:
        raise UserError(
            f"expected a readable folder, but got no permission for {folder}: ask its owner, copy it, or for your own "
            "files use chmod -R u+rX"
        ) from None
    except NotADirectoryError:
        raise UserError(f"expected a folder or a CSV file, but {folder} is neither: give dataset.*.root=DIR") from None
    except FileNotFoundError:
        raise UserError(
            f"expected a folder of images or a CSV file, but there is no {folder}: set dataset.source.root or "
            "dataset.target.root to the images' folder"
        ) from None


def _files(folders: dict[str, str]) -> Files:
    """Return every image in the folder of each class; raise a UserError that lists empty folders."""
    files = {name: list(files_below(folder)) for name, folder in folders.items()}
    if empty := [folders[name] for name, paths in files.items() if not paths]:
        raise UserError(
            f"expected images in the folder of every class, but got none in {_some(empty)}: put images there, or "
            f"delete {'it' if len(empty) == 1 else 'them'}"
        )
    return [(path, name) for name, paths in files.items() for path in paths]


def files_below(folder: str, above: tuple[str, ...] | None = None) -> Iterator[str]:
    """Yield every file in ``folder`` and its subfolders; a link to a parent folder is not followed."""
    here = os.path.realpath(folder)
    if above is None:
        above = tuple(map(str, Path(here).parents))
    if here in above:
        return
    for path, is_folder in _entries(folder):
        if is_folder:
            yield from files_below(path, (*above, here))
        else:
            yield path


def _read_csv(path: Path) -> dict[str, Files]:
    """Return the files that the table lists, for each of its parts."""
    if path.name.lower().endswith(IMAGES):
        raise UserError(
            f"expected a folder with a folder of images for each class, or a CSV file of path and label, but got the "
            f"image {path}: give the parent of the class folders"
        )
    lines = read_table(path, COLUMNS[:2])
    if not lines:
        raise UserError(f"expected a line for each image in {path}, but it has none: write path,label under its header")
    if strangers := [name for name in lines[0] if name not in COLUMNS]:
        raise UserError(
            f"expected the columns path, label and optionally split in {path}, but got also "
            f"{', '.join(map(repr, strangers))}: remove them"
        )
    rows: dict[str, Files] = {"train": []}
    seen: set[str] = set()
    for line in lines:
        split = PARTS.get(line.get("split", "train").lower())
        if split is None or not line["path"] or not line["label"]:
            raise UserError(
                "expected a path, a label and, in a column split, train, val or test in every line of "
                f"{path}, but got: {','.join(line.values())}"
            )
        file = str(path.parent / line["path"])
        if (same := os.path.abspath(file)) in seen:  # ./dog/1.jpg and dog/1.jpg are the same file.
            raise UserError(f"expected each image once in {path}, but got '{line['path']}' twice: remove one line")
        seen.add(same)
        rows.setdefault(split, []).append((file, _called(line["label"])))
    return rows


def _check_there(table: Path, paths: list[str]) -> None:
    if missing := [path for path in paths if not os.path.lexists(path)]:
        raise UserError(
            f"expected the files that {table} lists, but {len(missing)} of {len(paths)} are not there: "
            f"{_some(missing)}. Paths are relative to {table.parent}: correct them, or remove these lines"
        )


def _ordered(root: Path, names: dict[str, set[str]]) -> list[str]:
    """Return the classes of the training part in order; raise a UserError if another part has more."""
    for part, there in names.items():
        if strangers := sorted(there - names["train"]):
            raise UserError(
                f"expected every class of the {part} part of {root} in its training part, too, but got no training "
                f"image of {_some(strangers)}: add some, or remove the class"
            )
    return sorted(names["train"])


def _some(names: Sequence[str], most: int = 10) -> str:
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")
