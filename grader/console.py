"""What every command prints: one line for one thing, and one line and exit status 2 where it cannot do its work."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager

import typer
from rich.console import Console
from rich.markup import escape

from loralab.errors import LoralabError

console = Console(emoji=False)  # a message may hold what looks like the name of an emoji


@contextmanager
def report_errors() -> Iterator[None]:
    """End the command with one line and exit status 2 if there is something that the user can correct.

    A defect is none: it keeps its traceback.
    """
    try:
        yield
    except LoralabError as error:
        say("[red]Error[/red]", str(error))
        raise typer.Exit(2) from None


def say(kind: str, what: str) -> None:
    """Print one line: its kind, which may have markup, and a text, which has none."""
    console.print(f"{kind}: {escape(what)}", highlight=False, soft_wrap=True)


@contextmanager
def private_files() -> Iterator[None]:
    """Make new files readable by their owner alone: results, feedback and the gradebook are about people."""
    usual = os.umask(0o077)
    try:
        yield
    finally:
        os.umask(usual)
