"""Generating the student notebooks in `exercises/` from `solutions/`, with nbgrader."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from pathlib import Path

from .exercises import ROOT, Exercise


def generate(exercise: Exercise, folder: Path = ROOT / "exercises") -> Path:
    """Write the student version of `exercise` into `folder/<exercise>/` and return the notebook's path.

    nbgrader clears the solution cells and outputs and locks the check cells; settings are in
    `nbgrader_config.py`. Raises `RuntimeError` with nbgrader's own words if it refuses the notebook.
    """
    binaries = Path(sys.executable).parent  # nbgrader calls its database tool by name
    with tempfile.TemporaryDirectory() as scratch:
        command = [
            binaries / "nbgrader", "generate_assignment", exercise.id, "--create",
            f"--CourseDirectory.release_directory={folder.resolve()}",
            f"--CourseDirectory.db_url=sqlite:///{scratch}/unused.db",
        ]  # fmt: skip
        environment = os.environ | {"PATH": f"{binaries}{os.pathsep}{os.environ.get('PATH', '')}"}
        done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"nbgrader refused {exercise.solution.name}:\n{done.stderr[-2000:]}")
    return folder / exercise.id / exercise.solution.name
