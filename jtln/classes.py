"""The categories of a task: their names and, where known, their WordNet synsets."""

from __future__ import annotations

import csv
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from jtln.errors import UserError, unknown


@dataclass(frozen=True)
class ClassSet:
    """An ordered set of categories; a class's index in it is its label.

    Attributes:
        names: the class names, unique and not empty, as people read them.
        synsets: for each class its WordNet 3.0 noun synset, as ``"n02084071"`` (an ImageNet id) or ``"dog.n.01"``, or
            None where it is not known and has to be linked by name; or None when no class has one.

    Raises:
        UserError: a name is empty or stands twice, there is no class, or there are not as many synsets as names.
    """

    names: tuple[str, ...]
    synsets: tuple[str | None, ...] | None = None

    def __init__(self, names: Iterable[str], synsets: Iterable[str | None] | None = None) -> None:
        object.__setattr__(self, "names", tuple(str(name) for name in names))
        object.__setattr__(self, "synsets", None if synsets is None else tuple(synset or None for synset in synsets))
        self._check()

    def _check(self) -> None:
        if not self.names:
            raise UserError("expected at least one class, but got none")
        for index, name in enumerate(self.names):
            if not name.strip():
                raise UserError(f"expected a class name at index {index}, but got an empty one")
        if len(set(self.names)) < len(self.names):
            twice = sorted({name for name in self.names if self.names.count(name) > 1})
            raise UserError(f"expected each class name once, but got more than one of: {', '.join(twice)}")
        if self.synsets is not None and len(self.synsets) != len(self.names):
            raise UserError(f"expected one synset for each of {len(self.names)} classes, but got {len(self.synsets)}")

    def __len__(self) -> int:
        return len(self.names)

    def __iter__(self) -> Iterator[str]:
        return iter(self.names)

    def synset(self, index: int) -> str | None:
        """The synset of class ``index``, or None where it is not known."""
        return None if self.synsets is None else self.synsets[index]

    def index(self, name: str) -> int:
        """The label of the class called ``name``; a UserError names the choices where there is none."""
        try:
            return self.names.index(name)
        except ValueError:
            raise unknown("class", name, self.names) from None

    def subset(self, names: Iterable[str]) -> ClassSet:
        """The classes called ``names``, in that order, with their synsets."""
        indices = [self.index(name) for name in names]
        synsets = None if self.synsets is None else [self.synsets[i] for i in indices]
        return ClassSet([self.names[i] for i in indices], synsets)

    @classmethod
    def from_csv(cls, path: Path) -> ClassSet:
        """Read a table with the columns ``class`` and ``synset`` (which may be empty); further columns are notes."""
        with open(path, newline="", encoding="utf-8") as file:
            rows = list(csv.DictReader(file))
        if rows and not {"class", "synset"} <= rows[0].keys():
            raise UserError(f"expected the columns 'class' and 'synset' in {path}, but got: {', '.join(rows[0])}")
        return cls([row["class"] for row in rows], [row["synset"] for row in rows])
