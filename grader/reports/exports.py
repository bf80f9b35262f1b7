"""Verdicts for other programs: results.json and grades.csv."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterable, Sequence
from dataclasses import astuple, fields
from pathlib import Path
from typing import Any

from loralab.files import whole_file, write_whole

from ..text import spreadsheet_cell
from ..verdict import MAX_POINTS, Verdict


def write_results(verdicts: Sequence[Verdict], folder: Path) -> None:
    """Write every verdict as JSON, with all checks and the run's own record; the secret seed is only in the ledger.

    NaN and infinity are written as Python's json does, a name that is no UTF-8 with \\u escapes: both can be read back.
    """
    # Verdict by verdict, since all at once may be much.
    with whole_file(folder / "results.json") as path, path.open("w", encoding="ascii") as file:
        for i, verdict in enumerate(verdicts):
            file.write("[\n" if i == 0 else ",\n")
            file.write(json.dumps(verdict.published(), indent=1))
        file.write("\n]\n" if verdicts else "[]\n")


def write_grades(verdicts: Sequence[Verdict], folder: Path) -> None:
    """Write one row per student and exercise; text that a spreadsheet would run as a formula is marked as text.

    What the grader failed at has neither points nor a pass or fail. If anything was adjusted (late, by hand), two more
    columns have the points that count and why.
    """
    adjusted = any(verdict.adjustments for verdict in verdicts)
    columns = ["student", "exercise", "state", "points", "max_points", "passed", "message"]
    rows = []
    for verdict in verdicts:
        texts = map(spreadsheet_cell, (verdict.student, verdict.exercise, verdict.state))
        scored = ("", MAX_POINTS, "") if verdict.points is None else (verdict.points, MAX_POINTS, str(verdict.passed))
        counts = "" if verdict.final_points is None else verdict.final_points
        more = [counts, spreadsheet_cell(verdict.reasons)] * adjusted
        rows.append([*texts, *scored, spreadsheet_cell(_reasons(verdict)), *more])
    write_table(folder / "grades.csv", columns + ["final_points", "adjustment"] * adjusted, rows, quote_texts=True)


def _reasons(verdict: Verdict) -> str:
    failed = [f"{check.label}: {check.reason}" for check in verdict.checks if not check.passed]
    return "; ".join(filter(None, [verdict.other_version, verdict.message, *failed]))


def write_texts(path: Path, kind: type[Any], rows: Sequence[Any]) -> Path:
    """Write dataclasses of this kind, whose fields are texts, as a CSV file; what a spreadsheet would run is marked."""
    marked = ([spreadsheet_cell(text) for text in astuple(one)] for one in rows)
    return write_table(path, [field.name for field in fields(kind)], marked)


def write_table(path: Path, header: Iterable[str], rows: Iterable[Iterable[object]], quote_texts: bool = False) -> Path:
    """Write a CSV file that spreadsheets read as UTF-8; texts that they could run must be marked before."""
    content = io.StringIO(newline="")
    writer = csv.writer(content, quoting=csv.QUOTE_NONNUMERIC if quote_texts else csv.QUOTE_MINIMAL)
    writer.writerow(header)
    writer.writerows(rows)
    return write_whole(path, "\ufeff" + content.getvalue())  # the mark by which a spreadsheet knows UTF-8
