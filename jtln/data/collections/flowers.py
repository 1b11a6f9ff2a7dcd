"""Oxford 102 Flowers (Nilsback and Zisserman 2008)."""

from __future__ import annotations

from torchvision import datasets

from jtln.data.collections.base import Listed, Published


class Flowers102(Published):
    """102 kinds of flowers in official training, validation and test parts; arguments as in ``Published``."""

    name = "flowers102"
    folder = "flowers-102/jpg"
    layout = "flowers-102/ with jpg/image_00001.jpg and so on, imagelabels.mat and setid.mat"
    size = "0.35 GB"
    archive = "flowers-102/102flowers.tgz"

    def files(self) -> dict[str, Listed]:
        return {part: self.listed(datasets.Flowers102, self.kinds, split=part) for part in ("train", "val", "test")}
