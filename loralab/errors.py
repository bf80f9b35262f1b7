"""The errors that users can correct, and exceptions in one line."""

from __future__ import annotations


class LoralabError(ValueError):
    """An error that the user can correct; its message says what is wrong, where, and what to do.

    Commands print it and exit with status 2. Any other exception is a defect and keeps its traceback: libraries raise
    plain `ValueError` for many things (pydantic, codecs), so that commands do not catch it.
    """


def first_line(error: Exception) -> str:
    """Return the first line of an exception's message; its kind if it has none."""
    return next(iter(str(error).strip().splitlines()), type(error).__name__)


def one_line(error: Exception) -> str:
    """Return the kind of an exception and the first line of its message."""
    return f"{type(error).__name__}: {next(iter(str(error).strip().splitlines()), 'no reason given')}"
