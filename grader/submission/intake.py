"""Taking in submissions: the files that count are read into memory, and everything else is only named.

Of a submission only the notebook and three files of each run are read.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import cached_property
from itertools import chain
from pathlib import Path

from loralab.record import ADAPTER_FILE, RUN_FILES

from ..errors import BadSubmission
from ..exercises import Exercise
from ..text import listed
from .archive import open_archive
from .files import MAX_JSON, MAX_NOTEBOOK, MAX_TOTAL, ONLY, File, open_folder, read_in, show_path, walk
from .find import SubmissionFolder
from .locate import Located, Slot, locate

Runs = dict[str, dict[str, bytes]]
MAX_NESTED = 2  # a zip, and a zip in it


@dataclass(frozen=True)
class Submission:
    """What was submitted: the notebook's bytes, the runs' files by run and name, and the paths of all that is not read."""

    student: str
    exercise: str
    notebook: bytes | None
    runs: Runs
    unexpected: tuple[str, ...]

    @cached_property
    def digest(self) -> str:
        """The SHA-256 of the content, whichever student submitted it."""
        runs = {run: {name: _sha256(content) for name, content in files.items()} for run, files in self.runs.items()}
        notebook = None if self.notebook is None else _sha256(self.notebook)
        return _sha256(json.dumps([notebook, runs, sorted(self.unexpected)], sort_keys=True).encode())


def _sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def take_in(found: SubmissionFolder, exercise: Exercise) -> Submission:
    """Return the submission at `found`: a folder with the notebook and run folders, or with a zip of them.

    Where there are run folders, a zip is not opened; a notebook beside a zip is taken, not the one in it, because it was
    saved later. Raises `BadSubmission`, also if there is neither a notebook nor anything of a run.
    """
    with ExitStack() as opened:
        folder = opened.enter_context(open_folder(found.folder, found.inside))
        parts = [locate(list(walk(folder)), exercise)]
        for _ in range(MAX_NESTED):
            if parts[-1].homes or not (archive := parts[-1].archive):
                break
            parts.append(locate(opened.enter_context(open_archive(archive)), exercise))
        notebook = _the_notebook(parts)
        files = parts[-1].runs | ({(f"{exercise.id}.ipynb",): notebook} if notebook else {})
        read = _read(files)
    unexpected = tuple(sorted({path for part in parts for path in part.unexpected(files.values())}))
    runs = _by_run(read, exercise)
    if notebook is None and not any(part.homes for part in parts):
        instead = f" (only {listed(unexpected)})" if unexpected else ""
        raise BadSubmission(
            f"neither {exercise.id}.ipynb nor a run folder such as {exercise.runs[0].name!r} is there{instead}: {ONLY}"
        )
    return Submission(found.student, exercise.id, read.get((f"{exercise.id}.ipynb",)), runs, unexpected)


def _the_notebook(parts: Sequence[Located]) -> File | None:
    """Return the notebook from the outermost folder that has one: with the right name, a similar one, or the only one."""
    candidates = chain(
        (part.notebook for part in parts),
        (part.renamed for part in parts),
        (part.lone for part in parts if not parts[-1].homes),  # another notebook beside sound runs is no reason to fail
    )
    return next((file for file in candidates if file), None)


def collect_runs(folder: Path, exercise: Exercise) -> tuple[Runs, tuple[str, ...]]:
    """Return the runs that a notebook left in `folder`, and the paths of all other files. Raises `BadSubmission`, as `take_in`.

    A folder that is not there holds no runs.
    """
    if not os.path.lexists(folder):
        return {}, ()
    with open_folder(folder) as opened:
        located = locate(list(walk(opened)), exercise)
        files = located.runs
        runs = _by_run(_read(files), exercise)
    return runs, tuple(sorted(located.unexpected(files.values())))


def collect_notebook(folder: Path, exercise: Exercise) -> bytes:
    """Return the executed notebook in `folder`, as distrusted as the runs. Raises `BadSubmission`."""
    with open_folder(folder) as opened:
        content = read_in(opened, (f"{exercise.id}.ipynb",), MAX_NOTEBOOK + 1)
    if len(content) > MAX_NOTEBOOK:
        raise BadSubmission(f"{exercise.id}.ipynb is too large after it has run: more than {MAX_NOTEBOOK:,} bytes")
    return content


def lay_out(runs: Runs, unexpected: Iterable[str], folder: Path) -> None:
    """Write the run folders into `folder`; an unexpected file of a run folder becomes an empty file of its name."""
    folder.mkdir(parents=True, exist_ok=True)
    for run, _, name in (path.partition("/") for path in unexpected):
        if name and "/" not in name:
            (folder / run).mkdir(exist_ok=True)
            (folder / run / name).touch()
    for run, files in runs.items():
        (folder / run).mkdir(exist_ok=True)
        for name, content in files.items():
            (folder / run / name).write_bytes(content)


def _read(files: Mapping[Slot, File]) -> dict[Slot, bytes]:
    """Return the content of these files. Raises `BadSubmission` if it is too much, or if a size is wrong."""
    read: dict[Slot, bytes] = {}
    total = 0
    for slot, file in files.items():
        total += file.size
        _refuse_if_too_large(file, total)
        read[slot] = file.content()
    return read


def _by_run(read: Mapping[Slot, bytes], exercise: Exercise) -> Runs:
    runs = {
        run.name: {name: read[run.name, name] for name in RUN_FILES if (run.name, name) in read}
        for run in exercise.runs
    }
    return {name: files for name, files in runs.items() if files}


def _refuse_if_too_large(file: File, total: int) -> None:
    most, advice = MAX_JSON, "no run has one that large, save it again"
    if file.path[-1] == ADAPTER_FILE:
        most, advice = MAX_TOTAL, "submit the adapter, not a whole model"
    elif file.path[-1].endswith(".ipynb"):
        most, advice = MAX_NOTEBOOK, "clear its outputs, save it and submit it again"
    if file.size > most:
        raise BadSubmission(
            f"{show_path(file.path)} is too large, {file.size:,} bytes where {most:,} are allowed: {advice}"
        )
    if total > MAX_TOTAL:
        raise BadSubmission(f"all runs are too large, {total:,} bytes where {MAX_TOTAL:,} are allowed: {ONLY}")
