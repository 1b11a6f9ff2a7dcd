"""ImageNet, the 1,000 classes of ILSVRC 2012 (Russakovsky et al. 2015)."""

from __future__ import annotations

import os
from pathlib import Path

from torchvision import datasets
from torchvision.datasets.imagenet import ARCHIVE_META

from jtln.data.collections.base import Listed, Published, by_folder, classes_of

PARTS = {"train": "train", "test": "val"}


class ImageNet(Published):
    """1,000 classes. Arguments as in ``Published``; it cannot be fetched without an account.

    The official validation part, whose labels are public, is the test part; without it there is only "train". Folders
    train/ and val/ with a folder for each WordNet id are read directly; torchvision unpacks the archives.
    """

    name = "imagenet"
    folder = "train"
    layout = "train/n01440764/*.JPEG and so on and val/n01440764/*.JPEG and so on"
    size = "150 GB, from its archives there"
    manual = (
        "It is available at image-net.org only, with an account; the archives ILSVRC2012_img_train.tar, "
        "ILSVRC2012_img_val.tar and ILSVRC2012_devkit_t12.tar.gz are unpacked if they are in that folder"
    )

    def __init__(self, root: str | Path = "data", download: bool = True) -> None:
        super().__init__(root, download)
        self.classifier_classes = classes_of(self.name)[0]

    def files(self) -> dict[str, Listed]:
        for folder in PARTS.values():
            self.fetched(lambda unpack, folder=folder: self._unpacked(folder, unpack), folder)  # type: ignore[misc]
        return {
            part: by_folder(self.root / folder, self.kinds)
            for part, folder in PARTS.items()
            if part == "train" or (self.root / folder).is_dir()
        }

    def present(self) -> set[str] | None:
        train = self.root / "train"  # Its 1.3 million files are listed only when images are needed.
        return (set(os.listdir(train)) & set(self.kinds) or None) if os.access(train, os.R_OK) else None

    def _unpacked(self, folder: str, unpack: bool) -> None:
        archive, _ = ARCHIVE_META[folder]
        if (self.root / folder).is_dir() or not (self.root / archive).is_file():
            return
        if not unpack:
            raise RuntimeError(f"{self.root / archive} is not unpacked")
        datasets.ImageNet(str(self.root), split=folder)
