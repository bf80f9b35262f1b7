"""Rebuilding a notebook: the instructor's own cells, and of the student's only the source of the solution cells."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import groupby
from typing import TYPE_CHECKING, Any

from ..errors import NotebookFailed
from ..exercises import ABOUT, Exercise
from ..text import listed, printable
from .files import MAX_NOTEBOOK

if TYPE_CHECKING:  # slow to import, and collecting a download needs none
    from nbformat import NotebookNode

MAX_SOURCE = 100_000  # characters of one cell
MAX_PIECES = 5  # into which a cell was split
FORMAT = 4
MAX_VERSION = 10_000
BINDING = re.compile(r"^(?:async +)?(?:def|class) +(\w+)|^(\w+)[ \t]*(?::[^=\n]*)?=(?!=)", re.MULTILINE)


class _Unreadable(ValueError):
    """Not a notebook; the message says why."""


@dataclass(frozen=True)
class _Cell:
    """A solution cell as the student left it, and where among the cells."""

    grade_id: str
    kind: str
    source: str
    place: int


def rebuild(exercise: Exercise, submitted: bytes) -> NotebookNode:
    """Return the released notebook with the student's solutions in it, and nothing else from the submission.

    Of a notebook made from another version of the exercise, the solution cells that both versions have are taken; the
    others stay empty. Raises `NotebookFailed` with one line if `submitted` cannot be read as a notebook, or if its
    solution cells are not those of the exercise; it names the cells.
    """
    notebook, found, wanted = _matched(exercise, submitted)
    kinds = {grade_id: cell.cell_type for grade_id, cell in wanted.items()}
    if _version(submitted) != exercise.version:
        found = [cell for cell in found if cell.grade_id in wanted]
        kinds = {cell.grade_id: kinds[cell.grade_id] for cell in found} or kinds
    wrong = list(_wrong(found, kinds))
    if wrong:
        raise NotebookFailed(
            f"{exercise.id}.ipynb: {listed(wrong)}: "
            "take a fresh copy of the exercise and put your solutions into its cells"
        )
    for cell in found:
        wanted[cell.grade_id].source = cell.source
    return notebook


def other_version(exercise: Exercise, submitted: bytes) -> str:
    """Return a line if a notebook was made from another version of the exercise: which, and which solution cells differ.

    "" if it is of the current version, or cannot be read as a notebook.
    """
    try:
        version = _version(submitted)
        _, found, wanted = _matched(exercise, submitted)
    except NotebookFailed:
        return ""
    if version == exercise.version:
        return ""
    names = {cell.grade_id for cell in found}
    missing, unknown = [name for name in wanted if name not in names], sorted(names - wanted.keys())
    made = "an unknown version" if version is None else f"version {version}"
    line = f"made from {made} of the exercise, graded by the current version {exercise.version}"
    line += f"; missing and left empty: {listed(missing)}" if missing else ""
    return line + (f"; no longer asked for and ignored: {listed(unknown)}" if unknown else "")


def _matched(exercise: Exercise, submitted: bytes) -> tuple[NotebookNode, list[_Cell], dict[str, NotebookNode]]:
    """Return the released notebook, the solution cells of the submission, and those of the released notebook by name."""
    notebook = exercise.released()
    wanted = {cell.metadata.nbgrader.grade_id: cell for cell in notebook.cells if _is_solution(cell)}
    found = _read(submitted, f"{exercise.id}.ipynb", {cell.id: name for name, cell in wanted.items()})
    return notebook, _merged(found), wanted


def _version(submitted: bytes) -> int | None:
    """Return the version of the exercise that a notebook's metadata name; None if they name none."""
    try:
        metadata = _content(submitted).get("metadata")
    except (ValueError, RecursionError):
        return None
    about = metadata.get(ABOUT) if isinstance(metadata, dict) else None
    version = about.get("version") if isinstance(about, dict) else None
    return version if type(version) is int and 0 < version <= MAX_VERSION else None


def solution_sources(submitted: bytes) -> dict[str, str]:
    """Return the sources of the solution cells by grade_id (the last of duplicates), whatever the exercise.

    Raises `NotebookFailed` if `submitted` cannot be read as a notebook.
    """
    return {cell.grade_id: cell.source for cell in _merged(_read(submitted, "the notebook", {}))}


def _merged(cells: list[_Cell]) -> list[_Cell]:
    """Put together what an editor split: neighbours with one grade_id, run one after the other, do the same as one cell."""
    merged: list[_Cell] = []
    numbered = enumerate(cells)
    # The last of the three stays the same as long as no other cell comes between.
    for _, group in groupby(numbered, key=lambda one: (one[1].grade_id, one[1].kind, one[1].place - one[0])):
        pieces = [cell for _, cell in group]
        whole = "\n\n".join(cell.source for cell in pieces)
        halves = 1 < len(pieces) <= MAX_PIECES and len(whole) <= MAX_SOURCE and not _defined_twice(pieces)
        merged += [replace(pieces[0], source=whole)] if halves else pieces
    return merged


def _defined_twice(pieces: list[_Cell]) -> bool:
    """Tell whether two give the same name a value: which of them counts is not for the grader to say."""
    names = [{match[1] or match[2] for match in BINDING.finditer(cell.source)} for cell in pieces]
    return sum(map(len, names)) > len(set().union(*names))


def _wrong(found: list[_Cell], kinds: dict[str, str]) -> Iterator[str]:
    """Yield what is wrong with the solution cells, where these ids with these cell types are expected."""
    count = Counter(cell.grade_id for cell in found)
    yield from (f"solution cell {name} is missing" for name in kinds if not count[name])
    yield from (f"solution cell {name} is there {count[name]} times" for name in kinds if count[name] > 1)
    for cell in found:
        if cell.grade_id not in kinds:
            yield f"{_cell_name(cell.grade_id)} does not belong to this exercise"
        elif cell.kind != kinds[cell.grade_id]:
            yield f"{_cell_name(cell.grade_id)} is a {printable(cell.kind[:20])} cell, and was a {kinds[cell.grade_id]} cell"


def _cell_name(grade_id: str) -> str:
    return f"solution cell {printable(grade_id[:60])}"


def _read(submitted: bytes, where: str, ids: dict[str, str]) -> list[_Cell]:
    """Return the solution cells of a notebook; a cell without metadata is recognised by its id, if it is in `ids`.

    What is not needed is not looked at: nbformat would take 10 s and 900 MB for 5 MB of empty objects in the metadata.
    """
    try:
        cells = cells_of(submitted)
        kept = {name for cell in cells if (name := _grade_id(cell, {})) is not None}
        lost = {cell_id: name for cell_id, name in ids.items() if name not in kept}
        named = ((place, cell, _grade_id(cell, lost)) for place, cell in enumerate(cells))
        return [_solution(cell, name, place) for place, cell, name in named if name is not None]
    except _Unreadable as problem:
        what = str(problem)
    except RecursionError:
        what = "it is nested too deep"
    except ValueError as error:  # JSON that is none, and numbers too long to be read
        what = f"it is not JSON ({printable(str(error))[:200]})"
    raise NotebookFailed(f"{where}: cannot be read as a notebook: {what}: save it again, or submit a fresh copy")


def cells_of(submitted: bytes) -> list[dict[str, Any]]:
    """Return the cells of a notebook as plain JSON, whatever is in them. Raises `ValueError` or `RecursionError`."""
    cells = _content(submitted).get("cells")
    if not isinstance(cells, list) or not all(isinstance(cell, dict) for cell in cells):
        raise _Unreadable("its cells are no list of cells")
    return cells


def _content(submitted: bytes) -> dict[str, Any]:
    """Return a notebook as plain JSON. Raises `ValueError` or `RecursionError`."""
    if len(submitted) > MAX_NOTEBOOK:
        raise _Unreadable(f"it has {len(submitted):,} bytes, more than the {MAX_NOTEBOOK:,} allowed")
    encoding = json.detect_encoding(submitted)  # UTF-8, or 16 or 32 as some editors on Windows save it
    try:
        text = submitted.decode(encoding)
    except UnicodeDecodeError as error:
        raise _Unreadable(f"it is not {encoding.upper()} text (byte {error.start:,})") from None
    content = json.loads(text)
    if not isinstance(content, dict) or "nbformat" not in content:
        raise _Unreadable("it has no nbformat")
    if content["nbformat"] != FORMAT:
        raise _Unreadable(
            f"it has nbformat {printable(repr(content['nbformat'])[:20])}, and {FORMAT} is read; a current JupyterLab saves it so"
        )
    return content


def _grade_id(cell: dict[str, Any], lost: dict[str, str]) -> str | None:
    """Return the cell's grade_id if it is marked as a solution, or if its metadata is lost and its id is one of these."""
    if _is_solution(cell):
        return _text(cell["metadata"]["nbgrader"].get("grade_id"))
    metadata = cell.get("metadata")
    if isinstance(metadata, dict) and "nbgrader" in metadata:
        return None
    return lost.get(_text(cell.get("id")))


def _solution(cell: dict[str, Any], grade_id: str, place: int) -> _Cell:
    source = joined(cell.get("source"))
    if not isinstance(source, str):
        raise _Unreadable(f"the source of {_cell_name(grade_id)} is not text")
    if len(source) > MAX_SOURCE:
        raise _Unreadable(
            f"{_cell_name(grade_id)} has {len(source):,} characters, more than the {MAX_SOURCE:,} allowed"
        )
    if odd := next((letter for letter in source if letter == "\0" or "\ud800" <= letter <= "\udfff"), ""):
        raise _Unreadable(f"{_cell_name(grade_id)} holds {printable(odd)}, which is not a valid character")
    return _Cell(grade_id, _text(cell.get("cell_type")), source, place)


def joined(value: object, between: str = "") -> object:
    """Return a text that is stored line by line, as Jupyter does, as one text; anything else as it is."""
    if isinstance(value, list) and all(isinstance(line, str) for line in value):
        return between.join(value)
    return value


def _text(value: object) -> str:
    """Return a text; anything else in its place as its repr."""
    return value if isinstance(value, str) else repr(value)


def _is_solution(cell: dict[str, Any]) -> bool:
    metadata = cell.get("metadata")
    nbgrader = metadata.get("nbgrader") if isinstance(metadata, dict) else None
    return isinstance(nbgrader, dict) and nbgrader.get("solution") is True
