"""Describable Textures (Cimpoi et al. 2014)."""

from __future__ import annotations

from torchvision import datasets

from jtln.data.collections.base import Listed, Published


class DTD(Published):
    """47 adjectives for textures, in the first official partition; arguments as in ``Published``."""

    name = "dtd"
    folder = "dtd/dtd"
    layout = "dtd/dtd/ with images/banded/*.jpg and so on, and labels/train1.txt, val1.txt and test1.txt"
    size = "0.6 GB"
    archive = "dtd/dtd-r1.0.1.tar.gz"

    def files(self) -> dict[str, Listed]:
        return {part: self.listed(datasets.DTD, split=part, partition=1) for part in ("train", "val", "test")}
