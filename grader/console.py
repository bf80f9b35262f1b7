"""What every command prints: one line for one thing, and one line and exit status 2 where it cannot do its work."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager

import typer
from rich.console import Console
from rich.text import Text

from loralab.errors import LoralabError

# A message or a path may hold what looks like markup, or like the name of an emoji.
console = Console(markup=False, emoji=False, highlight=False)


@contextmanager
def report_errors() -> Iterator[None]:
    """End the command with one line and exit status 2 if there is something that the user can correct.

    A defect is none: it keeps its traceback.
    """
    try:
        yield
    except LoralabError as error:
        say("Error", str(error), "red")
        raise typer.Exit(2) from None


def say(kind: str, what: str, style: str = "yellow") -> None:
    """Print one line: its kind, in this style, and a text."""
    console.print(Text.assemble((kind, style), f": {what}"), soft_wrap=True)


@contextmanager
def private_files() -> Iterator[None]:
    """Make new files readable by their owner alone: results, feedback and the gradebook are about people."""
    usual = os.umask(0o077)
    try:
        yield
    finally:
        os.umask(usual)
