"""Places365 (Zhou et al. 2017)."""

from __future__ import annotations

import os
from typing import Any

from torchvision import datasets

from jtln.data.collections.base import Listed, Published

PARTS = {"train": ("train-standard", "data_256_standard"), "test": ("val", "val_256")}  # torchvision's name, folder


class Places365(Published):
    """365 kinds of scenes, images of 256 x 256 pixels; arguments as in ``Published``.

    The official validation part, whose labels are public, is the test part.
    """

    name = "places365"
    folder = "data_256_standard"
    layout = (
        "data_256_standard/a/airfield/*.jpg and so on, val_256/*.jpg, categories_places365.txt, "
        "places365_train_standard.txt and places365_val.txt"
    )
    size = "25 GB"
    archive = "train_256_places365standard.tar"

    def files(self) -> dict[str, Listed]:
        return {part: self.listed(self._open, folder=folder, split=split) for part, (split, folder) in PARTS.items()}

    def present(self) -> set[str] | None:
        folders = self.root / self.folder  # The list of 1.8 million files is read only when images are needed.
        return {kind for kind in self.kinds if os.path.isdir(folders / kind.lstrip("/"))} or None

    def _open(self, root: str, split: str, download: bool) -> Any:
        if not download:
            data = datasets.Places365(root, split=split, small=True)
            if self.root.joinpath(data.images_dir).is_dir():  # torchvision checks only for the lists.
                return data
            raise RuntimeError(f"there is no folder {data.images_dir}")
        return datasets.Places365(root, split=split, small=True, download=True)
