"""Telling of an exception in one line."""

from __future__ import annotations


def first_line(error: Exception) -> str:
    """The first line of what an exception says; its kind where it says nothing."""
    return next(iter(str(error).strip().splitlines()), type(error).__name__)


def one_line(error: Exception) -> str:
    """The kind of an exception and the first line of what it says."""
    return f"{type(error).__name__}: {next(iter(str(error).strip().splitlines()), 'no reason given')}"
