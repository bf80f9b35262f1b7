"""Generating the student notebooks in `exercises/` from `solutions/`, with nbgrader."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from .exercises import ROOT, Exercise


@contextmanager
def nbgraders_tools() -> Iterator[None]:
    """For a new gradebook nbgrader calls a program by name, which lies beside this Python and perhaps not in the PATH."""
    before = os.environ.get("PATH", "")
    os.environ["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{before}"
    try:
        yield
    finally:
        os.environ["PATH"] = before


def generate(exercise: Exercise, folder: Path = ROOT / "exercises") -> Path:
    """Write the student version of `exercise` into `folder/<exercise>/` and return the notebook's path.

    nbgrader clears the solution cells and outputs and locks the check cells; settings are in
    `nbgrader_config.py`. Raises `RuntimeError` with nbgrader's own words if it refuses the notebook.
    """
    with tempfile.TemporaryDirectory() as scratch, nbgraders_tools():
        command = [
            "nbgrader", "generate_assignment", exercise.id, "--create",
            f"--CourseDirectory.release_directory={folder.resolve()}",
            f"--CourseDirectory.db_url=sqlite:///{scratch}/unused.db",
        ]  # fmt: skip
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"nbgrader refused {exercise.solution.name}:\n{done.stderr[-2000:]}")
    return folder / exercise.id / exercise.solution.name
