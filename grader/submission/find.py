"""Finding submissions in `submitted/<student>/<exercise>/`, and naming whatever else is there."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from ..exercises import EXERCISES
from ..text import printable
from .files import label

MAX_UNKNOWN = 5  # unexpected entries of a student's folder that are named one by one


@dataclass(frozen=True)
class SubmissionFolder:
    """Where a hand-in lies. `student` is the name of its folder in a form that can be printed, stored and told apart."""

    student: str
    exercise: str
    folder: Path


def find(submitted: Path) -> list[SubmissionFolder]:
    """The hand-ins `<submitted>/<student>/<exercise>/`, by student and exercise; none if there is no such folder."""
    return [found for found in _survey(submitted) if isinstance(found, SubmissionFolder)]


def left_out(submitted: Path) -> list[str]:
    """What lies where hand-ins belong and is none, a line each for the instructor: what, why, what to do."""
    return [found for found in _survey(submitted) if isinstance(found, str)]


def _survey(submitted: Path) -> Iterator[SubmissionFolder | str]:
    if not submitted.is_dir():
        return
    for folder in sorted(submitted.iterdir()):
        if folder.name.startswith("."):
            continue
        where = f"{submitted.name}/{printable(folder.name)}"
        try:
            if folder.is_symlink():
                yield f"{where}: a symlink, which is not followed: put the folder itself there"
            elif not folder.is_dir():
                yield f"{where}: not a student's folder: hand-ins lie in {submitted.name}/<student>/<exercise>/"
            else:
                yield from _survey_student(folder, where)
        except OSError as error:
            yield f"{where}: cannot be looked into ({error.strerror})"


def _survey_student(folder: Path, where: str) -> Iterator[SubmissionFolder | str]:
    names = {entry.name for entry in folder.iterdir()}
    for exercise in EXERCISES:
        if exercise in names:
            yield SubmissionFolder(printable(folder.name), exercise, folder / exercise)
    unknown = sorted(name for name in names - EXERCISES.keys() if not name.startswith("."))
    for name in unknown[:MAX_UNKNOWN]:
        yield f"{where}/{label(name)}: no exercise has this name: {_where_it_belongs(name)}"
    if len(unknown) > MAX_UNKNOWN:
        yield f"{where}: {len(unknown) - MAX_UNKNOWN:,} further things that are no hand-ins"


def _where_it_belongs(name: str) -> str:
    if name.lower() in EXERCISES:
        return f"rename it to {name.lower()}"
    first, *_, last = EXERCISES
    return f"a hand-in, a zip too, lies in a folder named {first} ... {last}"
