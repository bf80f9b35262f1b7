"""Which exercise a file belongs to, whatever it is called: by its names, and a notebook by the cells that we released."""

from __future__ import annotations

import re
import unicodedata
from collections import Counter
from collections.abc import Iterable, Iterator
from functools import cache
from typing import Any

from ..errors import BadSubmission
from ..exercises import EXERCISES
from ..submission.archive import named_entries, open_contents, report_archive_errors
from ..submission.files import MAX_ENTRIES, Parts
from ..submission.rebuild import cells_of, joined

NUMBERED = re.compile(r"(?:\s*\((\d+)\)|-(\d+))$")  # a browser's "name (1)", Canvas's "name-1"


def without_number(stem: str) -> tuple[str, int]:
    """Split the number of a further copy from a file's stem; 0 if it has none."""
    found = NUMBERED.search(stem)
    return (stem[: found.start()], int(found[1] or found[2])) if found else (stem, 0)


def exercises_of(path: Parts, content: bytes) -> set[str]:
    """Return the exercises to which this file seems to belong: none, one, or several for a zip of several."""
    name = path[-1].lower()
    if name.endswith(".ipynb") and (exercise := _of_notebook(content)):
        return {exercise}
    if found := {one for part in path if (one := _of_name(part))}:
        return found
    if not name.endswith(".zip"):
        return set()
    try:
        return {one for inner in _names_in(content) for part in inner.split("/") if (one := _of_name(part))}
    except BadSubmission:  # intake has the words for it
        return set()


def _names_in(content: bytes) -> list[str]:
    with report_archive_errors("the zip"), open_contents(content) as archive:
        return [name for _, name in named_entries(archive)[:MAX_ENTRIES]]


def _of_name(name: str) -> str | None:
    """Return the exercise of this name (with whatever ending and number), or the one that has a run of this name."""
    stem = without_number(name.rsplit(".", 1)[0] if "." in name else name)[0]
    plain = re.sub(r"[\s_-]+", "_", unicodedata.normalize("NFKC", stem)).strip("_").lower()
    return plain if plain in EXERCISES else _runs().get(name)


@cache
def _runs() -> dict[str, str]:
    return {run.name: exercise.id for exercise in EXERCISES.values() for run in exercise.runs}


def _of_notebook(content: bytes) -> str | None:
    """Return the exercise with most of the marks that no other exercise has; None if there is no such one."""
    try:
        cells = cells_of(content)
    except (ValueError, RecursionError):
        return None
    known = _marks()
    votes = Counter(known[mark] for mark in set(_marks_of(cells)) if mark in known).most_common(2)
    if not votes or (len(votes) > 1 and votes[0][1] == votes[1][1]):
        return None
    return votes[0][0]


@cache
def _marks() -> dict[str, str]:
    """Return the marks that only one exercise has, and which one."""
    found = {exercise.id: set(_marks_of(exercise.released().cells)) for exercise in EXERCISES.values()}
    count = Counter(mark for marks in found.values() for mark in marks)
    return {mark: exercise for exercise, marks in found.items() for mark in marks if count[mark] == 1}


def _marks_of(cells: Iterable[dict[str, Any]]) -> Iterator[str]:
    """Yield what identifies each cell: its id, nbgrader's checksum of it, and its source."""
    for cell in cells:
        metadata = cell.get("metadata")
        nbgrader = metadata.get("nbgrader") if isinstance(metadata, dict) else None
        checksum = nbgrader.get("checksum") if isinstance(nbgrader, dict) else None
        for kind, mark in (("id", cell.get("id")), ("checksum", checksum), ("source", joined(cell.get("source")))):
            if isinstance(mark, str) and mark.strip():
                yield f"{kind} {mark.strip()}"
