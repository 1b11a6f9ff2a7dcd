"""Evidence on the screen, and as Markdown, CSV, HTML and PNG."""

from __future__ import annotations

import csv
import math
import re
from collections.abc import Iterable, Sequence
from html import escape
from pathlib import Path
from typing import Any

from jtln.reporting.evidence import Comparison, DatasetEvidence, Evidence, TableRow
from jtln.reporting.run_page import page, pictures
from jtln.reporting.sentences import correction, details, summary
from jtln.reporting.statistics import mean_and_interval
from jtln.reporting.study_plots import accuracy_plot
from jtln.reporting.tables import Column, clock, markdown, show

Cells = Sequence[Sequence[str]]
_COMMANDS = "Each row's command trains its runs again, one after another."


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

    Returns:
        The path of report.html, which holds its plots.
    """
    folder.mkdir(parents=True, exist_ok=True)
    plots = {}
    for each in evidence.datasets:
        plots[each.dataset] = folder / f"accuracy_{re.sub(r'[^A-Za-z0-9.-]+', '_', each.dataset)}.png"
        accuracy_plot(each, evidence.metric).savefig(plots[each.dataset])
    _write_csv(folder, evidence)
    (folder / "report.md").write_text(_markdown(evidence, title, command, plots), encoding="utf-8")
    path = folder / "report.html"
    path.write_text(page(title, _html(evidence, title, command, plots)), encoding="utf-8")
    return path


# Tables: columns and rows of text.


def _caption(evidence: Evidence, each: DatasetEvidence) -> str:
    counts = _counts(each)
    seeds = "the seeds (n)" if len(counts) > 1 else "1 seed" if counts == {1} else f"{counts.pop()} seeds"
    return f"{each.dataset}: test {evidence.metric.replace('_', ' ')} in %, mean ± 95% t interval over {seeds}"


def _counts(each: DatasetEvidence) -> set[int]:
    return {len(cell.test) for row in each.rows for cell in row.cells.values()}


def _accuracies(each: DatasetEvidence) -> tuple[list[Column], Cells]:
    several = len(_counts(each)) > 1
    columns = [Column("row"), *(Column(labels, right=True) for labels in each.labels), Column("a run", right=True)]
    rows = [
        [row.name, *(_cell(row, labels, several) for labels in each.labels), clock(row.seconds)] for row in each.rows
    ]
    return columns, rows


def _cell(row: TableRow, labels: str, count: bool) -> str:
    if labels not in row.cells:
        return "–"
    interval = row.cells[labels].interval
    return mean_and_interval(interval) + (f" (n={interval.n})" if count else "")


def _comparisons(comparisons: Iterable[Comparison]) -> tuple[list[Column], Cells]:
    columns = [Column("at"), Column("row"), Column("over")]
    columns += [Column(name, right=True) for name in ("difference", "95% interval", "p", "p_Holm")]
    rows = []
    for each in comparisons:
        mean, low, high, _, p = each.difference
        interval = "–" if math.isnan(low) else f"[{low:.1f}, {high:.1f}]"
        rows.append([each.labels, each.row, each.other, f"{mean:+.1f}", interval, _p(p), _p(each.p_holm), each.verdict])
    return [*columns, Column("")], rows


def _p(value: float) -> str:
    return "–" if math.isnan(value) else "< 0.001" if value < 0.001 else f"{value:.3f}"


# Forms of a report.


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
                "### The transport terms, their cost chosen on validation, over the other rows\n",
                "".join(f"- {line}\n" for line in details(each)),
                correction(each.claims) + "\n",
            ]
        if each.comparisons:
            parts += [
                "### The other comparisons: rows over the baselines, costs over their controls\n",
                markdown(*_comparisons(each.comparisons)),
            ]
            parts += [correction(each.comparisons) + "\n"]
        parts += [f"### Commands\n\n{_COMMANDS}\n", "".join(f"- {row.name}: `{row.command}`\n" for row in each.rows)]
    return "\n".join(part for part in parts if part)


def _html(evidence: Evidence, title: str, command: str | None, plots: dict[str, Path]) -> list[str]:
    parts = [f"<header><h1>{escape(title)}</h1></header>", _list(evidence.notes, "faint")]
    if command:
        parts += [f'<pre class="command"><code>{escape(command)}</code></pre>']
    for each in evidence.datasets:
        parts += [
            f"<section><h2>{escape(each.dataset)}: findings</h2>\n{_list(summary(each))}</section>",
            f"<section><h2>{escape(_caption(evidence, each))}</h2>\n{_table(*_accuracies(each))}</section>",
            pictures([plots[each.dataset]]),
        ]
        for name, comparisons in (
            ("The transport terms, their cost chosen on validation, over the other rows", each.claims),
            ("The other comparisons: rows over the baselines, costs over their controls", each.comparisons),
        ):
            if comparisons:
                table = _table(*_comparisons(comparisons))
                note = f'<p class="faint">{escape(correction(comparisons))}</p>'
                if comparisons is each.comparisons:
                    table = f"<details><summary>{len(comparisons)} comparisons</summary>\n{table}</details>"
                parts += [f"<section><h2>{name}</h2>\n{table}\n{note}</section>"]
        commands = "\n".join(
            f"<p>{escape(row.name)}, {clock(row.seconds)} a run</p>"
            f'<pre class="command"><code>{escape(row.command)}</code></pre>'
            for row in each.rows
        )
        parts += [f'<section><h2>Commands</h2>\n<p class="faint">{_COMMANDS}</p>\n{commands}</section>']
    return parts


def _list(lines: Sequence[str], kind: str = "") -> str:
    items = "\n".join(f"<li>{escape(line)}</li>" for line in lines)
    return f'<ul class="{kind}">\n{items}\n</ul>' if lines else ""


def _table(columns: Sequence[Column], rows: Cells) -> str:
    def row(cells: Sequence[str], tag: str) -> str:
        # The last column, without a name, holds sentences.
        lefts = ["" if column.name else "; white-space:normal" for column in columns]
        pairs = zip(columns, lefts, strict=True)
        styles = ["" if column.right else f' style="text-align:left{left}"' for column, left in pairs]
        return "".join(f"<{tag}{style}>{escape(cell)}</{tag}>" for cell, style in zip(cells, styles, strict=True))

    head = row([column.name for column in columns], "th")
    body = "\n".join(f"<tr>{row(cells, 'td')}</tr>" for cells in rows)
    return f'<div class="wide"><table><thead><tr>{head}</tr></thead>\n<tbody>\n{body}\n</tbody></table></div>'


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
                val = sum(cell.val.values()) / len(cell.val)
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
        test, val = (run.result["target"][split].get(evidence.metric) for split in ("test", "val"))
        found = {key: run.result.get(key) for key in keys}
        runs.append({"row": run.row, "test": test, "val": val, **found, "folder": str(run.folder)})
    for name, lines in (("rows", rows), ("comparisons", compared), ("runs", runs)):
        with open(folder / f"{name}.csv", "w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, list(lines[0]) if lines else ["dataset"])
            writer.writeheader()
            writer.writerows(lines)
