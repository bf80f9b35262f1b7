"""The roster `students.csv`: who submitted what and when, and what the learning platform calls it."""

from __future__ import annotations

import csv
import re
from dataclasses import astuple, dataclass, fields
from datetime import datetime
from pathlib import Path
from typing import Literal, get_args
from urllib.parse import unquote

from ..errors import GraderError
from ..reports.class_stats import in_order
from ..reports.exports import write_table
from ..text import spreadsheet_cell

FILE = "students.csv"
Platform = Literal["moodle", "canvas"]
Late = Literal["yes", "no", ""]
# What a spreadsheet might run, or a file's name might break a row with.
UNSAFE = re.compile(r"^\W|[%;\x00-\x1f]")


@dataclass(frozen=True)
class Entry:
    """One submission of one student, as it was collected last.

    `student` is the folder in `submitted/` and the platform's own id. `late` is what the platform says ("" where it says
    nothing). `timestamp` is ISO 8601, without an offset where the download has none. `download` is the folder (Moodle)
    or the file (Canvas) of the download. `digest` identifies the content.
    """

    student: str
    name: str
    lms: Platform
    exercise: str
    late: Late
    timestamp: str
    download: str
    digest: str

    @property
    def submitted(self) -> datetime | None:
        """The timestamp, without a time zone where the download has none; None if there is none."""
        return datetime.fromisoformat(self.timestamp) if self.timestamp else None


Roster = dict[tuple[str, str], Entry]
COLUMNS = [field.name for field in fields(Entry)]


def read_roster(course: Path) -> Roster:
    """Return the entries by student and exercise, none if there is no roster. Raises `GraderError`."""
    path = course / FILE
    if not path.exists():
        return {}
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            rows = list(csv.DictReader(file))
        entries = [_entry(row) for row in rows]
    except OSError as error:
        raise GraderError(f"{path}: cannot be read ({error.strerror}): make it a file that you can read") from None
    except (csv.Error, KeyError, TypeError, ValueError) as error:  # a short row has None in it
        raise GraderError(
            f"{path}: cannot be read as the roster ({error}): keep the columns {', '.join(COLUMNS)}, in UTF-8"
        ) from None
    return {(entry.student, entry.exercise): entry for entry in entries}


def _entry(row: dict[str, str]) -> Entry:
    lms: Platform | None = next((one for one in get_args(Platform) if one == row["lms"]), None)
    late: Late | None = next((one for one in get_args(Late) if one == row["late"]), None)
    if lms is None or late is None:
        raise ValueError(f"lms {row['lms']!r}, late {row['late']!r}")
    if row["timestamp"]:
        datetime.fromisoformat(row["timestamp"])  # raises if it is no time
    plain = row["name"].removeprefix("'")
    name = plain if spreadsheet_cell(plain) == row["name"] else row["name"]  # without the mark that `write_roster` made
    download = unquote(row["download"])
    return Entry(row["student"], name, lms, row["exercise"], late, row["timestamp"], download, row["digest"])


def write_roster(roster: Roster, course: Path) -> None:
    """Write `students.csv`, by student and exercise; names that a spreadsheet would run are marked as text.

    Raises `GraderError` if it cannot be written.
    """
    rows = []
    for entry in sorted(roster.values(), key=lambda entry: (in_order(entry.student), entry.exercise)):
        row = dict(zip(COLUMNS, astuple(entry), strict=True))
        row["name"] = spreadsheet_cell(entry.name)
        download = entry.download.encode("utf-8", "surrogateescape").decode("utf-8", "replace")
        row["download"] = UNSAFE.sub(lambda found: "".join(f"%{byte:02X}" for byte in found[0].encode()), download)
        rows.append(row.values())
    try:
        write_table(course / FILE, COLUMNS, rows)
    except OSError as error:
        raise GraderError(
            f"{course / FILE}: cannot be written ({error.strerror}): make room there, or permit it"
        ) from None
