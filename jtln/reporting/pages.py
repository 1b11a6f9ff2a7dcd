"""Pages from templates: self-contained HTML that runs no script and asks no server for anything."""

from __future__ import annotations

from collections.abc import Iterable
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from jtln.reporting import numbers
from jtln.reporting.gallery import data_uri
from jtln.storage import writable, write_text

if TYPE_CHECKING:
    from jinja2 import Environment

MOST_BYTES = 3_000_000  # of all pictures of a page, as text
_SCALE = 0.58  # of a picture's pixels: two small matrices stand side by side, and print stays sharp
_FILTERS = (
    *(numbers.percent, numbers.percent_range, numbers.points, numbers.point_range, numbers.decimal, numbers.share),
    *(numbers.count, numbers.clock, numbers.megabytes, numbers.value),
)


class Picture(NamedTuple):
    """A plot, for a page."""

    name: str  # for a reader
    file: str  # beside the page
    width: int  # pixels of the page
    size: int  # bytes of the file
    uri: str | None  # a data URI; None where the page has no room for it


def write_page(path: Path, template: str, page: object) -> None:
    """Write a page from one of this package's templates, whole or not at all.

    Args:
        path: the page's file.
        template: its file's name.
        page: the values that it reads. Text is escaped.
    """
    write_text(path, writable(_environment().get_template(template).render(page=page)))


def pictures(paths: Iterable[Path], most_bytes: int = MOST_BYTES) -> list[Picture]:
    """Read PNG files; of those for which ``most_bytes`` leave no room the page has the name alone."""
    found = []
    for path in paths:
        content = path.read_bytes()
        name = path.stem.replace("_", " ").replace("-", " ").capitalize()
        width = round(_SCALE * int.from_bytes(content[16:20], "big"))  # from the PNG's header
        uri = data_uri(content, "png")
        fits = len(uri) <= most_bytes
        most_bytes -= len(uri) if fits else 0
        found.append(Picture(name, path.name, width, len(content), uri if fits else None))
    return found


@cache
def _environment() -> Environment:
    from jinja2 import Environment, PackageLoader, StrictUndefined

    loader = PackageLoader("jtln.reporting")
    environment = Environment(
        loader=loader, autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters |= {each.__name__: each for each in _FILTERS}
    return environment
