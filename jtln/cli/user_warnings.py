"""Warnings for the user: plain text, each once."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import hydra

import jtln

# Hydra calls what a configuration names, and a warning of ours may be about that call.
_OURS = tuple(Path(module.__file__ or "").parent for module in (jtln, hydra))


@contextmanager
def in_words() -> Iterator[None]:
    """Print this package's warnings as ``warning: TEXT``, without a line of code, and each text once.

    Other packages' warnings, and warnings that tests record, stay as they are.
    """
    usual, told = warnings.formatwarning, set[str]()

    def shown(
        message: Warning | str, category: type[Warning], filename: str, lineno: int, line: str | None = None
    ) -> str:
        about_code = issubclass(category, DeprecationWarning | PendingDeprecationWarning | SyntaxWarning)
        if about_code or not any(folder in Path(filename).parents for folder in _OURS):
            return usual(message, category, filename, lineno, line)
        text = str(message)
        if text in told:
            return ""
        told.add(text)
        return f"warning: {text}\n"

    warnings.formatwarning = shown
    try:
        yield
    finally:
        warnings.formatwarning = usual
