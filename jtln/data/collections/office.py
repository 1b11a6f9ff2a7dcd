"""Office-31 (Saenko et al. 2010)."""

from __future__ import annotations

import os
from pathlib import Path

from jtln.data.collections.base import Listed, Published, by_folder
from jtln.errors import unknown

DOMAINS = ("amazon", "dslr", "webcam")


class Office31(Published):
    """31 kinds of office objects, in one of three domains. There are no official parts.

    Args:
        root: as in ``Published``; it cannot be fetched.
        domain: "amazon" (a shop's pictures), "dslr" or "webcam" (photographs in offices).
        download: ignored.
    """

    name = "office31"
    manual = "It cannot be fetched: see its authors' page, people.eecs.berkeley.edu/~jhoffman/domainadapt"

    def __init__(self, root: str | Path = "data", domain: str = "amazon", download: bool = False) -> None:
        if domain not in DOMAINS:
            raise unknown("domain", domain, DOMAINS)
        self.domain = domain
        self.folder = f"office31/{domain}"
        self.layout = f"office31/{domain}/images/ with back_pack/*.jpg and so on"
        super().__init__(root, download)

    def files(self) -> dict[str, Listed]:
        return {"train": by_folder(self._folder(), self.kinds)}

    def _folder(self) -> Path:
        """Return the domain's folder of class folders; the given folder may be any level of the collection."""
        here = Path(os.path.abspath(self.given))
        below = sorted(Path(entry.path) for entry in os.scandir(here) if entry.is_dir())
        roots = (here, here / "office31", *below, here.parent, here.parent.parent)
        for folder in (root / inside for root in roots for inside in (f"{self.domain}/images", self.domain)):
            if any((folder / kind).is_dir() for kind in self.kinds):
                return folder
        raise RuntimeError("there is no such folder")
