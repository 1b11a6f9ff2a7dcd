"""Tables for the terminal and for Markdown."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from rich import box
from rich.console import Console
from rich.markup import escape
from rich.table import Table as RichTable


class Column(NamedTuple):
    """A column's heading, and whether its cells are numbers."""

    name: str
    right: bool = False


class Table(NamedTuple):
    """Columns, and rows of text with a cell for each."""

    columns: Sequence[Column]
    rows: Sequence[Sequence[str]]


def show(title: str, columns: Sequence[Column], rows: Sequence[Sequence[str]]) -> None:
    """Print a table under its title, the text as it is: [x] is no markup.

    A terminal's width folds long cells. To a file or a pipe each row is one line without colours, as wide as its cells,
    whatever the environment says of a terminal's width.
    """
    table = RichTable(box=box.SIMPLE_HEAD, pad_edge=False, show_edge=False)
    for column in columns:
        table.add_column(escape(column.name), justify="right" if column.right else "left", overflow="fold")
    for row in rows:
        table.add_row(*map(escape, row))
    console = Console(highlight=False)
    if not console.is_terminal:
        console = Console(highlight=False, color_system=None, width=_width(columns, rows))
    console.print(escape(title), soft_wrap=True)
    console.print(table)


def markdown(columns: Sequence[Column], rows: Sequence[Sequence[str]]) -> str:
    """Return a table as GitHub's Markdown."""
    lines = [[column.name for column in columns], ["---:" if column.right else "---" for column in columns]]
    lines += [[cell.replace("|", "\\|") for cell in row] for row in rows]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def _width(columns: Sequence[Column], rows: Sequence[Sequence[str]]) -> int:
    """Return more than the number of terminal cells that the table can take; a character takes two at most."""
    widest = (max(len(cell) for cell in cells) for cells in zip([each.name for each in columns], *rows, strict=True))
    return sum(2 * width + 4 for width in widest)
