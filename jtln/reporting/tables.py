"""Tables for the terminal and for Markdown."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from rich.console import Console
from rich.markup import escape
from rich.table import Table


class Column(NamedTuple):
    """A column's heading, and whether its cells are numbers."""

    name: str
    right: bool = False


def show(title: str, columns: Sequence[Column], rows: Sequence[Sequence[str]]) -> None:
    """Print a table, its text as it is ([x] is no markup); to a file or a pipe it is as wide as its cells."""
    console = Console(highlight=False)
    table = Table(title=escape(title), title_justify="left", title_style="")
    for column in columns:
        table.add_column(escape(column.name), justify="right" if column.right else "left", overflow="fold")
    for row in rows:
        table.add_row(*map(escape, row))
    if not console.is_terminal:
        console = Console(highlight=False, width=max(console.width, 160))
    console.print(table)


def markdown(columns: Sequence[Column], rows: Sequence[Sequence[str]]) -> str:
    """The same table as GitHub's Markdown."""
    lines = [[column.name for column in columns], ["---:" if column.right else "---" for column in columns]]
    lines += [[cell.replace("|", "\\|") for cell in row] for row in rows]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def clock(seconds: float) -> str:
    """ "45 s", "12 min", "3 h 20 min"."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 90 else f"{minutes // 60} h {minutes % 60} min"
