"""The errors that users can correct, and exceptions in one line."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pydantic import ValidationError


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


def first_problem(error: ValidationError) -> str:
    """Return, in one line, the first field that a file has wrong, and what is wrong with it."""
    first = error.errors()[0]
    where = ".".join(map(str, first["loc"])) or "the file"
    return " ".join(f"{where}: {first['msg'].removeprefix('Value error, ')}".split())
