"""The course's `autograded/`: the notebooks that formgrader shows and nbgrader makes its feedback from."""

from __future__ import annotations

import json
from contextlib import suppress
from pathlib import Path

from loralab.files import write_whole

from ..exercises import ABOUT, Exercise
from .gradebook import check_name


def write_autograded(student: str, exercise: Exercise, notebook: bytes, course: Path) -> Path:
    """Write `notebook`, which `harmless` made, where formgrader looks for it, and return the path.

    Raises `UnusableName`, for a name that could lead elsewhere, too.
    """
    return write_whole(_path(student, exercise, course), notebook)


def origin_of(student: str, exercise: Exercise, course: Path) -> str:
    """Return what the notebook there was made from; "" if there is none, or if it is not ours."""
    try:
        found = json.loads(_path(student, exercise, course).read_bytes())["metadata"][ABOUT]["origin"]
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return ""
    return found if isinstance(found, str) else ""


def answers_differ(student: str, exercise: Exercise, notebook: bytes | None, course: Path) -> bool:
    """Tell whether `notebook` has other answers than the one there; false if there is none, or if it is not ours."""
    if not origin_of(student, exercise, course):
        return False
    answers = _sources(notebook) if notebook else []
    return _sources(_path(student, exercise, course).read_bytes()) != answers


def _sources(notebook: bytes) -> list[str] | None:
    """Return the sources of the cells; None for a notebook that is damaged, which so differs from every other one."""
    try:
        return ["".join(cell["source"]) for cell in json.loads(notebook)["cells"]]
    except (ValueError, KeyError, TypeError, RecursionError):
        return None


def remove_autograded(student: str, exercise: Exercise, course: Path) -> None:
    """Take away the notebook of an earlier submission, and its folders if nothing else is in them."""
    if not origin_of(student, exercise, course):
        return
    path = _path(student, exercise, course)
    path.unlink()
    with suppress(OSError):  # something else is in them
        path.parent.rmdir()
        path.parent.parent.rmdir()


def _path(student: str, exercise: Exercise, course: Path) -> Path:
    check_name(student)
    return course / "autograded" / student / exercise.id / exercise.solution.name
