"""The notebook that formgrader shows and nbgrader makes its feedback from, in the course's `autograded/`."""

from __future__ import annotations

import base64
import binascii
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import nbformat
from nbformat import NotebookNode
from nbformat.v4 import new_output
from nbgrader import utils

from .exercises import Exercise
from .foreign import shown
from .gradebook import check_name, literal

MAX_SOURCE, MAX_TEXT = 100_000, 20_000  # characters a cell, characters an output
MAX_OUTPUTS = 50
MAX_IMAGE = 2_000_000  # bytes
PNG = b"\x89PNG\r\n\x1a\n"


def write_autograded(student: str, exercise: Exercise, notebook: NotebookNode, course: Path) -> Path:
    """Write `notebook` to `<course>/autograded/<student>/<exercise>/<exercise>.ipynb` and return the path.

    The cells are those that were released; of `notebook` (which a student's code may have written) come the sources of
    the solution cells, and the outputs as plain text and PNG pictures. Raises `UnusableName`, for a name that could lead
    elsewhere, too.
    """
    check_name(student)
    path = course / "autograded" / student / exercise.id / exercise.solution.name
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_suffix(".part")
    unfinished.write_text(nbformat.writes(_harmless(exercise, notebook)) + "\n", "utf-8")
    unfinished.replace(path)
    return path


def _harmless(exercise: Exercise, notebook: NotebookNode) -> NotebookNode:
    shown = exercise.released()
    answers: dict[str, str] = {}
    outputs: dict[str, list[dict[str, Any]]] = {}
    for cell in notebook.cells:
        outputs.setdefault(cell.id, cell.get("outputs", []))
        about = cell.metadata.get("nbgrader")
        if isinstance(about, dict) and isinstance(about.get("grade_id"), str):
            answers.setdefault(about["grade_id"], cell.source)
    for cell in shown.cells:
        if utils.is_solution(cell):
            cell.source = _answer(cell, answers.get(cell.metadata.nbgrader.grade_id, ""))
        if cell.cell_type == "code":
            cell.outputs = list(_outputs(outputs.get(cell.id, [])))
    return shown


def _answer(cell: NotebookNode, source: str) -> str:
    """What the student wrote; prose as it was typed, because it would be rendered with all the HTML that it holds."""
    if source == cell.source:  # nothing was written
        return source
    if cell.cell_type == "markdown":
        return literal(source, MAX_SOURCE)
    return shown(source, MAX_SOURCE)


def _outputs(outputs: list[dict[str, Any]]) -> Iterator[NotebookNode]:
    for output in outputs[:MAX_OUTPUTS]:
        data = output.get("data", {})
        if picture := _png(data.get("image/png")):
            yield new_output("display_data", {"image/png": picture})
        elif text := _plain(_text(output)):
            name = "stderr" if output.get("name") == "stderr" or output.output_type == "error" else "stdout"
            yield new_output("stream", name=name, text=text)
    if len(outputs) > MAX_OUTPUTS:
        yield new_output("stream", name="stdout", text=f"... ({len(outputs) - MAX_OUTPUTS:,} more outputs)\n")


def _text(output: dict[str, Any]) -> str:
    found = output.get("text") or output.get("traceback") or output.get("data", {}).get("text/plain") or ""
    return found if isinstance(found, str) else "\n".join(map(str, found))


def _plain(text: str) -> str:
    """As a terminal without colours would show it: of a line that was written over, what was written last."""
    lines = text.replace("\r\n", "\n").split("\n")
    return shown("\n".join(line.rstrip("\r").rsplit("\r", 1)[-1] for line in lines), MAX_TEXT)


def _png(encoded: object) -> str | None:
    """The picture in base64 and nothing else, or None: it is written into a page as it is."""
    try:
        content = base64.b64decode("".join(encoded.split()), validate=True) if isinstance(encoded, str) else b""
    except (binascii.Error, ValueError):
        return None
    return base64.b64encode(content).decode() if content.startswith(PNG) and len(content) <= MAX_IMAGE else None
