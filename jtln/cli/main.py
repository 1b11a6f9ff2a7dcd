"""``jtln COMMAND``: which command there is, and the module that runs it."""

from __future__ import annotations

import os
import sys
from importlib import import_module

USAGE = """\
usage: jtln COMMAND [ARGUMENTS]

commands:
  train    train a network: jtln train --help
  cost     show a cost matrix, its closest and farthest pairs, without training: jtln cost dataset=fashion cost=wordnet
  report   table, intervals, paired tests and plots of all runs below some folders: jtln report outputs
  features compute a frozen trunk's features ahead of the runs: jtln features experiment=photographs ...
  predict  what a trained network takes images for, as CSV: jtln predict RUN photos/
  export   a trained network as one file that runs without this package, ONNX or torch.export: jtln export RUN
  classes  show each class, its WordNet synset and what is doubtful, as a table to correct: jtln classes dataset=fashion
"""
COMMANDS = {
    "train": "jtln.cli.train",
    "cost": "jtln.cli.cost",
    "classes": "jtln.cli.classes",
    "report": "jtln.cli.report",
    "features": "jtln.cli.features",
    "predict": "jtln.cli.predict",
    "export": "jtln.cli.export",
}


def main() -> int:
    """Run the command that the console script or ``python -m jtln`` was given; return the exit code."""
    command, arguments = (sys.argv[1:2] or [""])[0], sys.argv[2:]
    if command not in COMMANDS and "LOCAL_RANK" in os.environ:
        command, arguments = "train", sys.argv[1:]  # a process of trainer=ddp, which Lightning starts without it
    if command in COMMANDS:
        sys.path.insert(0, os.getcwd())  # where train.py and python -m find the user's own modules
        return int(import_module(COMMANDS[command]).main(arguments))  # only what this one needs
    if command in ("-h", "--help", "help"):
        print(USAGE, end="")
        return 0
    got = f"unknown command '{command}'" if command else "expected a command"
    print(f"error: {got}\n\n{USAGE}", end="", file=sys.stderr)
    return 2
