"""``python -m jtln COMMAND`` and ``jtln COMMAND``."""

from __future__ import annotations

import os
import sys

USAGE = """\
usage: jtln COMMAND [ARGUMENTS]

commands:
  train   train a network: jtln train --help
  cost    show a cost matrix, its closest and farthest pairs, without training: jtln cost dataset=fashion cost=wordnet
  report  table, intervals, paired tests and plots of all runs below some folders: jtln report outputs
  classes show every class, its WordNet synset and what is doubtful, as a table to correct: jtln classes dataset=fashion
"""


def main() -> int:
    """The console script; returns the exit code."""
    command, arguments = (sys.argv[1:2] or [""])[0], sys.argv[2:]
    if command not in ("train", "cost", "report", "classes") and "LOCAL_RANK" in os.environ:
        command, arguments = "train", sys.argv[1:]  # a process of trainer=ddp, which Lightning starts without it
    if command == "train":
        from jtln.app.main import main as train

        return train(arguments)
    if command == "cost":
        from jtln.app.cost import main as cost

        return cost(arguments)
    if command == "report":
        from jtln.app.report import main as report

        return report(arguments)
    if command == "classes":
        from jtln.app.classes import main as classes

        return classes(arguments)
    if command in ("-h", "--help", "help"):
        print(USAGE, end="")
        return 0
    got = f"unknown command '{command}'" if command else "expected a command"
    print(f"error: {got}\n\n{USAGE}", end="", file=sys.stderr)
    return 2


if __name__ == "__main__":
    sys.exit(main())
