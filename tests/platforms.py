"""Downloads and grade sheets as Moodle and Canvas write them."""

from __future__ import annotations

import io
import json
import zipfile
from collections.abc import Mapping
from pathlib import Path

import nbformat

from grader.exercises import EXERCISES

EX1, EX2 = "ex1_first_adapter", "ex2_rank_sweep"
RUN = "first-adapter"
RUN_FILES = ("adapter_model.safetensors", "adapter_config.json", "run.json")


def moodle(name: str, number: int, file: str = "", plugin: str = "file", end: str = "_") -> str:
    """The path of a student's file in Moodle's zip; releases before 4.1 end the folder's name with "_"."""
    return f"{name}_{number}_assignsubmission_{plugin}{end}/{file}"


def canvas(name: str, user: int, file: int, of: str, late: bool = False) -> str:
    """The name of a student's file in Canvas's zip."""
    return f"{name}{'_LATE' if late else ''}_{user}_{file}_{of}"


def write_download(
    path: Path, files: Mapping[str, bytes], time: tuple[int, int, int, int, int, int] = (2026, 10, 1, 12, 0, 0)
) -> Path:
    """Write the zip of a download, every entry of this time."""
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in files.items():
            archive.writestr(zipfile.ZipInfo(name, time), content, zipfile.ZIP_DEFLATED)
    return path


def notebook(exercise: str = EX1, mark: str = "", metadata: bool = True) -> bytes:
    """The released notebook, in its first task what a student wrote; perhaps without the metadata of its cells."""
    released = EXERCISES[exercise].released()
    next(cell for cell in released.cells if cell.id == "task1").source = f"# {mark}"
    if not metadata:
        for cell in released.cells:
            cell.metadata = {}
    return nbformat.writes(released).encode()


def packed(exercise: str = EX1, mark: str = "", runs: Mapping[str, Mapping[str, bytes]] | None = None) -> bytes:
    """A zip as `loralab.pack` makes it; without `runs`, of runs that cannot be evaluated."""
    empty = {run.name: dict.fromkeys(RUN_FILES, b"{}") for run in EXERCISES[exercise].runs}
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w") as archive:
        archive.writestr(zipfile.ZipInfo(f"{exercise}.ipynb"), notebook(exercise, mark))
        for run, files in (empty if runs is None else runs).items():
            for name, data in files.items():
                archive.writestr(zipfile.ZipInfo(f"{run}/{name}"), data)
    return content.getvalue()


def sources(submission: Path) -> str:
    """The first task's source in a collected notebook."""
    cells = json.loads(next(submission.glob("*.ipynb")).read_bytes())["cells"]
    return "".join(next(cell for cell in cells if cell["id"] == "task1")["source"])
