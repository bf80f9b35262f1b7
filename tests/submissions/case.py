"""One hand-in: what it tries, what must come of it, and how it is written."""

from __future__ import annotations

import os
import shutil
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import nbformat
from nbformat import NotebookNode

from grader.exercises import EXERCISES, ROOT
from grader.text import printable
from grader.verdict import State

Mode = Literal["sandbox", "artifacts"]
# What decides: files that any intake reads, the run folders handed in, the notebook's form, or its code when it runs.
Kind = Literal["files", "runs", "notebook", "code"]

EX1 = "ex1_first_adapter"
RUN = "first-adapter"
WEIGHTS, CONFIG, RECORD = "adapter_model.safetensors", "adapter_config.json", "run.json"


@dataclass(frozen=True)
class Expected:
    """What must come of a hand-in: the state, a message, and the points between which it ends.

    `message` is a regular expression that the verdict's message, or that of a check that failed, must match. More than
    `most` points would be forged ones.
    """

    state: State
    message: str = ""
    most: float = 0.0
    least: float = 0.0


def failed(message: str) -> Expected:
    """The submission fails with this message, and no points."""
    return Expected("submission failed", message)


def graded(message: str, most: float) -> Expected:
    """It is graded, some check fails with this message, and it earns at most that many points."""
    return Expected("graded", message, most)


FULL = Expected("graded", most=100, least=100)
NO_NOTEBOOK = failed(r"no .*\.ipynb|no notebook|notebook is missing")
NO_RUNS = failed(r"no run folder|no 'first-adapter'|no run was")


@dataclass(frozen=True)
class Parts:
    """What hand-ins are made of.

    `honest` and `on_eval` are run folders of exercise 1, the second trained on the public evaluation pairs. `outside`
    is a folder of things that no submission may read or change; `port` is one on which a server of the machine listens.
    """

    honest: Path
    on_eval: Path
    outside: Path
    port: int = 9

    def notebook(self, exercise: str = EX1, solved: bool = True, **cells: str) -> NotebookNode:
        """The notebook as a student saves it, with the source of solution cells (by their id) replaced by `cells`."""
        notebook = nbformat.read(ROOT / "exercises" / exercise / f"{exercise}.ipynb", as_version=4)
        for cell, solution in zip(notebook.cells, _solution(exercise).cells, strict=True):
            if solved and _is_solution(cell):
                lines = solution.source.splitlines()
                cell.source = "\n".join(line for line in lines if line.strip() not in MARKERS)
            cell.source = cells.get(cell.id, cell.source)
        return notebook

    def run(self, folder: Path, owner: str) -> Path:
        """Lay an honest run of exercise 1 at `folder`, its weights a hair's breadth different for every owner."""
        shutil.copytree(self.honest, folder)
        weights = bytearray((folder / WEIGHTS).read_bytes())
        weights[-4:-2] = zlib.crc32(owner.encode("utf-8", "surrogateescape")).to_bytes(4, "little")[:2]
        (folder / WEIGHTS).write_bytes(weights)
        return folder


MARKERS = ("### BEGIN SOLUTION", "### END SOLUTION")


def _solution(exercise: str) -> NotebookNode:
    return nbformat.read(EXERCISES[exercise].solution, as_version=4)


def _is_solution(cell: NotebookNode) -> bool:
    return cell.metadata.get("nbgrader", {}).get("solution", False)


def save(notebook: NotebookNode, folder: Path, exercise: str = EX1) -> Path:
    """Write the notebook under the exercise's name, whatever nbformat would think of it."""
    path = folder / f"{exercise}.ipynb"
    path.write_text(nbformat.writes(notebook, version=nbformat.NO_CONVERT), "utf-8")
    return path


Build = Callable[[Path, Parts], None]


@dataclass(frozen=True)
class Case:
    """A hand-in. `name` is the student's id unless `student` gives another (bytes for one that is not UTF-8)."""

    name: str
    tries: str
    kind: Kind
    expects: Expected
    build: Build
    exercise: str = EX1
    student: str | bytes = ""

    @property
    def id(self) -> str:
        """The name of the student's folder, as Python reads it from the file system."""
        return os.fsdecode(self.student or self.name)

    @property
    def shown_id(self) -> str:
        """The student's id as the grader prints and stores it."""
        return printable(self.id)

    @property
    def honest(self) -> bool:
        """Whether it must get all points, by whatever way it is graded."""
        return self.expects == FULL

    def expected(self, mode: Mode) -> Expected:
        """What must come of it in this mode: what the mode does not look at fails for want of the other part.

        Honest students hand in both.
        """
        if not self.honest and mode == "sandbox" and self.kind == "runs":
            return NO_NOTEBOOK
        if not self.honest and mode == "artifacts" and self.kind == "code":
            return NO_RUNS
        return self.expects

    def write(self, submitted: Path, parts: Parts) -> Path:
        """Write it as `submitted/<student>/<exercise>/`, and return that folder."""
        folder = submitted / self.id / self.exercise
        folder.mkdir(parents=True)
        self.build(folder, parts)
        return folder


class Cases(list[Case]):
    """Cases that are collected from the functions that build them, under the names of these functions."""

    def add(self, kind: Kind, tries: str, expects: Expected, **more: object) -> Callable[[Build], Build]:
        """Decorates a function that writes a hand-in."""

        def collect(build: Build) -> Build:
            self.append(Case(build.__name__.strip("_").replace("_", "-"), tries, kind, expects, build, **more))
            return build

        return collect
