"""The commands of a term: what comes from a learning platform and what goes back to it."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Annotated

import typer

from ..exercises import EXERCISES, ROOT
from .collect import Collected
from .collect import collect as collect_download
from .roster import FILE
from .terminal import console, one_line_for, say

Course = Annotated[Path, typer.Option(help="The course folder, with submitted/ in it.")]


def _known(exercise: str | None) -> str | None:
    if exercise is not None and exercise not in EXERCISES:
        raise typer.BadParameter(f"no exercise {exercise!r}; there are: {', '.join(EXERCISES)}")
    return exercise


def collect(
    download: Annotated[Path, typer.Argument(help="The zip of all submissions from Moodle or Canvas, or its folder.")],
    course: Course = ROOT,
    exercise: Annotated[
        str | None, typer.Option(callback=_known, help="The exercise they are of (default: seen from the files).")
    ] = None,
) -> None:
    """Bring a bulk download of Moodle or Canvas into submitted/<student>/<exercise>/ and the roster students.csv."""
    counts: Counter[str] = Counter()
    students = set()
    with one_line_for(ValueError, OSError):
        for one in collect_download(download, course, exercise):
            if isinstance(one, Collected):
                counts[one.outcome] += 1
                students.add(one.entry.student)
                continue
            counts[one.kind] += 1
            say(f"[yellow]{one.kind}[/yellow]", one.what)
    outcomes = ", ".join(f"{counts[outcome]} {outcome}" for outcome in ("new", "updated", "unchanged", "older"))
    console.print(f"{len(students)} students, {outcomes}; the roster is {course / FILE}", highlight=False)
    raise typer.Exit(1 if counts["left out"] or not students else 0)
