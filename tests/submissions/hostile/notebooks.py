"""Attacks by a notebook's form: it must be refused, or lose what is hostile in it, before anything runs."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import nbformat
from nbformat.v4 import new_code_cell

from ..case import EX1, Cases, Parts, failed, save

NOTEBOOKS = Cases()
case = NOTEBOOKS.add
UNREADABLE = failed("cannot be read|not a notebook|no notebook")


def write(folder: Path, content: str | bytes) -> None:
    """Write anything under the notebook's name."""
    (folder / f"{EX1}.ipynb").write_bytes(content if isinstance(content, bytes) else content.encode())


def as_json(parts: Parts) -> dict[str, Any]:
    """The solved notebook as plain JSON, to be changed beyond what nbformat would write."""
    return json.loads(nbformat.writes(parts.notebook()))


def task(notebook: dict[str, Any], name: str = "task1") -> dict[str, Any]:
    return next(cell for cell in notebook["cells"] if cell["id"] == name)


@case("notebook", "metadata nested a million deep: RecursionError in whatever reads it", UNREADABLE)
def deep_notebook(folder: Path, parts: Parts) -> None:
    deep = '"metadata": {"a": ' + "[" * 10**6 + "]" * 10**6 + "},"
    write(folder, json.dumps(as_json(parts)).replace('"metadata": {},', deep, 1))


@case("notebook", "a web page under the name of a notebook", UNREADABLE)
def web_page(folder: Path, parts: Parts) -> None:
    write(folder, "<!doctype html><script>alert(1)</script>")


@case("notebook", "JSON of the right words and the wrong kinds", UNREADABLE)
def notebook_of_wrong_kinds(folder: Path, parts: Parts) -> None:
    write(folder, '{"cells": 3, "metadata": [], "nbformat": "4", "nbformat_minor": null}')


@case("notebook", "a notebook format of the future", UNREADABLE)
def notebook_of_the_future(folder: Path, parts: Parts) -> None:
    write(folder, json.dumps(as_json(parts) | {"nbformat": 99}))


@case("notebook", "a solution cell whose source is a list of numbers", UNREADABLE)
def source_of_numbers(folder: Path, parts: Parts) -> None:
    notebook = as_json(parts)
    task(notebook)["source"] = [1, 2, 3]
    write(folder, json.dumps(notebook))


@case(
    "notebook",
    "half a character in a solution cell, with which no file can be written",
    failed("character|UTF-8|Unicode|read"),
)
def half_a_character_in_a_cell(folder: Path, parts: Parts) -> None:
    notebook = as_json(parts)
    task(notebook)["source"] = "name = '\ud800'"
    write(folder, json.dumps(notebook))


@case("notebook", "bytes that are not UTF-8", UNREADABLE)
def notebook_in_latin_1(folder: Path, parts: Parts) -> None:
    notebook = as_json(parts)
    task(notebook)["source"] = "# caf"
    write(folder, json.dumps(notebook).encode().replace(b"# caf", b"# caf\xe9"))


@case("notebook", "a hundred thousand cells, and no solution among them", failed("task1 is missing"))
def many_cells(folder: Path, parts: Parts) -> None:
    notebook = as_json(parts)
    notebook["cells"] = [{"cell_type": "raw", "metadata": {}, "source": ""}] * 100_000
    write(folder, json.dumps(notebook))


@case("notebook", "a solution cell left out, so that nothing fails in it", failed("task2"))
def missing_cell(folder: Path, parts: Parts) -> None:
    notebook = parts.notebook()
    notebook.cells = [cell for cell in notebook.cells if cell.id != "task2"]
    save(notebook, folder)


@case("notebook", "a solution cell twice, a right one and another", failed("task1"))
def cell_twice(folder: Path, parts: Parts) -> None:
    notebook = parts.notebook()
    first = next(cell for cell in notebook.cells if cell.id == "task1")
    again = new_code_cell("encode_pair = print", id="again", metadata=first.metadata)
    notebook.cells.insert(notebook.cells.index(first) + 1, again)
    save(notebook, folder)


@case("notebook", "a solution cell under another grade_id", failed("task1"))
def renamed_cell(folder: Path, parts: Parts) -> None:
    notebook = parts.notebook()
    for cell in notebook.cells:
        if cell.id == "task1":
            cell.metadata["nbgrader"]["grade_id"] = "check1"
    save(notebook, folder)


@case("notebook", "a solution cell made into text", failed("task1"))
def cell_made_into_text(folder: Path, parts: Parts) -> None:
    notebook = as_json(parts)
    cell = task(notebook)
    cell["cell_type"] = "markdown"
    del cell["outputs"], cell["execution_count"]
    write(folder, json.dumps(notebook))
