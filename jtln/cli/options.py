"""The commands that take options, and not Hydra's KEY=VALUE."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from pathlib import Path

from jtln.errors import UserError


def path_argument(text: str) -> Path:
    """Return an argument as a path; an empty one, an unset variable of the shell, would be the current folder."""
    if not text.strip():
        raise argparse.ArgumentTypeError("expected a path, but got an empty name")
    return Path(text)


def guarded(parser: argparse.ArgumentParser, arguments: list[str], job: Callable[[argparse.Namespace], int]) -> int:
    """``job`` with what ``parser`` makes of the arguments; a user's mistake is one line and the exit code 2."""
    from jtln.cli.hydra_app import output_is_closed  # which imports Hydra
    from jtln.cli.user_warnings import in_words

    try:
        with in_words():
            return job(parser.parse_args(arguments))
    except SystemExit as end:
        return int(end.code or 0)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
    except BrokenPipeError:
        return output_is_closed()
    except OSError as error:
        print(f"error: {error.strerror}: {error.filename}", file=sys.stderr)
    except KeyboardInterrupt:
        return 130
    return 2
