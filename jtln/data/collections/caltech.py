"""Caltech-101 (Fei-Fei, Fergus and Perona 2004) and Caltech-256 (Griffin, Holub and Perona 2007)."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from torchvision import datasets

from jtln.data.collections.base import Listed, Published, by_folder


class Caltech256(Published):
    """256 kinds of objects, without the clutter category 257; arguments as in ``Published``.

    There are no official parts. torchvision fetches the archive, but the folders are listed here, because torchvision's
    labels and file names are wrong for a copy that lacks some folders or files.
    """

    name = "caltech256"
    folder = "caltech256/256_ObjectCategories"
    layout = "caltech256/256_ObjectCategories/ with 001.ak47/001_0001.jpg and so on"
    size = "1.2 GB"
    archive = "caltech256/256_ObjectCategories.tar"
    dataset: Callable[..., Any] = datasets.Caltech256

    def files(self) -> dict[str, Listed]:
        return {"train": by_folder(self.fetched(self._folder), self.kinds)}

    def _folder(self, download: bool) -> Path:
        whole = self.root / self.folder
        for folder in (whole, self.root / whole.name, self.root):
            if any((folder / kind).is_dir() for kind in self.kinds):
                return folder
        if not download:
            raise RuntimeError("there is no such folder")
        type(self).dataset(str(self.root), download=True)
        return whole


class Caltech101(Caltech256):
    """101 kinds of objects, without the background category (BACKGROUND_Google); otherwise as ``Caltech256``."""

    name = "caltech101"
    folder = "caltech101/101_ObjectCategories"
    layout = "caltech101/101_ObjectCategories/ with accordion/image_0001.jpg and so on"
    size = "0.13 GB"
    archive = "caltech101/caltech-101.zip"
    dataset: Callable[..., Any] = datasets.Caltech101
