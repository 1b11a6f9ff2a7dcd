"""``jtln report FOLDER...``: what the runs below some folders are evidence of."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from jtln.cli.options import guarded, path_argument
from jtln.errors import UserError, unknown


def main(arguments: list[str]) -> int:
    """Report on every finished run below the folders; return the exit code."""
    parser = argparse.ArgumentParser(
        prog="jtln report",
        description="Table, intervals, paired tests and plots of all runs below the folders (every result.json but the "
        "trials of a tuning), as Markdown, CSV, HTML and PNG.",
    )
    parser.add_argument(
        "folders", nargs="+", type=path_argument, metavar="FOLDER", help="of a run, a multirun or a study"
    )
    parser.add_argument(
        "--output", type=path_argument, metavar="DIR", help="where the report goes; default: FOLDER/report"
    )
    parser.add_argument(
        "--against",
        metavar="NAMES",
        help="methods or rows that every other row is compared with, with commas; default: consecutive,joint",
    )
    parser.add_argument(
        "--metric", default="accuracy", help="accuracy (default), mean_class_accuracy or macro_f1, on the test part"
    )
    return guarded(parser, arguments, _report)


def _report(given: argparse.Namespace) -> int:
    from jtln.reporting.evidence import BASELINES, gather
    from jtln.reporting.naming import Run
    from jtln.reporting.study_page import show_evidence, write_evidence
    from jtln.study.ledger import broken_results, read_results

    found: dict[Path, Run] = {}
    for folder in given.folders:
        if not folder.is_dir():
            raise UserError(f"expected folders with finished runs, but there is no folder {folder}")
        for path, result in read_results(folder):
            found[path.resolve()] = Run(None, result, path.parent)
        for path in broken_results(folder):
            print(f"note: left out, as its result cannot be read: {path}", file=sys.stderr)
    if not found:
        raise UserError(
            f"expected finished runs, but there is no result.json below {', '.join(map(str, given.folders))}"
        )
    against = [name.strip() for name in given.against.split(",")] if given.against else list(BASELINES)
    evidence = gather(found.values(), against, given.metric)
    known = {name for each in evidence.datasets for row in each.rows for name in (row.name, row.method)}
    for name in against if given.against else []:
        if name not in known:
            raise unknown("row or method in --against", name, sorted(known))
    output = given.output or given.folders[0] / "report"
    show_evidence(evidence)
    page = write_evidence(evidence, output, f"{len(found)} runs below {', '.join(map(str, given.folders))}")
    print(f"\nreport: {page}")
    return 0
