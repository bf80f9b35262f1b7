"""Finding submissions in `submitted/<student>/<exercise>/`, and naming whatever else is there."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from ..exercises import EXERCISES
from ..text import as_it_looks, invisible, printable
from .files import label

MAX_UNKNOWN = 5  # unexpected entries of a student's folder that are named one by one


@dataclass(frozen=True)
class SubmissionFolder:
    """Where a submission is. `student` is the name of its folder in a form that can be printed, stored and told apart.

    `inside` is the folder of the class, up to which no part of the path may be a link.
    """

    student: str
    exercise: str
    folder: Path
    inside: Path | None = None


def find(submitted: Path) -> list[SubmissionFolder]:
    """Return the submissions `<submitted>/<student>/<exercise>/`, by student and exercise; none if there is no such folder."""
    return [found for found in _survey(submitted) if isinstance(found, SubmissionFolder)]


def left_out(submitted: Path) -> list[str]:
    """Return a line for each entry that is not a submission, for the instructor: what, why, what to do."""
    return [found for found in _survey(submitted) if isinstance(found, str)]


def doubtful_names(submitted: Path) -> list[str]:
    """Return a line for each student whose name shows only in part, or looks like that of another one."""
    students = list(dict.fromkeys(found.folder.parent.name for found in find(submitted)))
    lines = [
        f"{submitted.name}/{printable(name)}: the name holds {letters}, which shows nothing: ask who this is"
        for name in students
        if (letters := invisible(name))
    ]
    alike: dict[str, list[str]] = {}
    for name in students:
        alike.setdefault(as_it_looks(name), []).append(name)
    for names in alike.values():
        if len(names) > 1:
            shown = " and ".join(f"{printable(name)} ({name!a})" for name in names[:MAX_UNKNOWN])
            lines.append(f"{submitted.name}: {shown} look alike: ask whether they are different people")
    return lines


def _survey(submitted: Path) -> Iterator[SubmissionFolder | str]:
    if not submitted.is_dir():
        return
    for folder in sorted(submitted.iterdir()):
        where = f"{submitted.name}/{printable(folder.name)}"
        try:
            if folder.name.startswith("."):
                if folder.is_dir() and not folder.is_symlink() and _holds_an_exercise(folder):
                    yield f"{where}: a name that begins with a dot is that of a hidden folder: rename it"
            elif folder.is_symlink():
                yield f"{where}: a symlink, which is not followed: put the folder itself there"
            elif not folder.is_dir():
                yield f"{where}: not a student's folder: submissions belong in {submitted.name}/<student>/<exercise>/"
            else:
                yield from _survey_student(folder, where)
        except OSError as error:
            yield f"{where}: cannot be looked into ({error.strerror})"


def _holds_an_exercise(folder: Path) -> bool:
    return any(entry.name.lower() in EXERCISES for entry in folder.iterdir())


def _survey_student(folder: Path, where: str) -> Iterator[SubmissionFolder | str]:
    names = {entry.name for entry in folder.iterdir()}
    for exercise in EXERCISES:
        if exercise in names:
            yield SubmissionFolder(printable(folder.name), exercise, folder / exercise, folder.parent)
    unknown = sorted(name for name in names - EXERCISES.keys() if not name.startswith("."))
    for name in unknown[:MAX_UNKNOWN]:
        yield f"{where}/{label(name)}: no exercise has this name: {_where_it_belongs(name)}"
    if len(unknown) > MAX_UNKNOWN:
        yield f"{where}: {len(unknown) - MAX_UNKNOWN:,} further entries that are not submissions"


def _where_it_belongs(name: str) -> str:
    if name.lower() in EXERCISES:
        return f"rename it to {name.lower()}"
    first, *_, last = EXERCISES
    return f"a submission, also a zip, belongs in a folder named {first} ... {last}"
