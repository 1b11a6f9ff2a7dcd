"""Image collections, and the common part of those that are read from files as their authors published them."""

from __future__ import annotations

import os
import sys
import warnings
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import torch
from filelock import FileLock
from torch import Tensor

from jtln.data.files import FileImages, Reader
from jtln.data.images import ImageSet
from jtln.errors import UserError
from jtln.names.class_set import ClassSet, read_table
from jtln.storage import given_path

TABLES = Path(__file__).parents[2] / "assets" / "classes"
IMAGES = (".jpg", ".jpeg", ".png", ".gif", ".bmp", ".ppm", ".pgm", ".tif", ".tiff", ".webp")
Data = TypeVar("Data")


class Collection(ABC):
    """A labelled image collection.

    Attributes:
        name: what it is called.
        classes: all its categories, in the order of the labels.
        channels: 1 (grey) or 3 (RGB).
        own_parts: whether the user made the parts, by patient or by day for instance: a validation part stays one.
        has_images: whether there are images; a published classifier's classes have none.
        classifier_classes: all classes of its published classifiers, in their order; None: there are none.
        temperature: > 0, by which its published classifier's logits are divided.
    """

    name: str
    classes: ClassSet
    channels: int = 3
    own_parts: bool = False
    has_images: bool = True
    classifier_classes: ClassSet | None = None
    temperature: float = 1.0

    @abstractmethod
    def parts(self, reader: Reader) -> dict[str, ImageSet]:
        """Return the images: "train" and, where there are official ones, "val" and "test".

        Labels are indices into ``classes``. A collection without official parts has "train" alone, and whoever uses it
        splits it. Images that are not there are fetched first where the user allows it.

        Args:
            reader: what an image file becomes.

        Raises:
            UserError: the images are not there, or not as they were published.
        """


class Listed(NamedTuple):
    """Image files, and what the collection's own files call the class of each."""

    paths: list[str]
    kinds: list[str]


class Published(Collection):
    """A collection that lies in a folder as its authors published it, and whose classes the package knows.

    A new one needs ``name``, a table of its classes, ``folder``, ``layout`` and ``files``: flowers.py shows how little
    that is where torchvision reads the collection. The table has a line for each class in the order of the labels,
    with the columns class (as people say it), folder (as the collection's files call it, where that differs), synset
    (may be empty) and, if there is a hierarchy, path; ``jtln classes`` fills in the synsets that it finds by name.

    Images are labelled by what the collection calls their class, so that the labels are the same whatever part of it a
    copy holds. Classes that a copy has no training image of are left out, with a warning that names them.

    Args:
        root: what holds the collection's folder, or is to hold it; the folder itself will do as well.
        download: whether the collection is fetched where it is not there.

    Attributes:
        folder: below ``root``, a folder that is there once the collection is.
        layout: what lies in ``root``, for messages.
        size: of what is fetched; empty where nothing can be.
        archive: below ``root``, what is fetched first, and unpacked.
        manual: where a copy comes from if not by fetching, for messages.
        table: of the classes; by default ``jtln/assets/classes/NAME.csv``.
        kinds: what the collection's files call each of its classes.
        left: of these, those of ``classes``.
    """

    folder: str
    layout: str
    size: str = ""
    archive: str = ""
    manual: str = ""
    table: str | Path | None = None

    def __init__(self, root: str | Path = "data", download: bool = True) -> None:
        self.given = given_path(root, "root", "a folder", "set dataset.root=DIR (of a source: dataset.source.root=DIR)")
        self.root = _above(self.given, Path(self.folder).parts)
        self.download = download and bool(self.size)
        self.classes, self.kinds = classes_of(self.name, self.table)
        self._listed: dict[str, Listed] | None = None
        self.left = self._leave_out(self.present())

    @abstractmethod
    def files(self) -> dict[str, Listed]:
        """Return the files of every part; any exception means that the collection is missing or incomplete."""

    def present(self) -> set[str] | None:
        """Return the ``kinds`` of which ``root`` has training images; None where no copy can be read."""
        download, self.download = self.download, False  # nothing is fetched before images are asked for
        try:
            self._listed = self.files()
            return set(self._listed["train"].kinds)
        except Exception:  # ``parts`` says why
            return None
        finally:
            self.download = download

    def parts(self, reader: Reader) -> dict[str, ImageSet]:
        with self.explained():
            listed = self.files() if self._listed is None else self._listed
        return {part: self._images(part, files, reader) for part, files in listed.items()}

    def _images(self, part: str, files: Listed, reader: Reader) -> FileImages:
        labels = as_labels(files.kinds, self.left)
        known = torch.nonzero(labels >= 0)[:, 0]
        if not len(known):
            raise self.missing(f"no image of the {part} part that is of a known class")
        images = FileImages(files.paths, labels, reader, self.root)
        return images if len(known) == len(images) else images.subset(known)

    def listed(
        self,
        dataset: Callable[..., Any],
        kinds: Sequence[str] | None = None,
        folder: str | None = None,
        **settings: Any,
    ) -> Listed:
        """Return the files of torchvision's ``dataset(root, **settings)``, which also fetches them.

        Args:
            dataset: a class of torchvision.datasets.
            kinds: its classes in the order of its labels, where it does not tell them.
            folder: as ``fetched`` takes it.
            settings: further arguments of ``dataset``.
        """
        data = self.fetched(lambda download: dataset(str(self.root), download=download, **settings), folder)
        # What torchvision's classes call the paths and the labels.
        pairs = next((getattr(data, name) for name in ("_samples", "imgs") if hasattr(data, name)), None)
        if pairs is None:
            pairs = zip(getattr(data, "_image_files", None) or data._images, data._labels, strict=True)
        kind_of = dict(enumerate(kinds)) if kinds else {label: kind for kind, label in data.class_to_idx.items()}
        paths, labels = zip(*pairs, strict=True)
        return Listed([os.fspath(path) for path in paths], [kind_of[label] for label in labels])

    def fetched(self, make: Callable[[bool], Data], folder: str | None = None) -> Data:
        """``make(False)`` where the collection is there, otherwise ``make(True)``, by one process at a time.

        A file beside the collection says that it is being fetched, so that what a run that was cut off left behind is
        not taken for the whole.

        Args:
            make: reads the collection; told True it may fetch it first, told False it raises where it is not there.
            folder: below ``root``, what is there once it is; ``self.folder`` by default.
        """
        folder = folder or self.folder
        whole = self.root / folder
        unfinished = self.root / f".{folder.replace('/', '-')}.unfinished"
        cut_off = RuntimeError(f"an earlier download was cut off: delete {whole} and {unfinished}, and start again")
        if not unfinished.exists():
            try:
                data = make(False)
            except Exception:  # not there, or another process is unpacking it
                if not self.download:
                    raise
            else:
                if not unfinished.exists():
                    return data
        if not self.download:
            raise cut_off
        self.root.mkdir(parents=True, exist_ok=True)
        with FileLock(self.root / f".{self.name}.lock"):
            there = whole.exists()
            if there and unfinished.exists():
                raise cut_off
            try:
                return make(False)  # another process has fetched it meanwhile
            except RuntimeError:
                unfinished.touch()
            print(f"fetching {self.name} ({self.size}) into {self.root}", file=sys.stderr, flush=True)
            try:
                data = make(True)
            except BaseException as error:
                if there or not whole.exists():  # nothing was unpacked that could be taken for the whole
                    unfinished.unlink()
                if not isinstance(error, Exception):
                    raise
                raise RuntimeError(f"it cannot be fetched: {_reason(error)}") from error
            unfinished.unlink()
            return data

    @contextmanager
    def explained(self) -> Iterator[None]:
        """Turn an error while the collection is read into a UserError with the expected layout and the folder."""
        try:
            if self.given.exists() and not os.access(self.given, os.R_OK | os.X_OK):
                raise PermissionError(None, "no permission to read it")
            yield
        except UserError:
            raise
        except Exception as error:  # each of the archives and tables raises what its own reader raises
            raise self.missing(_reason(error)) from error

    def missing(self, reason: str) -> UserError:
        """Return the error for a missing or incomplete collection."""
        told = f"expected {self.layout} in {self.given}, but got: {reason.strip().rstrip('.')}. "
        archive = self.root / self.archive
        if self.archive and os.path.isfile(archive):
            told += f"There is {archive}: if it is half a download, delete it and what was unpacked of it. "
        told += "Set dataset.root=DIR (of a source: dataset.source.root=DIR) to where it lies"
        if self.size and not self.download:
            told += f", or dataset.download=true to fetch it ({self.size})"
        return UserError(f"{told}. {self.manual}".strip())

    def _leave_out(self, present: set[str] | None) -> tuple[str, ...]:
        """Take the classes out that are not ``present``; the ``kinds`` that are left."""
        left = [label for label, kind in enumerate(self.kinds) if present is None or kind in present]
        if not left or len(left) == len(self.kinds):
            return self.kinds
        names = [name for label, name in enumerate(self.classes) if label not in set(left)]
        warnings.warn(
            f"{self.name} in {self.given} has training images of {len(left)} of its {len(self.kinds)} classes; the "
            f"others are left out: {', '.join(names[:10])}{', ...' if len(names) > 10 else ''}. Is the copy complete?",
            stacklevel=4,
        )
        self.classes = self.classes.subset(self.classes.names[label] for label in left)
        return tuple(self.kinds[label] for label in left)


def classes_of(name: str, table: str | Path | None = None) -> tuple[ClassSet, tuple[str, ...]]:
    """Return the classes of a collection, and the name of each class in the collection's own files.

    Args:
        name: the collection's.
        table: lists them; by default the package's.
    """
    path = TABLES / f"{name}.csv" if table is None else Path(table)
    rows = read_table(path, ("class", "folder", "synset"))
    return ClassSet.from_csv(path), tuple(row["folder"] or row["class"] for row in rows)


def by_folder(folder: Path, kinds: Sequence[str]) -> Listed:
    """Return the images in the folders ``folder/KIND``, sorted by name; a kind without a folder has none.

    Raises:
        RuntimeError: there is not one of these folders.
    """
    paths: list[str] = []
    found: list[str] = []
    for kind in kinds:
        try:
            files = sorted(entry.path for entry in os.scandir(folder / kind) if _is_image(entry))
        except (FileNotFoundError, NotADirectoryError):
            continue
        paths += files
        found += [kind] * len(files)
    if not paths:
        raise RuntimeError(f"no images in {folder / kinds[0]} and its like")
    return Listed(paths, found)


def _reason(error: BaseException) -> str:
    """Return the error in one line."""
    told = getattr(error, "strerror", None) or (str(error).strip().splitlines() or [""])[0]
    if isinstance(error, OSError) and error.filename:
        told = f"{told}: {error.filename}"
    if isinstance(error, PermissionError):
        told += " (ask its owner; chmod -R u+rX gives what is yours to yourself)"
    return told if told and isinstance(error, RuntimeError | OSError) else f"{type(error).__name__} {told}".strip()


def _is_image(entry: os.DirEntry[str]) -> bool:
    # Hidden files are what macOS writes beside images; Caltech-256 holds stray files and folders, too.
    return entry.name.lower().endswith(IMAGES) and not entry.name.startswith(".") and entry.is_file()


def _above(given: Path, folder: Sequence[str]) -> Path:
    """Return the folder that holds ``folder``, where ``given`` is that or a folder on the way down to ``folder``."""
    here = Path(os.path.abspath(given))
    for depth in range(len(folder) + 1):
        if here.parts[len(here.parts) - depth :] == tuple(folder[:depth]) and os.path.exists(
            here.joinpath(*folder[depth:])
        ):
            return given if depth == 0 else here.parents[depth - 1]
    return given


def as_labels(kinds: Sequence[str], known: Sequence[str]) -> Tensor:
    """(N,) int64: the places of ``kinds`` among ``known``; -1 where one is none of them."""
    label_of = {kind: label for label, kind in enumerate(known)}
    return torch.tensor([label_of.get(kind, -1) for kind in kinds], dtype=torch.int64)
