"""FGVC-Aircraft (Maji et al. 2013)."""

from __future__ import annotations

from torchvision import datasets

from jtln.data.collections.base import Listed, Published


class Aircraft(Published):
    """100 variants of aircraft in official training, validation and test parts; arguments as in ``Published``.

    The classes know their build, in three levels that are not the collection's own, their manufacturer and their
    family: ``dataset.target_classes=["Airbus/*"]`` are the variants of one manufacturer.
    """

    name = "aircraft"
    folder = "fgvc-aircraft-2013b/data"
    layout = "fgvc-aircraft-2013b/data/ with images/*.jpg, variants.txt and images_variant_{train,val,test}.txt"
    size = "2.8 GB"
    archive = "fgvc-aircraft-2013b.tar.gz"

    def files(self) -> dict[str, Listed]:
        return {part: self.listed(datasets.FGVCAircraft, split=part) for part in ("train", "val", "test")}
