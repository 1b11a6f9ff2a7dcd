"""Evidence on the screen, and as Markdown, CSV, HTML and PNG."""

from __future__ import annotations

import csv
import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from jtln.reporting import numbers
from jtln.reporting.archive import write_archive
from jtln.reporting.evidence import Comparison, DatasetEvidence, Evidence, TableRow
from jtln.reporting.pages import Picture, pictures, write_page
from jtln.reporting.sentences import correction, details, summary
from jtln.reporting.study_plots import accuracy_plot
from jtln.reporting.tables import Column, Table, markdown, show
from jtln.storage import write_text

_CLAIMS = "The informative costs over the other rows"
_CHOSEN = "The informative cost that validation chose, over the other rows"
_OTHERS = "The other comparisons: rows over the baselines, costs over their controls"


class Comparisons(NamedTuple):
    """A table of comparisons, and how their p-values were corrected."""

    title: str
    table: Table
    correction: str
    folded: bool


@dataclass(frozen=True)
class DatasetSection:
    """The section of a page on one data set."""

    name: str
    findings: list[str]
    caption: str
    accuracies: Table
    plots: list[Picture]
    comparisons: list[Comparisons]
    rows: tuple[TableRow, ...]  # for their commands


@dataclass(frozen=True)
class StudyPage:
    """The values that the template ``study.html`` shows."""

    title: str
    command: str | None
    notes: tuple[str, ...]
    datasets: list[DatasetSection]


def show_evidence(evidence: Evidence) -> None:
    """Print the table of each dataset, and what is significant and what not."""
    for each in evidence.datasets:
        print()
        show(_caption(evidence, each), *_accuracies(each))
        for sentence in (*summary(each), *([correction(each.claims)] if each.claims else [])):
            print(f"  {sentence}")
    for note in evidence.notes:
        print(f"  {note}")


def write_evidence(evidence: Evidence, folder: Path, title: str, command: str | None = None) -> Path:
    """Write report.html, report.md, rows.csv, comparisons.csv, runs.csv and a plot of each dataset into ``folder``.

    ``folder/archive`` receives the runs in small files without paths of the machine: see :mod:`jtln.reporting.archive`.

    Returns:
        The path of report.html, which holds its plots.
    """
    folder.mkdir(parents=True, exist_ok=True)
    plots = {}
    for each in evidence.datasets:
        plots[each.dataset] = folder / f"accuracy_{re.sub(r'[^A-Za-z0-9.-]+', '_', each.dataset)}.png"
        accuracy_plot(each, evidence.metric).savefig(plots[each.dataset])
    _write_csv(folder, evidence)
    write_archive(evidence.runs, folder / "archive", command)
    write_text(folder / "report.md", _markdown(evidence, title, command, plots))
    path = folder / "report.html"
    write_page(path, "study.html", study_page(evidence, title, command, plots))
    return path


def study_page(evidence: Evidence, title: str, command: str | None, plots: dict[str, Path]) -> StudyPage:
    """Collect what the page of a study shows.

    Args:
        evidence: the comparisons of the study.
        title: of the page.
        command: the command that the user typed; None leaves it out.
        plots: the picture of each dataset.
    """
    embedded = pictures(plots.values())
    sections = []
    for each, picture in zip(evidence.datasets, embedded, strict=True):
        groups = [
            Comparisons(name, _comparisons(found), correction(found), folded)
            for name, found, folded in ((_claims_title(each), each.claims, False), (_OTHERS, each.comparisons, True))
            if found
        ]
        caption = _caption(evidence, each)
        sections.append(
            DatasetSection(each.dataset, summary(each), caption, _accuracies(each), [picture], groups, each.rows)
        )
    return StudyPage(title, command, evidence.notes, sections)


def _claims_title(evidence: DatasetEvidence) -> str:
    return _CHOSEN if evidence.chosen else _CLAIMS


# Tables: columns and rows of text.


def _caption(evidence: Evidence, each: DatasetEvidence) -> str:
    counts = _counts(each)
    seeds = "the seeds (n)" if len(counts) > 1 else "1 seed" if counts == {1} else f"{counts.pop()} seeds"
    return f"{each.dataset}: test {evidence.metric.replace('_', ' ')} in %, mean ± 95% t interval over {seeds}"


def _counts(each: DatasetEvidence) -> set[int]:
    return {len(cell.test) for row in each.rows for cell in row.cells.values()}


def _accuracies(each: DatasetEvidence) -> Table:
    several = len(_counts(each)) > 1
    columns = [Column("row"), *(Column(labels, right=True) for labels in each.labels), Column("a run", right=True)]
    rows = [
        [row.name, *(_cell(row, labels, several) for labels in each.labels), numbers.clock(row.seconds)]
        for row in each.rows
    ]
    return Table(columns, rows)


def _cell(row: TableRow, labels: str, count: bool) -> str:
    if labels not in row.cells:
        return numbers.NONE
    interval = row.cells[labels].interval
    return numbers.mean_and_interval(interval) + (f" (n={interval.n})" if count else "")


def _comparisons(comparisons: Iterable[Comparison]) -> Table:
    columns = [Column("at"), Column("row"), Column("over")]
    columns += [Column(name, right=True) for name in ("difference", "95% interval", "p", "p_Holm")]
    rows = []
    for each in comparisons:
        mean, low, high, _, p = each.difference
        figures = [numbers.points(mean), numbers.point_range(low, high), numbers.p_value(p)]
        rows.append([each.labels, each.row, each.other, *figures, numbers.p_value(each.p_holm), each.verdict])
    return Table([*columns, Column("verdict")], rows)


# Other forms of a report.


def _markdown(evidence: Evidence, title: str, command: str | None, plots: dict[str, Path]) -> str:
    parts = [f"# {title}\n", *([f"    {command}\n"] if command else [])]
    parts += ["".join(f"- {note}\n" for note in evidence.notes)]
    for each in evidence.datasets:
        parts += [
            f"## {each.dataset}\n",
            "".join(f"- {sentence}\n" for sentence in summary(each)),
            f"{_caption(evidence, each)}:\n",
            markdown(*_accuracies(each)),
            f"![{_caption(evidence, each)}]({plots[each.dataset].name})\n",
        ]
        if each.claims:
            parts += [
                f"### {_claims_title(each)}\n",
                "".join(f"- {line}\n" for line in details(each)),
                correction(each.claims) + "\n",
            ]
        if each.comparisons:
            parts += [
                f"### {_OTHERS}\n",
                markdown(*_comparisons(each.comparisons)),
            ]
            parts += [correction(each.comparisons) + "\n"]
        parts += ["### Commands\n\nEach row's command trains its runs again, one after another.\n"]
        parts += ["".join(f"- {row.name}: `{row.command}`\n" for row in each.rows)]
    return "\n".join(part for part in parts if part)


def _write_csv(folder: Path, evidence: Evidence) -> None:
    rows: list[dict[str, Any]] = []
    compared: list[dict[str, Any]] = []
    for each in evidence.datasets:
        for row in each.rows:
            for labels, cell in row.cells.items():
                mean, low, high, seeds = cell.interval
                facts = {
                    "dataset": each.dataset,
                    "row": row.name,
                    "method": row.method,
                    "head": row.head,
                    "cost": row.cost,
                }
                figures = {"labels": labels, "test": mean, "low": low, "high": high, "seeds": seeds}
                val = sum(cell.val.values()) / len(cell.val) if cell.val else None
                rows.append(facts | figures | {"val": val, "seconds": cell.seconds, "command": row.command})
        for table, comparisons in (("claim", each.claims), ("baseline", each.comparisons)):
            for one in comparisons:
                facts = {
                    "dataset": each.dataset,
                    "table": table,
                    "labels": one.labels,
                    "row": one.row,
                    "over": one.other,
                }
                judged = {"p_holm": one.p_holm, "family": one.family, "verdict": one.verdict}
                compared.append(facts | one.difference._asdict() | judged)
    keys = (
        "dataset",
        "method",
        "head",
        "cost",
        "shots",
        "rate",
        "seed",
        "seconds",
        "hardware",
        "git_commit",
        "command",
    )
    runs: list[dict[str, Any]] = []
    for run in evidence.runs:
        test, val = ((run.result["target"][split] or {}).get(evidence.metric) for split in ("test", "val"))
        found = {key: run.result.get(key) for key in keys}
        runs.append({"row": run.row, "test": test, "val": val, **found, "folder": str(run.folder)})
    for name, lines in (("rows", rows), ("comparisons", compared), ("runs", runs)):
        with open(folder / f"{name}.csv", "w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, list(lines[0]) if lines else ["dataset"])
            writer.writeheader()
            writer.writerows(lines)
