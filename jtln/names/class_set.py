"""The classes of a task: their names and, where known, their WordNet synsets and paths in a hierarchy."""

from __future__ import annotations

import csv
import difflib
import functools
import unicodedata
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jtln.errors import UserError, unknown
from jtln.names.wordnet import find_rows


@dataclass(frozen=True)
class ClassSet:
    """An ordered set of categories; a class's index in it is its label.

    Attributes:
        names: the class names, unique and not empty, as people read them.
        synsets: for each class its WordNet 3.0 noun synset, as ``"n02084071"`` (an ImageNet id) or ``"dog.n.01"``; None
            for a class whose synset is unknown and is linked by name. None in place of the tuple if no class has one.
        paths: for each class the nodes above it in the collection's own hierarchy, from the top down,
            ``("Boeing", "Boeing 737")`` or as a string ``"Boeing/Boeing 737"``; None for a class whose path is unknown.
            None in place of the tuple if no class has one.

    Raises:
        UserError: a name is empty or occurs twice, there is no class, a string is given in place of a list, or the
            number of synsets or paths differs from the number of names.
    """

    names: tuple[str, ...]
    synsets: tuple[str | None, ...] | None = None
    paths: tuple[tuple[str, ...] | None, ...] | None = None

    def __init__(
        self,
        names: Iterable[str],
        synsets: Iterable[str | None] | None = None,
        paths: Iterable[Sequence[str] | None] | None = None,
    ) -> None:
        for kind, given in (("class names", names), ("synsets", synsets), ("paths", paths)):
            if isinstance(given, str):  # A string is iterable, so each letter would become a class.
                raise UserError(f"expected a list of {kind}, but got the text '{given}': write ['{given}']")
        set_field = object.__setattr__  # the dataclass is frozen
        set_field(self, "names", tuple(str(name) for name in names))
        set_field(self, "synsets", None if synsets is None else tuple(synset or None for synset in synsets))
        set_field(self, "paths", None if paths is None else tuple(_path(path) for path in paths))
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
        for kind, values in (("synset", self.synsets), ("path", self.paths)):
            if values is not None and len(values) != len(self.names):
                raise UserError(f"expected one {kind} for each of {len(self.names)} classes, but got {len(values)}")

    def __len__(self) -> int:
        return len(self.names)

    def __iter__(self) -> Iterator[str]:
        return iter(self.names)

    def synset(self, index: int) -> str | None:
        """Return the synset of class ``index``, or None where it is not known."""
        return None if self.synsets is None else self.synsets[index]

    def path(self, index: int) -> tuple[str, ...] | None:
        """Return the categories above class ``index``, from the top down, or None where they are not known."""
        return None if self.paths is None else self.paths[index]

    @functools.cached_property
    def _places(self) -> dict[str, int]:
        return {name: index for index, name in enumerate(self.names)}

    def index(self, name: str) -> int:
        """Return the label of the class called ``name``; raise a UserError with the choices if there is none."""
        for each in (name, composed(name)):
            if each in self._places:
                return self._places[each]
        raise unknown("class", name, self.names)

    def subset(self, names: Iterable[str]) -> ClassSet:
        """Return the classes called ``names``, in that order, with their synsets and paths."""
        indices = [self.index(name) for name in names]
        return ClassSet(
            [self.names[i] for i in indices],
            None if self.synsets is None else [self.synsets[i] for i in indices],
            None if self.paths is None else [self.paths[i] for i in indices],
        )

    @classmethod
    def from_csv(cls, path: Path) -> ClassSet:
        """Read a table with the columns ``class``, ``synset`` (cells may be empty) and optionally ``path`` ("A/B/C").

        Further columns are ignored.

        Raises:
            UserError: the file is no such table; the message names it.
        """
        rows = read_table(path, ("class", "synset"))
        paths = [row["path"] or None for row in rows] if rows and "path" in rows[0] else None
        return cls([row["class"] for row in rows], [row["synset"] for row in rows], paths)

    def with_links(self, path: Path, also: Iterable[str] = (), task: str | None = None) -> ClassSet:
        """Return the same classes with the synsets and paths of a table ``class,synset`` or ``class,synset,path``.

        A class that is not in the table, or whose cell is empty, keeps its synset and path.

        Args:
            path: the table; ``jtln classes`` writes one.
            also: names of other classes that the table may contain, such as those of the pair's other task.
            task: "source" or "target": if the table has a column ``task``, lines of this task take precedence.

        Raises:
            UserError: the file is no such table, or it contains an unknown class, a class twice, or an unknown synset.
        """
        choices = dict.fromkeys([*self.names, *also])
        rows = [
            row if row["class"] in choices else row | {"class": composed(row["class"])}
            for row in read_table(path, ("class", "synset"))
        ]
        own = {row["class"] for row in rows if task is not None and row.get("task") == task}
        rows = [row for row in rows if row["class"] not in own or row.get("task") == task]
        links = {row["class"]: row for row in _unique(rows, path)}
        if strangers := [name for name in links if name not in choices]:
            listed = "".join(f"\n  {_nearest(name, choices)}" for name in strangers[:10])
            more = f"\n  and {len(strangers) - 10} more" if len(strangers) > 10 else ""
            raise UserError(
                f"expected the names of classes in {path}, but {len(strangers)} of its {len(links)} are not "
                f"among the {len(choices)} classes:{listed}{more}\nCorrect these names, or remove their lines."
            )
        try:
            find_rows(row["synset"] for row in links.values() if row["synset"])
        except UserError as error:
            raise UserError(f"{path}: {error}") from None
        mine: list[dict[str, str]] = [links.get(name, {}) for name in self.names]
        synsets = [row.get("synset") or self.synset(index) for index, row in enumerate(mine)]
        paths = [row.get("path") or self.path(index) for index, row in enumerate(mine)]
        return ClassSet(self.names, synsets if any(synsets) else None, None if paths == [None] * len(self) else paths)


def composed(name: str) -> str:
    """Return a name with composed accents (Unicode NFC), because some file systems store ü as two characters."""
    return unicodedata.normalize("NFC", name)


def read_table(path: Path, columns: Sequence[str]) -> list[dict[str, str]]:
    """Return the rows of a CSV file with a header, separated by commas or, as in some locales, by semicolons.

    Args:
        path: the file, UTF-8 with or without a byte order mark.
        columns: the required columns; there may be others.

    Returns:
        A dictionary for each row, with stripped cells; a missing cell is empty, and rows without text are left out.

    Raises:
        UserError: the file is missing or cannot be read, it lacks a column, or a cell of these columns has two lines.
    """
    try:
        with open(path, newline="", encoding="utf-8-sig") as file:
            header = file.readline()
            file.seek(0)
            reader = csv.DictReader(file, delimiter=";" if ";" in header and "," not in header else ",", restval="")
            names = [str(name).strip() for name in reader.fieldnames or ()]
            if twice := [name for name in dict.fromkeys(names) if name and names.count(name) > 1]:
                raise UserError(f"expected each column once in {path}, but got '{twice[0]}' more than once")
            reader.fieldnames = names
            rows = [_cells(row, names, f"line {reader.line_num} of {path}") for row in reader]
    except OSError as error:
        raise UserError(f"expected a CSV file with the columns {_columns(columns)}: {error.strerror}: {path}") from None
    except UnicodeDecodeError:
        raise UserError(f"expected UTF-8 text in {path}: save it as 'CSV UTF-8'") from None
    except csv.Error as error:
        raise UserError(
            f"expected a CSV file in {path}, but it cannot be read: {error}: is a quote left open?"
        ) from None
    if set(columns) - set(names):
        raise UserError(
            f"expected the columns {_columns(columns)} in {path}, but got: {', '.join(names) or 'an empty file'}"
        )
    for row in rows:
        if torn := next((row[name] for name in columns if "\n" in row[name]), None):
            first = torn.splitlines()[0][:40]
            raise UserError(
                f"expected cells of one line in {path}, but one begins with '{first}': is a quote left open?"
            )
    return [row for row in rows if any(row.values())]


def _cells(row: dict[Any, Any], names: Sequence[str], where: str) -> dict[str, str]:
    """Return a row's cells, stripped; a UserError where it has more cells than the header."""
    if more := [cell for cell in row.get(None, ()) if cell.strip()]:
        raise UserError(
            f"expected {len(names)} cells in {where}, but got more ('{more[0].strip()[:40]}'): put quotes around a "
            "cell that has a comma in it"
        )
    return {name: row[name].strip() for name in names}


def _columns(columns: Sequence[str]) -> str:
    return " and ".join(f"'{column}'" for column in columns)


def _path(path: Sequence[str] | None) -> tuple[str, ...] | None:
    if path is None:
        return None
    parts = path.split("/") if isinstance(path, str) else path
    return tuple(stripped for part in parts if (stripped := str(part).strip()))


def _unique(rows: list[dict[str, str]], path: Path) -> list[dict[str, str]]:
    """Return the rows, each class once; a UserError where two rows of one class differ."""
    first: dict[str, dict[str, str]] = {}
    for row in rows:
        earlier = first.setdefault(row["class"], row)
        if [earlier[key] for key in ("synset", "path") if key in row] != [
            row[k] for k in ("synset", "path") if k in row
        ]:
            raise UserError(
                f"expected one synset and path for a class, but {path} has two lines for '{row['class']}' "
                "that differ: remove one of them"
            )
    return list(first.values())


def _nearest(name: str, choices: Iterable[str]) -> str:
    near = difflib.get_close_matches(name, list(choices), n=3)
    return f"'{name}'" + (f": did you mean {' or '.join(repr(each) for each in near)}?" if near else "")
