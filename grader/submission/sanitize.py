"""A notebook that may be shown to people: the student's answers and outputs, with nothing in it that runs."""

from __future__ import annotations

import base64
import binascii
import struct
from collections.abc import Iterable, Iterator
from typing import Any

import nbformat
from nbformat import NotebookNode
from nbformat.v4 import new_output
from nbgrader import utils

from ..exercises import ABOUT, Exercise
from ..text import code_block, display
from .rebuild import MAX_SOURCE, joined

MAX_TEXT = 20_000  # characters per output
MAX_OUTPUTS = 50
MAX_IMAGE = 2_000_000  # bytes
MAX_SIDE, MAX_PIXELS = 20_000, 40_000_000  # a browser takes four bytes for each, however small the file is
PNG = b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR"  # how every one begins; width and height follow


def harmless(exercise: Exercise, rebuilt: NotebookNode, origin: str, executed: Iterable[dict[str, Any]] = ()) -> bytes:
    """Return a notebook that is safe to show: the released cells, the solution cells of `rebuilt`, and outputs.

    The outputs, as plain text and PNG pictures, are those of the cells `executed`: JSON that a student's code may have
    written, in which anything may stand for anything. `origin` says what it was made from, for `origin_of`.
    """
    outputs: dict[str, Any] = {}
    for cell in executed:
        if isinstance(name := cell.get("id"), str):
            outputs.setdefault(name, cell.get("outputs"))
    notebook = exercise.released()
    for cell, answered in zip(notebook.cells, rebuilt.cells, strict=True):
        if utils.is_solution(cell):
            cell.source = _answer(cell, answered.source)
        if cell.cell_type == "code":
            cell.outputs = list(_outputs(outputs.get(cell.id)))
    notebook.metadata[ABOUT] = notebook.metadata.get(ABOUT, {}) | {"origin": origin}
    return f"{nbformat.writes(notebook)}\n".encode()


def _answer(cell: NotebookNode, source: str) -> str:
    """Return what the student wrote; prose as a code block, because it would be rendered with all its HTML."""
    if source == cell.source:  # nothing was written
        return source
    if cell.cell_type == "markdown":
        return code_block(source, MAX_SOURCE)
    return display(source, MAX_SOURCE)


def _outputs(outputs: object) -> Iterator[NotebookNode]:
    found = [output for output in outputs if isinstance(output, dict)] if isinstance(outputs, list) else []
    for output in found[:MAX_OUTPUTS]:
        data = output.get("data")
        data = data if isinstance(data, dict) else {}
        picture, why_not = _png(_text(data.get("image/png")))
        if picture:
            yield new_output("display_data", {"image/png": picture})
        elif why_not:
            yield new_output("stream", name="stdout", text=f"({why_not})\n")
        elif text := _plain(
            _text(output.get("text")) or _text(output.get("traceback"), "\n") or _text(data.get("text/plain"))
        ):
            error = output.get("name") == "stderr" or output.get("output_type") == "error"
            yield new_output("stream", name="stderr" if error else "stdout", text=text)
    if len(found) > MAX_OUTPUTS:
        yield new_output("stream", name="stdout", text=f"... ({len(found) - MAX_OUTPUTS:,} more outputs)\n")


def _text(value: object, between: str = "") -> str:
    text = joined(value, between)
    return text if isinstance(text, str) else ""


def _plain(text: str) -> str:
    """Return text as a terminal without colours shows it: of an overwritten line, the last version."""
    lines = text.replace("\r\n", "\n").split("\n")
    return display("\n".join(line.rstrip("\r").rsplit("\r", 1)[-1] for line in lines), MAX_TEXT)


def _png(encoded: str) -> tuple[str, str]:
    """Return the picture in base64 and nothing else, for it goes into a page unchanged; or "" and why it is left out."""
    try:
        content = base64.b64decode("".join(encoded.split()), validate=True)
    except (binascii.Error, ValueError):
        return "", ""
    if not content.startswith(PNG) or len(content) < len(PNG) + 8:
        return "", ""
    width, height = struct.unpack_from(">II", content, len(PNG))
    if len(content) > MAX_IMAGE:
        return "", f"a picture of {len(content):,} bytes is left out: {MAX_IMAGE:,} are shown"
    if max(width, height) > MAX_SIDE or width * height > MAX_PIXELS:
        return "", f"a picture of {width:,} by {height:,} pixels is left out: {MAX_PIXELS:,} pixels are shown"
    return base64.b64encode(content).decode(), ""
