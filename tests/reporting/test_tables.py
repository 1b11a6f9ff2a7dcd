"""Tables on a terminal, in a pipe and as Markdown."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from rich.console import Console

from jtln.reporting.tables import Column, markdown, show

COLUMNS = [Column("row"), Column("5 shots", right=True)]
LONG = "jtln_annealed + discriminant (permuted wordnet (wup)) " + "method.lambda_ot=0.5 " * 12
ROWS = [["joint", "61.0 ± 1.2"], [LONG.strip(), "7.0"], ["狼 wolf", "–"]]
SCRIPT = f"from jtln.reporting.tables import Column, show; show('of [a,b]', {COLUMNS!r}, {ROWS!r})"


def piped(columns: str, **environment: str) -> str:
    """Print the table in a process of its own into a pipe."""
    variables = {"PYTHONPATH": str(Path(__file__).parents[2]), "PYTHONIOENCODING": "utf-8", "COLUMNS": columns}
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT],
        env=variables | {"TERM": "xterm-256color"} | environment,
        capture_output=True,
        timeout=600,
        check=True,
    )
    return done.stdout.decode("utf-8")


def test_in_a_pipe_a_row_is_a_line_without_colours_at_any_width() -> None:
    text = piped("20")
    assert text == piped("300")
    assert "\x1b" not in text
    title, head, _, *lines = text.rstrip("\n").split("\n")
    assert title == "of [a,b]"
    assert head.split(maxsplit=1) == ["row", "5 shots"]
    assert [line.rstrip().endswith(cell) for line, (_, cell) in zip(lines, ROWS, strict=True)] == [True] * 3
    assert [line.startswith(name) for line, (name, _) in zip(lines, ROWS, strict=True)] == [True] * 3
    assert lines[0].index("61.0") + len("61.0 ± 1.2") == lines[1].index("7.0", len(LONG) - 1) + len("7.0")


def test_on_a_terminal_long_cells_are_folded_and_nothing_is_cut(monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    made = Console.__init__
    monkeypatch.setattr(
        Console,
        "__init__",
        lambda self, **options: made(self, **options | {"force_terminal": True, "width": 60, "color_system": None}),
    )
    show("title", COLUMNS, ROWS)
    lines = capsys.readouterr().out.split("\n")
    assert max(map(len, lines)) <= 60
    assert "".join("".join(line[:48] for line in lines).split()).find("".join(LONG.split())) >= 0


def test_brackets_are_no_markup(capsys: pytest.CaptureFixture[str]) -> None:
    cells = ["wolf [/grey]", "[z]", "dataset.target_classes=[cat,dog]"]
    show("of [a,b]", [Column("class [z]")], [[cell] for cell in cells])
    title, head, _, *lines = capsys.readouterr().out.rstrip("\n").split("\n")
    assert (title, head.strip()) == ("of [a,b]", "class [z]")
    assert [line.strip() for line in lines] == cells


def test_without_rows_the_headings_stay(capsys: pytest.CaptureFixture[str]) -> None:
    show("empty", COLUMNS, [])
    assert "5 shots" in capsys.readouterr().out


def test_markdown() -> None:
    assert markdown(COLUMNS, [["a|b", "1"]]) == "| row | 5 shots |\n| --- | ---: |\n| a\\|b | 1 |\n"
