"""The one exception that means: the user can mend this."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class UserError(ValueError):
    """A mistake in what the user gave: a value, a name, a file.

    Its message says what was expected, what came, and what to do. The command line shows the message alone, without
    a traceback, and exits with a non-zero code; every other exception is a fault of the program.
    """


def unknown(kind: str, got: object, choices: Iterable[str]) -> UserError:
    """Return the error for a name that is none of ``choices``, with all of them and the nearest one."""
    choices = list(choices)
    near = difflib.get_close_matches(str(got), choices, n=1)
    hint = f" Did you mean '{near[0]}'?" if near else ""
    return UserError(f"unknown {kind} '{got}': expected one of {', '.join(choices)}.{hint}")
