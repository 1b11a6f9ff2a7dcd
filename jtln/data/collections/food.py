"""Food-101 (Bossard, Guillaumin and Van Gool 2014)."""

from __future__ import annotations

from torchvision import datasets

from jtln.data.collections.base import Listed, Published


class Food101(Published):
    """101 dishes in official training and test parts; arguments as in ``Published``."""

    name = "food101"
    folder = "food-101/meta"
    layout = "food-101/ with images/apple_pie/*.jpg and so on, and meta/train.json and test.json"
    size = "5 GB"
    archive = "food-101.tar.gz"

    def files(self) -> dict[str, Listed]:
        return {part: self.listed(datasets.Food101, split=part) for part in ("train", "test")}
