"""Taking in submissions: the files that count are read into memory, and everything else is only named.

Of a submission only the notebook and three files of each run are read.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from loralab.record import ADAPTER_FILE, RUN_FILES

from ..errors import BadSubmission
from ..exercises import Exercise
from .archive import open_zip
from .files import MAX_JSON, MAX_NOTEBOOK, MAX_TOTAL, ONLY, File, Parts, label, open_folder, read_in, show_path, walk
from .find import SubmissionFolder

Runs = dict[str, dict[str, bytes]]


@dataclass(frozen=True)
class Submission:
    """What was handed in: the notebook's bytes, the runs' files by run and name, and the paths of all that is not read."""

    student: str
    exercise: str
    notebook: bytes | None
    runs: Runs
    strays: tuple[str, ...]

    @cached_property
    def digest(self) -> str:
        """Identifies the content (SHA-256), whoever handed it in."""
        runs = {run: {name: _sha256(content) for name, content in files.items()} for run, files in self.runs.items()}
        notebook = None if self.notebook is None else _sha256(self.notebook)
        return _sha256(json.dumps([notebook, runs, sorted(self.strays)], sort_keys=True).encode())


def _sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def take_in(found: SubmissionFolder, exercise: Exercise) -> Submission:
    """Return the submission at `found`: a folder with the notebook and run folders (there or in `runs/`), or with a zip of them.

    Where there are run folders, a zip is not opened; a notebook beside a zip is taken, not the one in it, because it was
    saved later. Raises `BadSubmission`, also if there is neither a notebook nor anything of a run.
    """
    with open_folder(found.folder) as folder:
        files = list(walk(folder))
        notebook, runs, strays = _gather(files, exercise)
        zips = [file for file in files if _may_be_the_zip(file.path)]
        if zips and not runs:
            with open_zip(_only(zips)) as packed_files:
                packed, runs, more = _gather(packed_files, exercise)
            notebook = packed if notebook is None else notebook
            strays = tuple(sorted({*strays, *more}))
    in_runs = {run.name for run in exercise.runs}
    if notebook is None and not runs and not any(stray.split("/")[0] in in_runs for stray in strays):
        instead = f" (only {', '.join(strays[:3])}{' ...' if len(strays) > 3 else ''})" if strays else ""
        raise BadSubmission(
            f"neither {exercise.id}.ipynb nor a run folder such as {exercise.runs[0].name!r} is there{instead}: {ONLY}"
        )
    return Submission(found.student, exercise.id, notebook, runs, strays)


def collect_runs(folder: Path, exercise: Exercise) -> tuple[Runs, tuple[str, ...]]:
    """The runs that a notebook left in `folder`, and the paths of all else. Raises `BadSubmission`, as `take_in`.

    A folder that is not there holds no runs.
    """
    if not os.path.lexists(folder):
        return {}, ()
    with open_folder(folder) as opened:
        _, runs, strays = _gather(list(walk(opened)), exercise)
    return runs, strays


def collect_notebook(folder: Path, exercise: Exercise) -> bytes:
    """The executed notebook that lies in `folder`, as distrusted as the runs. Raises `BadSubmission`."""
    with open_folder(folder) as opened:
        content = read_in(opened, (f"{exercise.id}.ipynb",), MAX_NOTEBOOK + 1)
    if len(content) > MAX_NOTEBOOK:
        raise BadSubmission(f"{exercise.id}.ipynb is too large after it has run: more than {MAX_NOTEBOOK:,} bytes")
    return content


def lay_out(runs: Runs, strays: Iterable[str], folder: Path) -> None:
    """Write the run folders into `folder`; a stray that lay in a run folder becomes an empty file of its name."""
    folder.mkdir(parents=True, exist_ok=True)
    for run, _, name in (stray.partition("/") for stray in strays):
        if name and "/" not in name:
            (folder / run).mkdir(exist_ok=True)
            (folder / run / name).touch()
    for run, files in runs.items():
        (folder / run).mkdir(exist_ok=True)
        for name, content in files.items():
            (folder / run / name).write_bytes(content)


def _gather(files: Iterable[File], exercise: Exercise) -> tuple[bytes | None, Runs, tuple[str, ...]]:
    """The notebook and the runs among these files, read, and the paths of all else."""
    files = list(files)
    around = _around_everything(files, exercise)
    taken: dict[Parts, bytes] = {}
    strays = set()
    total = 0
    for file in files:
        slot = _slot(file.path, around)
        if not _is_read(slot, exercise):
            strays.add("/".join(map(label, slot)))
            continue
        if slot in taken:
            raise BadSubmission(f"{show_path(file.path)}: {show_path(slot)} is there twice: keep one of them")
        total += file.size
        _refuse_if_too_large(file, total)
        taken[slot] = file.content()
    runs = {
        run.name: {name: taken[run.name, name] for name in RUN_FILES if (run.name, name) in taken}
        for run in exercise.runs
    }
    notebook = taken.get((f"{exercise.id}.ipynb",))
    return notebook, {name: found for name, found in runs.items() if found}, tuple(sorted(strays))


def _around_everything(files: Sequence[File], exercise: Exercise) -> str:
    """The one folder that everything lies in, whatever a system packs beside it; or else that of the exercise's name."""
    tops = {file.path[0] for file in files if file.path[0] != "__MACOSX" and not file.path[0].startswith(".")}
    loose = any(len(file.path) == 1 and file.path[0] in tops for file in files)
    ours = {"runs", *(run.name for run in exercise.runs)}
    return tops.pop() if len(tops) == 1 and not loose and not tops & ours else exercise.id


def _slot(path: Parts, around: str) -> Parts:
    """The path as `loralab.pack` would have named it: without the folder `around` everything, and without `runs/`."""
    if len(path) > 1 and path[0] == around:
        path = path[1:]
    return path[1:] if len(path) > 2 and path[0] == "runs" else path


def _is_read(slot: Parts, exercise: Exercise) -> bool:
    if len(slot) == 2:
        return slot[1] in RUN_FILES and slot[0] in {run.name for run in exercise.runs}
    return slot == (f"{exercise.id}.ipynb",)


def _refuse_if_too_large(file: File, total: int) -> None:
    most, advice = MAX_JSON, "no run has one that large, save it again"
    if file.path[-1] == ADAPTER_FILE:
        most, advice = MAX_TOTAL, "hand in the adapter, not a whole model"
    elif file.path[-1].endswith(".ipynb"):
        most, advice = MAX_NOTEBOOK, "clear its outputs, save it and hand it in again"
    if file.size > most:
        raise BadSubmission(
            f"{show_path(file.path)} is too large, {file.size:,} bytes where {most:,} are allowed: {advice}"
        )
    if total > MAX_TOTAL:
        raise BadSubmission(f"all runs are too large, {total:,} bytes where {MAX_TOTAL:,} are allowed: {ONLY}")


def _only(zips: Sequence[File]) -> File:
    """Return the one zip. Raises `BadSubmission` if there are several."""
    first, *others = zips
    if others:  # whichever is named like the exercise: a browser puts a number to the later one
        raise BadSubmission(
            f"{show_path(first.path)} and {show_path(others[0].path)} are both there: keep the one to be graded"
        )
    return first


def _may_be_the_zip(path: Parts) -> bool:
    """Whether this is a zip where a hand-in may lie: `loralab.pack` writes it into `runs/`."""
    return path[-1].lower().endswith(".zip") and path[:-1] in {(), ("runs",)}
