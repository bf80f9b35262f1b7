"""The commands of a term: what comes from a learning platform and what goes back to it.

As in `grader.cli`, a command imports what it needs when it runs.
"""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Annotated, Any

import typer

from ..console import console, private_files, report_errors, say
from ..errors import GraderError
from ..exercises import EXERCISES, ROOT
from ..text import display_line
from .roster import FILE, read_roster

Course = Annotated[Path, typer.Option(file_okay=False, help="The course folder, with submitted/ in it.")]


def known(exercise: str | None) -> str | None:
    """Return the exercise if it is one, or None for None. Raises `BadParameter`."""
    if exercise is not None and exercise not in EXERCISES:
        raise typer.BadParameter(f"no exercise {exercise!r}; there are: {', '.join(EXERCISES)}")
    return exercise


def collect(
    download: Annotated[Path, typer.Argument(help="The zip of all submissions from Moodle or Canvas, or its folder.")],
    course: Course = ROOT,
    exercise: Annotated[
        str | None, typer.Option(callback=known, help="The exercise they are of (default: seen from the files).")
    ] = None,
    worksheet: Annotated[
        Path | None, typer.Option(help="Moodle's grading worksheet, which knows when each student submitted.")
    ] = None,
) -> None:
    """Bring a bulk download of Moodle or Canvas into submitted/<student>/<exercise>/ and the roster students.csv."""
    from .collect import Collected
    from .collect import collect as collect_download
    from .export import submission_times

    counts: Counter[str] = Counter()
    students = set()
    with report_errors(), private_files():
        times, unclear = submission_times(worksheet) if worksheet else ({}, [])
        for line in unclear:
            say("note", line)
        for one in collect_download(download, course, exercise, times):
            if isinstance(one, Collected):
                counts[one.outcome] += 1
                students.add(one.entry.student)
                continue
            counts[one.kind] += 1
            say(one.kind, one.what)
    outcomes = ", ".join(f"{counts[outcome]} {outcome}" for outcome in ("new", "updated", "unchanged", "older"))
    console.print(f"{len(students)} students, {outcomes}; the roster is {course / FILE}")
    raise typer.Exit(1 if counts["left out"] or not students else 0)


def export(
    out: Annotated[Path, typer.Option(help="The folder for the filled sheet and feedback.zip.")],
    moodle: Annotated[Path | None, typer.Option(help="Moodle's grading worksheet, as downloaded.")] = None,
    canvas: Annotated[Path | None, typer.Option(help="Canvas's gradebook, as exported.")] = None,
    course: Course = ROOT,
    exercise: Annotated[str | None, typer.Option(callback=known, help="The exercise (default: the only one.)")] = None,
    assignment: Annotated[
        str | None, typer.Option(help="Canvas's column, by name or number (default: the one named like the exercise).")
    ] = None,
    results: Annotated[
        Path | None, typer.Option(help="The folder that grade wrote (default: build/grade in the course).")
    ] = None,
) -> None:
    """Fill the sheet of Moodle or Canvas with the grades, and zip the feedback as they take it back."""
    from .export import export_canvas, export_moodle, read_grades

    with report_errors(), private_files():
        if assignment and moodle:
            raise GraderError("--assignment names a column of Canvas's gradebook; a worksheet of Moodle has one grade")
        grades = read_grades(results or results_folder(course), exercise, read_roster(course))
        if moodle and not canvas:
            done = export_moodle(moodle, grades, out)
        elif canvas and not moodle:
            done = export_canvas(canvas, grades, out, assignment)
        else:
            raise GraderError("name one sheet: --moodle worksheet.csv or --canvas gradebook.csv")
    for line in done.lines:
        say("note", line)
    console.print(f"{done.grades} grades of {grades.exercise} in {done.sheet}, feedback in {done.feedback}")


def decide(
    student: str, exercise: str, note: str, points: float | None, remove: bool, course: Path, out: Path
) -> dict[str, Any]:
    """Keep the decision, and return the options with which the class was graded last. Raises `GraderError`."""
    from ..records.ledger import Ledger
    from ..submission.find import find
    from .history import Decision, History, Kind

    if points is not None and remove:
        raise GraderError("--points sets points and --remove removes them: give one of the two")
    if not note.strip():
        raise GraderError("--note is empty: say why")
    if not any((one.student, one.exercise) == (student, exercise) for one in find(course / "submitted")):
        raise GraderError(
            f"{course / 'submitted'} has no {display_line(student)}/{exercise}: name the folders as they are there"
        )
    if not (out / "ledger.db").is_file():
        raise GraderError(f"{out} has no ledger.db: grade the class first, or name its results with --out")
    with Ledger(out / "ledger.db") as ledger:
        history = History(ledger)
        options = history.recall()
        if options is None:
            raise GraderError(f"{out / 'ledger.db'} was written by an older version: run grade once more first")
        if remove and (student, exercise) not in history.points_by_hand():
            raise GraderError(
                f"{display_line(student)}, {exercise}: no points were set by hand, so none can be removed"
            )
        kind: Kind = "removed" if remove else "again" if points is None else "points"
        history.decide(Decision(student, exercise, kind, points, display_line(note)))
    if options["exercise"]:
        options["exercise"] = sorted({*options["exercise"], exercise})
    return options


def results_folder(course: Path, name: str = "grade") -> Path:
    """Return where the results of a course go, unless another folder is named."""
    return course / "build" / name
