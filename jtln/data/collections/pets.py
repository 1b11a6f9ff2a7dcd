"""Oxford-IIIT Pets (Parkhi et al. 2012)."""

from __future__ import annotations

from pathlib import Path

from torchvision import datasets

from jtln.data.collections.base import Listed, Published


class Pets(Published):
    """37 breeds of cats and dogs in official training and test parts; arguments as in ``Published``."""

    name = "pets"
    folder = "oxford-iiit-pet/annotations"
    layout = "oxford-iiit-pet/ with images/Abyssinian_1.jpg and so on, and annotations/trainval.txt and test.txt"
    size = "0.8 GB"
    archive = "oxford-iiit-pet/images.tar.gz"

    def files(self) -> dict[str, Listed]:
        parts = {"train": "trainval", "test": "test"}
        return {part: self._breeds(split) for part, split in parts.items()}

    def _breeds(self, split: str) -> Listed:
        """List a split, its breeds read from the file names.

        torchvision's class list holds only the breeds that occur in the split, but its labels index all breeds.
        """
        paths, _ = self.listed(datasets.OxfordIIITPet, self.kinds, split=split)
        stems = [Path(path).stem.rpartition("_")[0] for path in paths]
        return Listed(paths, [" ".join(word.title() for word in stem.split("_")) for stem in stems])
