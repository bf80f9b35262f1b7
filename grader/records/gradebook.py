"""Bringing verdicts into nbgrader's gradebook, through nbgrader's own API.

The grader owns the automatic scores and one automatic comment; what people entered (manual scores, extra credit,
comments, names) is never touched.
"""

from __future__ import annotations

import os
import sys
import unicodedata
import warnings
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from nbformat import NotebookNode
from nbgrader import utils
from nbgrader.api import Gradebook, InvalidEntry, MissingEntry
from nbgrader.preprocessors import SaveCells
from sqlalchemy.engine import make_url
from sqlalchemy.exc import ArgumentError, NoSuchModuleError, ProgrammingError, SAWarning, SQLAlchemyError

from loralab.errors import first_line

from ..errors import GradebookError, UnusableName
from ..exercises import EXERCISES, Exercise
from ..text import code_block
from ..verdict import MAX_POINTS, Verdict

MAX_NAME = 128  # characters; nbgrader's columns are no wider
# Formgrader writes a student's name into its pages and scripts as it is, and nbgrader looks for files by its pattern.
UNSAFE_IN_NAMES = set('<>"\\/*?[]')
MAX_COMMENT = 20_000  # characters


@dataclass(frozen=True)
class Sheet:
    """What of an exercise is scored by machine: the largest score of each such cell, and the cell that is commented."""

    scored: dict[str, float]
    commented: str

    @classmethod
    def of(cls, notebook: NotebookNode) -> Sheet:
        cells = [cell for cell in notebook.cells if cell.cell_type == "code"]
        scored = {
            cell.metadata.nbgrader.grade_id: float(cell.metadata.nbgrader.points)
            for cell in cells
            if utils.is_grade(cell) and not utils.is_solution(cell)
        }
        return cls(scored, [cell.metadata.nbgrader.grade_id for cell in cells if utils.is_solution(cell)][-1])


@contextmanager
def nbgraders_tools() -> Iterator[None]:
    """Put nbgrader's programs on the PATH: for a new gradebook it calls one by name."""
    before = os.environ.get("PATH", "")
    os.environ["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{before}"
    try:
        yield
    finally:
        os.environ["PATH"] = before


def default_url(course: Path) -> str:
    """Return the URL where nbgrader expects the gradebook of the course in this folder."""
    return f"sqlite:///{course.resolve() / 'gradebook.db'}"


def check_name(student: str) -> None:
    """Check a student's name. Raises `UnusableName` if nbgrader cannot store it, or would misread it."""
    if len(student) > MAX_NAME:
        why = f"has {len(student)} characters, and nbgrader takes {MAX_NAME}"
    elif bad := sorted(set(student) & UNSAFE_IN_NAMES):
        why = f"holds {bad[0]}, which nbgrader's pages and file patterns take for more than a letter"
    elif any(unicodedata.category(letter) in {"Cc", "Cs"} for letter in student):
        why = "holds control characters or bytes that are no text"
    elif not student or student.startswith(".") or student != student.strip():
        why = "is empty, or begins with a dot, or begins or ends with a space"
    else:
        return
    raise UnusableName(f"student {student[:60]!a}: the name {why}: rename the folder")


def write_gradebook(verdicts: Iterable[Verdict], url: str) -> list[str]:
    """Bring `verdicts` into the gradebook at `url`; a line for each that could not be, because of the student's name.

    The points are spread over the exercise's automatically scored cells in proportion to what each can have. A verdict
    without points ("grader failed") changes nothing. What is already as it should be is not written. Raises `GradebookError`.
    """
    taken, left_out = _writable(verdicts)
    exercises = [EXERCISES[name] for name in sorted({verdict.exercise for verdict in taken})]
    with _explained(url), warnings.catch_warnings():
        warnings.simplefilter("ignore", SAWarning)  # nbgrader's own use of its tables
        url = _with_driver(url)
        sheets = _enter_exercises(exercises, url)
        with Gradebook(url) as gradebook:
            for verdict in taken:
                _enter(gradebook, verdict, sheets[verdict.exercise])
    return left_out


def ask_for_another_look(student: str, exercise: Exercise, url: str) -> None:
    """Mark what was graded by hand for somebody to look at again; the points stay. Raises `GradebookError`."""
    with _explained(url), Gradebook(_with_driver(url)) as gradebook, suppress(MissingEntry):
        for grade in gradebook.find_submission_notebook(exercise.id, exercise.id, student).grades:
            grade.needs_manual_grade = grade.needs_manual_grade or grade.manual_score is not None
        gradebook.db.commit()


def _writable(verdicts: Iterable[Verdict]) -> tuple[list[Verdict], list[str]]:
    taken, left_out = [], {}
    for verdict in verdicts:
        try:
            check_name(verdict.student)
        except UnusableName as unusable:
            left_out[verdict.student] = str(unusable)
        else:
            if verdict.final_points is not None:
                taken.append(verdict)
    return taken, list(left_out.values())


def _with_driver(url: str) -> str:
    """Name the driver: a bare postgresql:// means another package in each version of SQLAlchemy."""
    parsed = make_url(url)
    driver = "postgresql+psycopg2" if parsed.drivername == "postgresql" else parsed.drivername
    return parsed.set(drivername=driver).render_as_string(hide_password=False)


def _enter_exercises(exercises: list[Exercise], url: str) -> dict[str, Sheet]:
    """Make the gradebook if there is none, and enter the exercises' cells as `nbgrader generate_assignment` does."""
    sheets = {}
    with nbgraders_tools(), Gradebook(url) as gradebook:
        for exercise in exercises:
            gradebook.update_or_create_assignment(exercise.id)
    for exercise in exercises:
        notebook = exercise.released()
        about = {"notebook": exercise.id, "assignment": exercise.id, "db_url": url}
        SaveCells().preprocess(notebook, {"nbgrader": about})
        sheets[exercise.id] = Sheet.of(notebook)
    return sheets


def _enter(gradebook: Gradebook, verdict: Verdict, sheet: Sheet) -> None:
    """Enter one student's scores and comment in one transaction (after one that creates the empty entries, if needed)."""
    gradebook.update_or_create_student(verdict.student)
    gradebook.update_or_create_submission(verdict.exercise, verdict.student)
    entries = gradebook.find_submission_notebook(verdict.exercise, verdict.exercise, verdict.student)
    share = (verdict.final_points or 0.0) / MAX_POINTS
    for grade in entries.grades:
        if grade.name in sheet.scored and grade.auto_score != (score := share * sheet.scored[grade.name]):
            grade.auto_score = score
            grade.needs_manual_grade = grade.manual_score is not None  # it changed below a manual one: look again
    for comment in entries.comments:
        if comment.name == sheet.commented:
            comment.auto_comment = code_block("\n".join(_lines(verdict)), MAX_COMMENT)
    gradebook.db.commit()


def _lines(verdict: Verdict) -> Iterator[str]:
    stopped = "the notebook stopped:" if verdict.state == "graded" else verdict.state
    outcome = "every check passed." if verdict.passed else stopped if verdict.message else "what did not pass:"
    yield f"{verdict.final_points:g} of {MAX_POINTS} points: {outcome}"
    if verdict.adjustments:
        earned = "no points yet" if verdict.points is None else f"{verdict.points:g} before adjustment"
        yield f"{earned}; {verdict.reasons}"
    if verdict.other_version:
        yield verdict.other_version
    if verdict.message:
        yield verdict.message
    for check in verdict.checks:
        if not check.passed:
            yield f"{check.label}: {check.for_students.reason}"


@contextmanager
def _explained(url: str) -> Iterator[None]:
    """Report every failure of a gradebook in one line, without the password in its URL."""
    try:
        where = make_url(url).render_as_string(hide_password=True)
        yield
    except NoSuchModuleError:
        raise GradebookError(f"gradebook {where}: no such kind of database: sqlite:// or postgresql://") from None
    except ArgumentError:
        raise GradebookError(
            "the gradebook's URL cannot be read: as in sqlite:////folder/gradebook.db or postgresql://user@host/name"
        ) from None
    except ModuleNotFoundError as error:
        raise GradebookError(f"gradebook {where}: needs {error.name}: pip install 'loralab[postgres]'") from None
    except (InvalidEntry, MissingEntry, RuntimeError) as error:
        raise GradebookError(
            f"gradebook {where}: was made for other notebooks ({first_line(error)}): move it away or name another"
        ) from None
    except (SQLAlchemyError, OSError) as error:
        what = first_line(getattr(error, "orig", None) or error)  # the driver's own words
        older = isinstance(error, ProgrammingError) or "no such column" in what
        advice = "; if it is of an older nbgrader: nbgrader db upgrade" if older else ""
        raise GradebookError(f"gradebook {where}: cannot be written: {what}{advice}") from None
