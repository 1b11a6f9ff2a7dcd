"""``python train.py`` and ``jtln train``: one run, several, or a study."""

from __future__ import annotations

import sys

from jtln.cli import run, study
from jtln.cli.overrides import at_home, is_study


def main(arguments: list[str] | None = None) -> int:
    """Train as the command line says.

    Args:
        arguments: by default this process's.

    Returns:
        The exit code: 0, 1 for a failed run, 2 for a mistake in the call, 130 for Ctrl-C.
    """
    arguments = [*map(at_home, sys.argv[1:] if arguments is None else arguments)]
    return study.main(arguments) if is_study(arguments) else run.main(arguments)
