"""Running a notebook: an instructor's with papermill, a student's in the sandbox."""

from __future__ import annotations

import os
import stat
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import nbformat
import papermill
from huggingface_hub.constants import HF_HUB_CACHE
from huggingface_hub.file_download import repo_folder_name
from nbclient.exceptions import CellTimeoutError, DeadKernelError
from nbformat import NotebookNode
from papermill.exceptions import PapermillExecutionError
from papermill.iorw import load_notebook_node
from papermill.parameterize import parameterize_notebook
from pydantic import BaseModel, Field, ValidationError
from traitlets.config import Config

from loralab import Base, data_path
from loralab.bases import asked_for
from loralab.errors import first_line

from ..errors import NotebookFailed, SandboxFailed
from ..text import display
from . import bubblewrap, run_notebook
from .bubblewrap import Ended
from .limits import Limits, size

# The kernel is spoken to through files that only this user can read, not through open ports.
QUIET_KERNEL = Config({"KernelManager": {"transport": "ipc"}})

# In the sandbox: the script that runs the notebook, the hub's cache, the folder of fetched bases, and what is run last.
SCRIPT, HUB, FETCHED, AFTERWARDS = "/run_notebook.py", "/hub", "/fetched", "/afterwards.py"
OUTCOME, QUESTIONS, ANSWERS = "outcome.json", "questions.json", "answers.json"
MAX_ANSWERS = 2_000_000  # bytes
# A self-check that is not met stops a student, who can mend it; where it is graded, what comes of it is to be seen.
GRADED = {"LORALAB_SELFCHECK": "tell"}
LAST = 8  # lines of an error that a student is told


def execute(notebook: Path, folder: Path, base: str, seed: int, timeout: float) -> None:
    """Run `notebook` with BASE, SEED and RUNS set, in `folder`; `timeout` is in seconds per cell.

    It is executed as `folder/<its name>`, and its run folders are in `folder/runs`. Raises `NotebookFailed` naming the
    cell and the error.
    """
    _readable(notebook)
    runs = folder / "runs"
    runs.mkdir(parents=True, exist_ok=True)
    try:
        papermill.execute_notebook(
            notebook,
            folder / notebook.name,
            parameters={"BASE": base, "SEED": seed, "RUNS": str(runs)},
            cwd=folder,
            kernel_name="python3",
            language="python",
            execution_timeout=timeout,
            config=QUIET_KERNEL,
            progress_bar=False,
        )
    except PapermillExecutionError as error:
        where = f"{notebook.name}, cell {error.exec_count}"
        what = next(iter(error.evalue.strip().splitlines()), "")[:300]
        raise NotebookFailed(f"{where}: {error.ename}{what and ': '}{what}") from None
    except CellTimeoutError:
        raise NotebookFailed(f"{notebook.name}: a cell ran longer than {timeout:.0f} s") from None
    except DeadKernelError:
        raise NotebookFailed(f"{notebook.name}: the kernel died (out of memory, or it ended itself)") from None


def _readable(notebook: Path) -> None:
    try:
        nbformat.validate(nbformat.read(notebook, as_version=4))
    except Exception as error:  # whatever a broken file does to the reader, it is the file's fault
        what = first_line(error)[:200]
        raise NotebookFailed(f"{notebook.name}: cannot be read as a notebook: {what}") from None


class _Outcome(BaseModel):
    """What a notebook says about its end, in a file that the student's code could have written."""

    state: Literal["running", "failed", "kernel died", "too much output", "finished"]
    cell: Annotated[int, Field(ge=0)]
    what: Annotated[str, Field(max_length=2_000)] = ""
    lines: Annotated[str, Field(max_length=8_000)] = ""


@dataclass(frozen=True)
class Afterwards:
    """What the notebook's kernel is asked when the notebook has ended or stopped.

    `main(QUESTIONS, ANSWERS, the notebook's own names)` of the file `script` is called there, which stands alone.
    """

    script: Path
    questions: str


def read_answers(folder: Path) -> bytes | None:
    """Read what the kernel answered in `folder`, untrusted like the runs; None if there is no answer."""
    return _read_own(folder / ANSWERS, MAX_ANSWERS)


def execute_in_sandbox(
    notebook: NotebookNode,
    folder: Path,
    name: str,
    base: Base,
    seed: int,
    limits: Limits,
    afterwards: Afterwards | None = None,
) -> None:
    """Run `notebook`, called `name`, with BASE, SEED and RUNS set, in the sandbox and in an emptied `folder`.

    The executed notebook and its run folders, where `execute` has them, were written by the student's code: distrust them.
    Raises `NotebookFailed` with what went wrong and where, and the last lines below; `SandboxMissing` or
    `SandboxFailed` if it could not be run, which is not the student's fault.
    """
    empty(folder)
    (folder / "runs").mkdir()
    file = folder / f"{name}.ipynb"
    asked, mounts = _reachable(base)
    parameters = {"BASE": asked, "SEED": seed, "RUNS": f"{bubblewrap.FOLDER}/runs"}
    nbformat.write(notebook, file)
    told = parameterize_notebook(load_notebook_node(str(file)), parameters, kernel_name="python3", language="python")
    nbformat.write(told, file)
    last = ""
    if afterwards:
        (folder / QUESTIONS).write_text(afterwards.questions, "utf-8")
        mounts |= {afterwards.script: AFTERWARDS}
        last = f"import runpy; runpy.run_path({AFTERWARDS!r})['main']({QUESTIONS!r}, {ANSWERS!r}, globals())"
    command = [sys.executable, "-I", SCRIPT, file.name, OUTCOME, str(limits.output), last]
    mounts |= {Path(run_notebook.__file__): SCRIPT}
    ended = bubblewrap.run(command, folder, limits, mounts, {"HF_HUB_CACHE": HUB, "LORALAB_CACHE": FETCHED} | GRADED)
    if run_notebook.BEGUN.encode() not in ended.output:
        why = ended.breach or "; ".join(_short(ended.output.decode(errors="replace"))[-2:])
        raise SandboxFailed(f"{name}: no cell could be run in the sandbox: {why or ended.status}")
    outcome = _outcome(folder / OUTCOME)
    if ended.overfull:
        empty(folder)  # nobody should have to read, or to delete by hand, what breaks the limits
    if outcome and outcome.state == "finished" and not ended.breach and ended.status == 0:
        return
    lines = _short(outcome.lines)[-LAST:] if outcome else []
    raise NotebookFailed("\n".join([f"{_where(told, name, outcome)}: {_what(ended, outcome, limits)}", *lines]))


def empty(folder: Path) -> None:
    """Make `folder` an empty one that no other user can enter, whatever a notebook has left there."""
    if folder.exists():
        # Python's rmtree follows a nest of folders to its recursion limit, and stops at one that is locked.
        subprocess.run(["chmod", "-R", "u+rwx", "--", str(folder)], check=True)
        subprocess.run(["rm", "-rf", "--", str(folder)], check=True)
    folder.mkdir(parents=True)
    folder.chmod(0o700)


def _reachable(base: Base) -> tuple[str, dict[Path, str]]:
    """Return the value of BASE with which the sandboxed notebook finds `base`, and what must be mounted for that."""
    source = Path(base.source)
    if source.is_dir():
        if source.resolve() == data_path("base").resolve():
            return "embedded", {}
        if asked_for(base) != base.source:  # a fetched profile: its name brings its settings
            return base.name, {source.resolve(): f"{FETCHED}/{base.name}"}
        return str(source.resolve()), {source.resolve(): str(source.resolve())}
    name = repo_folder_name(repo_id=base.source, repo_type="model")
    cached = Path(HF_HUB_CACHE) / name
    if not cached.is_dir():
        raise SandboxFailed(f"{base.source} is not in the hub's cache ({cached}), and the sandbox has no network")
    return asked_for(base), {cached: f"{HUB}/{name}"}


def _outcome(path: Path) -> _Outcome | None:
    content = _read_own(path, 100_000)
    try:
        return None if content is None else _Outcome.model_validate_json(content)
    except ValidationError:
        return None


def _read_own(path: Path, most: int) -> bytes | None:
    """Read the first `most` bytes of a regular file that student code could write; None if it is not one."""
    try:
        file = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
        with os.fdopen(file, "rb") as stream:
            return stream.read(most) if stat.S_ISREG(os.fstat(file).st_mode) else None
    except OSError:
        return None


def _where(notebook: NotebookNode, name: str, outcome: _Outcome | None) -> str:
    if outcome is None or outcome.cell >= len(notebook.cells):
        return f"{name}.ipynb"
    code = [cell for cell in notebook.cells[: outcome.cell + 1] if cell.cell_type == "code"]
    number = sum("injected-parameters" not in cell.metadata.get("tags", []) for cell in code)
    called = notebook.cells[outcome.cell].metadata.get("nbgrader", {}).get("grade_id")
    return f"{name}.ipynb, cell {number}" + (f" ({called})" if called else "")


def _what(ended: Ended, outcome: _Outcome | None, limits: Limits) -> str:
    if ended.breach:
        return ended.breach
    match outcome:
        case _Outcome(state="failed", what=what):
            return next(iter(_short(what)), "an error")
        case _Outcome(state="kernel died"):
            return "the kernel died (out of memory, or it ended itself)"
        case _Outcome(state="too much output"):
            return f"wrote more than {size(limits.output)} of output"
    return f"its process was killed (exit status {ended.status})"


def _short(text: str) -> list[str]:
    lines = [line.rstrip()[:200] for line in display(text).splitlines()]
    return [line for line in lines if line.strip("- ")]
