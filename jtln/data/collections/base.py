"""Image collections, and the base class of those that are read from files as published by their authors."""

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
        name: its name in messages and results.
        classes: all its classes, in the order of the labels.
        channels: 1 (grey) or 3 (RGB).
        own_parts: whether the user defined the parts, by patient or day for instance: a validation part is then kept.
        has_images: whether there are images; the classes of a published classifier have none.
        classifier_classes: all classes of its published classifiers, in their order; None: there is no such classifier.
        temperature: > 0, divides the published classifier's logits.
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
        """Return the images: "train" and, if there are official parts, "val" and "test".

        Labels are indices into ``classes``. A collection without official parts has only "train", which the caller
        splits. Missing images are fetched first if the user allows it.

        Args:
            reader: decodes the image files.

        Raises:
            UserError: images are missing, or differ from the published collection.
        """


class Listed(NamedTuple):
    """Image files, and the class of each as the collection's own files name it."""

    paths: list[str]
    kinds: list[str]


class Published(Collection):
    """A collection in a folder as published by its authors, with a table of its classes in the package.

    A subclass needs ``name``, a table of its classes, ``folder``, ``layout`` and ``files``; flowers.py is an example
    that torchvision reads. The table has a line for each class in the order of the labels, with the columns class (its
    readable name), folder (its name in the collection's files, if that differs), synset (may be empty) and, if there
    is a hierarchy, path; ``jtln classes`` adds the synsets that it finds by name.

    Images are labelled by the class names of the collection's files, so that an incomplete copy has the same labels.
    Classes without training images in a copy are left out, with a warning that lists them.

    Args:
        root: the parent of the collection's folder, existing or to be created; the folder itself is accepted too.
        download: whether a missing collection is fetched.

    Attributes:
        folder: below ``root``, a folder that exists in every copy.
        layout: the content of ``root``, for messages.
        size: of the download; empty if there is none.
        archive: below ``root``, the downloaded archive.
        manual: the origin of a copy that cannot be fetched, for messages.
        table: of the classes; by default ``jtln/assets/classes/NAME.csv``.
        kinds: the name of each class in the collection's files.
        left: those of ``kinds`` that are among ``classes``.
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
        """Return the files of every part; any exception is taken as a missing or incomplete collection."""

    def present(self) -> set[str] | None:
        """Return the ``kinds`` with training images in ``root``; None if no copy can be read."""
        download, self.download = self.download, False  # Nothing is fetched before images are needed.
        try:
            self._listed = self.files()
            return set(self._listed["train"].kinds)
        except Exception:  # ``parts`` raises the error again, with an explanation.
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
            kinds: its classes in the order of its labels, if the dataset object lacks them.
            folder: as in :meth:`fetched`.
            settings: further arguments of ``dataset``.
        """
        data = self.fetched(lambda download: dataset(str(self.root), download=download, **settings), folder)
        # torchvision's classes differ in the names of the attributes for paths and labels.
        pairs = next((getattr(data, name) for name in ("_samples", "imgs") if hasattr(data, name)), None)
        if pairs is None:
            pairs = zip(getattr(data, "_image_files", None) or data._images, data._labels, strict=True)
        kind_of = dict(enumerate(kinds)) if kinds else {label: kind for kind, label in data.class_to_idx.items()}
        paths, labels = zip(*pairs, strict=True)
        return Listed([os.fspath(path) for path in paths], [kind_of[label] for label in labels])

    def fetched(self, make: Callable[[bool], Data], folder: str | None = None) -> Data:
        """Return ``make(False)`` if the collection is there, otherwise ``make(True)``, by one process at a time.

        A marker file beside the collection exists during the download, so that an interrupted download is not taken
        for the whole collection.

        Args:
            make: reads the collection; with True it may fetch it first, with False it raises if it is missing.
            folder: below ``root``, a folder that exists after the download; ``self.folder`` by default.
        """
        folder = folder or self.folder
        whole = self.root / folder
        unfinished = self.root / f".{folder.replace('/', '-')}.unfinished"
        cut_off = RuntimeError(f"an earlier download was cut off: delete {whole} and {unfinished}, and start again")
        if not unfinished.exists():
            try:
                data = make(False)
            except Exception:  # The collection is missing, or another process is unpacking it.
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
                return make(False)  # Another process may have fetched it meanwhile.
            except RuntimeError:
                unfinished.touch()
            print(f"fetching {self.name} ({self.size}) into {self.root}", file=sys.stderr, flush=True)
            try:
                data = make(True)
            except BaseException as error:
                if there or not whole.exists():  # Nothing was unpacked that looks like the whole collection.
                    unfinished.unlink()
                if not isinstance(error, Exception):
                    raise
                raise RuntimeError(f"it cannot be fetched: {_reason(error)}") from error
            unfinished.unlink()
            return data

    @contextmanager
    def explained(self) -> Iterator[None]:
        """Convert an error in reading the collection to a UserError with the expected layout and the folder."""
        try:
            if self.given.exists() and not os.access(self.given, os.R_OK | os.X_OK):
                raise PermissionError(None, "no permission to read it")
            yield
        except UserError:
            raise
        except Exception as error:  # The readers of archives and tables raise errors of many types.
            raise self.missing(_reason(error)) from error

    def missing(self, reason: str) -> UserError:
        """Return the error for a missing or incomplete collection."""
        message = f"expected {self.layout} in {self.given}, but got: {reason.strip().rstrip('.')}. "
        archive = self.root / self.archive
        if self.archive and os.path.isfile(archive):
            message += f"There is {archive}: if its download is incomplete, delete it and what was unpacked from it. "
        message += "Set dataset.root=DIR (of a source: dataset.source.root=DIR) to its folder"
        if self.size and not self.download:
            message += f", or dataset.download=true to fetch it ({self.size})"
        return UserError(f"{message}. {self.manual}".strip())

    def _leave_out(self, present: set[str] | None) -> tuple[str, ...]:
        """Remove the classes that are not ``present``, and return the remaining ``kinds``."""
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
        name: of the collection.
        table: of the classes; by default the package's.
    """
    path = TABLES / f"{name}.csv" if table is None else Path(table)
    rows = read_table(path, ("class", "folder", "synset"))
    return ClassSet.from_csv(path), tuple(row["folder"] or row["class"] for row in rows)


def by_folder(folder: Path, kinds: Sequence[str]) -> Listed:
    """Return the images in the folders ``folder/KIND``, sorted by name; a kind without a folder has none.

    Raises:
        RuntimeError: none of these folders exists.
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
        raise RuntimeError(f"no images in {folder / kinds[0]} and the other class folders")
    return Listed(paths, found)


def _reason(error: BaseException) -> str:
    """Return the error in one line."""
    text = getattr(error, "strerror", None) or (str(error).strip().splitlines() or [""])[0]
    if isinstance(error, OSError) and error.filename:
        text = f"{text}: {error.filename}"
    if isinstance(error, PermissionError):
        text += " (ask its owner, or for your own files use chmod -R u+rX)"
    return text if text and isinstance(error, RuntimeError | OSError) else f"{type(error).__name__} {text}".strip()


def _is_image(entry: os.DirEntry[str]) -> bool:
    # macOS writes hidden files beside images, and Caltech-256 contains stray files and folders.
    return entry.name.lower().endswith(IMAGES) and not entry.name.startswith(".") and entry.is_file()


def _above(given: Path, folder: Sequence[str]) -> Path:
    """Return the parent of ``folder``, if ``given`` is that parent or a folder on the path down to ``folder``."""
    here = Path(os.path.abspath(given))
    for depth in range(len(folder) + 1):
        if here.parts[len(here.parts) - depth :] == tuple(folder[:depth]) and os.path.exists(
            here.joinpath(*folder[depth:])
        ):
            return given if depth == 0 else here.parents[depth - 1]
    return given


def as_labels(kinds: Sequence[str], known: Sequence[str]) -> Tensor:
    """Return the indices (N,) int64 of ``kinds`` among ``known``; -1 for those that are not."""
    label_of = {kind: label for label, kind in enumerate(known)}
    return torch.tensor([label_of.get(kind, -1) for kind in kinds], dtype=torch.int64)
