"""Caltech-UCSD Birds-200-2011 (Wah et al. 2011)."""

from __future__ import annotations

from pathlib import Path

from torchvision.datasets.utils import download_and_extract_archive

from jtln.data.collections.base import Listed, Published

URL = "https://data.caltech.edu/records/65de6-vp158/files/CUB_200_2011.tgz"
MD5 = "97eceeb196236b17998738112f37df78"


class CUB200(Published):
    """200 species of birds in official training and test parts; arguments as in ``Published``."""

    name = "cub200"
    folder = "CUB_200_2011/images"
    layout = (
        "CUB_200_2011/ with images/001.Black_footed_Albatross/*.jpg and so on, images.txt, image_class_labels.txt, "
        "train_test_split.txt and classes.txt"
    )
    size = "1.2 GB"
    archive = "CUB_200_2011.tgz"

    def files(self) -> dict[str, Listed]:
        whole = self.fetched(self._folder)
        images, labels, kinds, training = (
            self._table(whole / f"{name}.txt")
            for name in ("images", "image_class_labels", "classes", "train_test_split")
        )
        parts: dict[str, Listed] = {"train": Listed([], []), "test": Listed([], [])}
        for image, path in images.items():
            part = parts["train" if training[image] == "1" else "test"]
            part.paths.append(str(whole / "images" / path))
            part.kinds.append(kinds[labels[image]])
        return parts

    def _folder(self, download: bool) -> Path:
        if not (self.root / self.folder).is_dir():
            if not download:
                raise RuntimeError("there is no such folder")
            download_and_extract_archive(URL, str(self.root), filename=self.archive, md5=MD5)
        return self.root / "CUB_200_2011"

    def _table(self, path: Path) -> dict[str, str]:
        """Read a file of "number value" lines."""
        lines = path.read_text(encoding="utf-8").splitlines()
        return dict(line.strip().split(" ", 1) for line in lines if line.strip())  # type: ignore[misc]
