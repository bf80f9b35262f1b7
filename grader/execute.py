"""Running a notebook with papermill."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import nbformat
import papermill
from nbclient.exceptions import CellTimeoutError, DeadKernelError
from papermill.exceptions import PapermillExecutionError
from tqdm.auto import tqdm
from traitlets.config import Config

from loralab.pool import Died, run_all

# The kernel is spoken to through files that only this user can read, not through open ports.
QUIET_KERNEL = Config({"KernelManager": {"transport": "ipc"}})


class NotebookFailed(RuntimeError):
    """A notebook that did not run to its end; the message says in which cell and why."""


@dataclass(frozen=True)
class Execution:
    """Where an executed notebook lies, where its run folders, and how long it took."""

    notebook: Path
    runs: Path
    seconds: float = 0.0


def execute(
    notebook: Path, folder: Path, base: str, seed: int, timeout: float = 600, progress: bool = True
) -> Execution:
    """Run `notebook` with BASE, SEED and RUNS set, in `folder`; `timeout` is in seconds a cell.

    Raises `NotebookFailed` naming the cell and the error.
    """
    _readable(notebook)
    runs = folder / "runs"
    runs.mkdir(parents=True, exist_ok=True)
    output = folder / notebook.name
    started = time.perf_counter()
    try:
        papermill.execute_notebook(
            notebook,
            output,
            parameters={"BASE": base, "SEED": seed, "RUNS": str(runs)},
            cwd=folder,
            kernel_name="python3",
            language="python",
            execution_timeout=timeout,
            config=QUIET_KERNEL,
            progress_bar={"desc": notebook.stem, "unit": "cell"} if progress else False,
        )
    except PapermillExecutionError as error:
        where = f"{notebook.name}, cell {error.exec_count}"
        raise NotebookFailed(f"{where}: {error.ename}: {error.evalue.strip().splitlines()[0][:300]}") from None
    except CellTimeoutError:
        raise NotebookFailed(f"{notebook.name}: a cell ran longer than {timeout:.0f} s") from None
    except DeadKernelError:
        raise NotebookFailed(f"{notebook.name}: the kernel died (out of memory, or it ended itself)") from None
    return Execution(output, runs, time.perf_counter() - started)


def execute_all(
    tasks: Sequence[tuple[Path, Path]], base: str, seed: int, workers: int
) -> list[Execution | NotebookFailed]:
    """Run each notebook in its folder, `workers` at a time; in their order, how each ended.

    Each has a process of its own: papermill changes the working directory of the whole process, and
    the kernels' files are found from there.
    """
    single = len(tasks) == 1
    jobs = [(*task, base, seed, single) for task in tasks]
    longest_first = jobs[::-1]  # later exercises train more, and a long one begun last would run alone
    ended = tqdm(run_all(_attempt, longest_first, workers), total=len(jobs), desc="notebooks", disable=single)
    outcomes = dict(ended)
    return [_told(job, outcomes[job]) for job in jobs]


def _attempt(job: tuple[Path, Path, str, int, bool]) -> Execution:
    notebook, folder, base, seed, progress = job
    return execute(notebook, folder, base, seed, progress=progress)


def _told(job: tuple[Path, Path, str, int, bool], outcome: Execution | Exception) -> Execution | NotebookFailed:
    if isinstance(outcome, Died):
        return NotebookFailed(f"{job[0].name}: {outcome}")
    if isinstance(outcome, Exception) and not isinstance(outcome, NotebookFailed):
        raise outcome
    return outcome


def _readable(notebook: Path) -> None:
    try:
        nbformat.validate(nbformat.read(notebook, as_version=4))
    except Exception as error:  # whatever a broken file does to the reader, it is the file's fault
        what = str(error).splitlines()[0][:200] if str(error) else type(error).__name__
        raise NotebookFailed(f"{notebook.name}: cannot be read as a notebook: {what}") from None
