"""Generating the student notebooks in `exercises/` from `solutions/`, with nbgrader."""

from __future__ import annotations

import subprocess
import tempfile
from pathlib import Path

import nbformat

from .errors import ReleaseError
from .exercises import ABOUT, ROOT, Exercise
from .records.gradebook import nbgraders_tools


def stamp(exercise: Exercise) -> None:
    """Write the exercise's name and version into the metadata of its solution, from which nbgrader copies them."""
    notebook = nbformat.read(exercise.solution, as_version=4)
    if notebook.metadata.get(ABOUT) != exercise.about:
        notebook.metadata[ABOUT] = exercise.about
        nbformat.write(notebook, exercise.solution)


def generate(exercise: Exercise, folder: Path = ROOT / "exercises") -> Path:
    """Write the student version of `exercise` into `folder/<exercise>/` and return the notebook's path.

    nbgrader clears the solution cells and outputs and locks the check cells; settings are in
    `nbgrader_config.py`. Raises `ReleaseError` with nbgrader's own words if it refuses the notebook.
    """
    with tempfile.TemporaryDirectory() as scratch, nbgraders_tools():
        command = [
            "nbgrader", "generate_assignment", exercise.id, "--create",
            f"--CourseDirectory.release_directory={folder.resolve()}",
            f"--CourseDirectory.db_url=sqlite:///{scratch}/unused.db",
        ]  # fmt: skip
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    if done.returncode:
        raise ReleaseError(f"nbgrader refused {exercise.solution.name}:\n{done.stderr[-2000:]}")
    return folder / exercise.id / exercise.solution.name
