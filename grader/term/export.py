"""Grades and feedback for Moodle and Canvas: their own sheet with the grades in it, and a zip that they take back."""

from __future__ import annotations

import html
import io
import json
import re
import unicodedata
import zipfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from loralab.files import write_whole

from ..errors import GraderError
from ..exercises import EXERCISES
from ..reports.student_feedback import feedback_path
from ..text import display_line, spreadsheet_cell, without_folders
from ..verdict import MAX_POINTS, Verdict
from .roster import Platform, Roster
from .sheets import Sheet

FEEDBACK = "feedback.zip"
MAX_COMMENT = 1000  # characters
PARTICIPANT = re.compile(r"\D*(\d+)")
ASSIGNMENT = re.compile(r"(?P<title>.*) \((?P<number>\d+)\)", re.DOTALL)
OURS = re.compile(rf"'?-?[\d.]+ of {MAX_POINTS} points")  # a comment that an earlier export wrote
UNSAFE = re.compile(r'[_\\/:*?"<>|\x00-\x1f]')  # what Moodle takes out of a name, or reads as a separator
SUBMITTED = "Last modified (submission)"
TIME_FORMATS = (
    "%A, %d %B %Y, %I:%M %p",
    "%A, %d %B %Y, %I:%M:%S %p",
    "%A, %d %B %Y, %H:%M",
    "%Y-%m-%d %H:%M",
    "%Y-%m-%d %H:%M:%S",
)
POINTS_POSSIBLE = "Points Possible"
NOT_TO_BE_GRADED = {"EX": "excused", "N/A": "not assigned to this student"}


@dataclass(frozen=True)
class Exported:
    """The two files, how many grades are in the sheet, and a line for each thing that was not done."""

    sheet: Path
    feedback: Path
    grades: int
    lines: list[str]


@dataclass(frozen=True)
class Grades:
    """The verdicts on one exercise by student, where their pages lie, and what the platform calls them."""

    exercise: str
    verdicts: dict[str, Verdict]
    folder: Path
    roster: Roster


def read_grades(folder: Path, exercise: str | None, roster: Roster) -> Grades:
    """Return the verdicts in a folder of results. Raises `GraderError` if there are none, or of several exercises."""
    path = folder / "results.json"
    try:
        verdicts = [Verdict.model_validate(one) for one in json.loads(path.read_bytes())]
    except (OSError, ValueError):
        raise GraderError(
            f"{path}: has no results that can be read: grade the class first, or give --results"
        ) from None
    found = sorted({verdict.exercise for verdict in verdicts})
    if exercise is None and len(found) != 1:
        raise GraderError(f"{path} has results of {', '.join(found) or 'no exercise'}: name one with --exercise")
    exercise = exercise or found[0]
    chosen = {verdict.student: verdict for verdict in verdicts if verdict.exercise == exercise}
    if not chosen:
        raise GraderError(f"{path} has no results of {exercise}, only of {', '.join(found)}: grade it first")
    return Grades(exercise, chosen, folder, roster)


def submission_times(worksheet: Path) -> tuple[dict[str, str], list[str]]:
    """Return when each participant submitted, in ISO 8601, by Moodle's worksheet; and a line for each time that is not understood.

    Raises `GraderError` if the worksheet cannot be read.
    """
    sheet = Sheet.read(worksheet, ["Identifier", SUBMITTED])
    identifier, column = (sheet.row(0).index(name) for name in ("Identifier", SUBMITTED))
    times: dict[str, str] = {}
    lines: list[str] = []
    for _, row in sheet.whole_rows():
        match = PARTICIPANT.fullmatch(row[identifier])
        if match is None or row[column].strip() in ("", "-"):
            continue
        if time := _time(row[column]):
            times[match[1]] = time
        else:
            lines.append(
                f"{match[1]}: time {display_line(row[column], 60)!r} is not understood: download the worksheet in "
                "English, or write the time into students.csv"
            )
    return times, lines


def _time(text: str) -> str:
    plain = " ".join(unicodedata.normalize("NFKC", text).split())  # newer ones have a narrow space before AM and PM
    for form in TIME_FORMATS:
        try:
            return datetime.strptime(plain, form).isoformat()
        except ValueError:
            continue
    return ""


def export_moodle(worksheet: Path, grades: Grades, out: Path) -> Exported:
    """Fill Moodle's offline grading worksheet. Raises `GraderError`."""
    sheet = Sheet.read(worksheet, ["Identifier", "Grade"])
    header = [name.casefold() for name in sheet.row(0)]
    columns = {name: header.index(name) for name in header}
    pages: dict[str, str] = {}
    lines: list[str] = []
    for number, row in sheet.whole_rows():
        match = PARTICIPANT.fullmatch(row[columns["identifier"]])
        verdict = grades.verdicts.get(match[1]) if match else None
        if verdict is None or verdict.final_points is None:
            continue
        if _cell(row, columns, "grade can be changed").casefold() == "no":
            lines.append(f"{verdict.student}: Moodle says that the grade cannot be changed: left as it is")
            continue
        largest = _cell(row, columns, "maximum grade")
        sheet.put(number, columns["grade"], _grade(verdict.final_points, largest))
        pages[verdict.student] = _page_in_moodle(grades, verdict.student, _cell(row, columns, "full name"))
        comment = _cell(row, columns, "feedback comments")
        if comment and not OURS.match(comment):
            lines.append(f"{verdict.student}: has a comment by hand, which stays")
        elif "feedback comments" in columns:
            sheet.put(number, columns["feedback comments"], _comment(verdict))
    return _write(sheet, worksheet, grades, out, pages, lines)


def export_canvas(gradebook: Path, grades: Grades, out: Path, assignment: str | None) -> Exported:
    """Fill one assignment's column of Canvas's gradebook. Raises `GraderError`."""
    sheet = Sheet.read(gradebook, ["ID"])
    header = sheet.row(0)
    column = _assignment(header, grades.exercise, assignment, gradebook)
    identifier = header.index("ID")
    largest, lines, pages = str(MAX_POINTS), [], {}
    for number, row in sheet.whole_rows():
        if row[0].strip() == POINTS_POSSIBLE:
            largest = row[column]
        verdict = grades.verdicts.get(row[identifier])
        if verdict is None or verdict.final_points is None:
            continue
        if why := NOT_TO_BE_GRADED.get(row[column]):
            lines.append(f"{verdict.student}: {why} in Canvas: left as it is")
            continue
        sheet.put(number, column, _grade(verdict.final_points, largest))
        download = _download(grades, verdict.student, "canvas")
        pages[verdict.student] = f"{download.rsplit('.', 1)[0]}.html" if download else ""
    return _write(sheet, gradebook, grades, out, pages, lines)


def _cell(row: Sequence[str], columns: dict[str, int], name: str) -> str:
    return row[columns[name]] if name in columns else ""


def _assignment(header: Sequence[str], exercise: str, asked: str | None, path: Path) -> int:
    """Return the column of the assignment: the one that is asked for, that names the exercise, or the only one."""
    found = {number: match for number, name in enumerate(header) if (match := ASSIGNMENT.fullmatch(name))}
    wanted = [asked] if asked else [exercise, EXERCISES[exercise].title]
    named = [
        number
        for number, match in found.items()
        if any(one in (match["number"], match[0], match["title"]) or (not asked and one in match[0]) for one in wanted)
    ]
    chosen = named or ([] if asked else list(found))
    if len(chosen) != 1:
        names = ", ".join(match[0] for match in found.values()) or "none"
        raise GraderError(
            f"{path}: no single column fits {asked or exercise}: name one with --assignment: {display_line(names)}"
        )
    return chosen[0]


def _grade(points: float, largest: str) -> str:
    """Return the points on the sheet's own scale, with its own decimal mark."""
    try:
        scale = float(largest.replace(",", ".")) / MAX_POINTS if largest.strip() else 1.0
    except ValueError:
        raise GraderError(
            f"the largest grade {display_line(largest, 20)!r} is no number: give the assignment points"
        ) from None
    text = f"{round(points * scale, 2):g}"
    return text.replace(".", ",") if "," in largest else text


def _comment(verdict: Verdict) -> str:
    """Return what the student reads in Moodle, on one line: the points, why they were adjusted, and what did not pass."""
    earned = f"{verdict.points:g} before adjustment" if verdict.adjustments and verdict.points is not None else ""
    parts = [f"{verdict.final_points:g} of {MAX_POINTS} points", earned, verdict.reasons, verdict.other_version]
    parts += [without_folders(verdict.message), *(check.label for check in verdict.checks if not check.passed)]
    return spreadsheet_cell(html.escape(display_line("; ".join(filter(None, parts)), MAX_COMMENT), quote=False))


def _page_in_moodle(grades: Grades, student: str, name: str) -> str:
    """Return where Moodle looks for a student's page in the zip: by the download, or else by the full name."""
    download = _download(grades, student, "moodle")
    if download and not re.search(r"_assignsubmission_file_?$", download):  # of a download without folders
        return f"{download.partition('assignsubmission_file_')[0]}assignsubmission_file_{grades.exercise}.html"
    folder = download or f"{UNSAFE.sub(' ', name) or 'Participant'}_{student}_assignsubmission_file_"
    return f"{folder}/{grades.exercise}.html"


def _download(grades: Grades, student: str, lms: Platform) -> str:
    entry = grades.roster.get((student, grades.exercise))
    return entry.download if entry and entry.lms == lms else ""


def _write(sheet: Sheet, source: Path, grades: Grades, out: Path, pages: dict[str, str], lines: list[str]) -> Exported:
    """Write the filled sheet, and the zip of the feedback; `pages` has the name of each graded student's page in it."""
    target = out / source.name
    if target.exists() and target.samefile(source):
        raise GraderError(f"--out {out}: the sheet is in this folder and would be overwritten: name another folder")
    graded = {student for student, verdict in grades.verdicts.items() if verdict.final_points is not None}
    mentioned = {line.partition(":")[0] for line in lines}
    lines += [f"{one}: graded, and has no row in {source.name}" for one in sorted(graded - pages.keys() - mentioned)]
    found = list(_pages(grades, pages, lines))
    try:
        write_whole(target, sheet.content())
        write_whole(out / FEEDBACK, _zipped(found))
    except OSError as error:
        raise GraderError(f"--out {out}: cannot be written ({error.strerror}): name another folder") from None
    return Exported(target, out / FEEDBACK, len(pages), lines)


def _pages(grades: Grades, names: dict[str, str], lines: list[str]) -> Iterator[tuple[str, bytes]]:
    for student, name in sorted(names.items()):
        page = grades.folder / feedback_path(student, grades.exercise)
        if not page.is_file():
            lines.append(f"{student}: has no feedback page: run grade again, which writes it")
        elif not name:
            lines.append(
                f"{student}: was not collected from this platform, so its feedback has no name there: left out"
            )
        else:
            yield name, page.read_bytes()


def _zipped(pages: Sequence[tuple[str, bytes]]) -> bytes:
    """Return the zip of these pages, the same bytes for the same pages."""
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w") as archive:
        for name, page in pages:
            archive.writestr(zipfile.ZipInfo(name), page, zipfile.ZIP_DEFLATED)
    return content.getvalue()
