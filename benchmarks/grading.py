"""Grading a class: `nbgrader autograde`, this grader re-running every notebook, and this grader on the artifacts alone.

All three grade the same honest submissions of exercise 1, one after the other. Then the artifacts of a larger class, with
the memory of all the grader's processes as it goes, and the artifacts of the few again on one and two workers, of
this machine and of a dask scheduler. Writes `benchmarks/results/grading.json`.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import nbformat
import psutil
from distributed import Client, LocalCluster
from nbgrader.api import Gradebook

from benchmarks.measured import save
from grader.exercises import EXERCISES, ROOT
from grader.sandbox.execute import execute
from loralab.record import RUN_FILES

EX1 = EXERCISES["ex1_first_adapter"]
RUN = EX1.runs[0].name
BINARIES = Path(sys.executable).parent
ENVIRONMENT = os.environ | {
    "PATH": f"{BINARIES}{os.pathsep}{os.environ['PATH']}",
    "PYTHONPATH": str(ROOT),
    "HF_HUB_OFFLINE": "1",
}


def write_class(course: Path, hand_ins: int, runs: Path) -> None:
    """Submissions of exercise 1 that differ in a comment, each with the run folder that the solution trained."""
    for number in range(hand_ins):
        folder = course / "submitted" / f"student-{number:03}" / EX1.id
        shutil.copytree(runs / RUN, folder / RUN, ignore=lambda _, names: set(names) - set(RUN_FILES))
        notebook = nbformat.read(EX1.solution, as_version=4)
        for cell in notebook.cells:
            if cell.metadata.get("nbgrader", {}).get("solution"):
                cell.source += f"\n# student {number}"
        nbformat.write(notebook, folder / f"{EX1.id}.ipynb")


def call(command: list[object], folder: Path, watch: Callable[[int], None] | None = None) -> float:
    """Run a command to its end; the seconds it took. Raises `RuntimeError` with its last lines if it fails."""
    started = time.perf_counter()
    log = folder / "log.txt"
    with log.open("w") as file:
        process = subprocess.Popen(list(map(str, command)), cwd=folder, env=ENVIRONMENT, stdout=file, stderr=file)
        while process.poll() is None:
            if watch:
                watch(process.pid)
            time.sleep(0.25)
    if process.returncode:
        raise RuntimeError(f"{command[0]} failed:\n{log.read_text()[-2000:]}")
    seconds = time.perf_counter() - started
    print(f"{seconds:6.1f} s  {' '.join(map(str, command))}", flush=True)
    return seconds


def with_nbgrader(course: Path, hand_ins: int) -> float:
    """Seconds that `nbgrader autograde` takes for the class. Its 30 s a cell are too short to train in."""
    shutil.copytree(EX1.solution.parent, course / "solutions" / EX1.id)
    shutil.copy(ROOT / "nbgrader_config.py", course)
    call([BINARIES / "nbgrader", "generate_assignment", EX1.id], course)
    seconds = call([BINARIES / "nbgrader", "autograde", EX1.id, "--create", "--Execute.timeout=600"], course)
    with Gradebook(f"sqlite:///{course}/gradebook.db") as gradebook:
        scores = [one.score for one in gradebook.assignment_submissions(EX1.id)]
    if scores != [8.0] * hand_ins:
        raise RuntimeError(f"nbgrader graded {len(scores)} of {hand_ins} submissions: {scores}")
    return seconds


def with_this(course: Path, hand_ins: int, *options: str, watch: Callable[[int], None] | None = None) -> float:
    """Seconds that this grader takes for the class, its start included."""
    out = course / "out"
    shutil.rmtree(out, ignore_errors=True)
    command = [sys.executable, "-m", "grader", "grade", EX1.id, "--course", course, "--out", out, *options]
    seconds = call(command, course, watch)
    verdicts = json.loads((out / "results.json").read_text())
    if [sum(check["passed"] for check in one["checks"]) for one in verdicts] != [12] * hand_ins:
        raise RuntimeError(f"not every honest submission passed: see {out}/report.html")
    return seconds


def memory_over(course: Path, hand_ins: int) -> dict[str, object]:
    """Return the memory of all the grader's processes (the sum of their own pages, in bytes) over a large class."""
    samples: list[int] = []

    def watch(pid: int) -> None:
        try:
            own = psutil.Process(pid)
            samples.append(sum(one.memory_full_info().uss for one in (own, *own.children(recursive=True))))
        except psutil.Error:
            return  # one of them has ended since

    with_this(course, hand_ins, "--artifacts-only", watch=watch)
    quarters = [max(samples[i * len(samples) // 4 : (i + 1) * len(samples) // 4]) for i in range(4)]
    return {"hand_ins": hand_ins, "peak_bytes_by_quarter": quarters}


@contextmanager
def dask_workers(count: int) -> Iterator[str]:
    """So many dask workers on this machine, as `docs/cluster.md` starts them, with a processor each; the address."""
    with LocalCluster(n_workers=0, dashboard_address=None, host="127.0.0.1") as cluster, ExitStack() as running:
        address = cluster.scheduler_address
        command = [BINARIES / "dask", "worker", address, "--no-nanny", "--nthreads", "1", "--no-dashboard"]
        for _ in range(count):
            worker = subprocess.Popen(command, env=ENVIRONMENT | {"OMP_NUM_THREADS": "1"}, stderr=subprocess.DEVNULL)
            running.callback(worker.wait)
            running.callback(worker.terminate)
        with Client(address) as client:
            client.wait_for_workers(count)
        yield address


def scaled_out(course: Path, hand_ins: int) -> dict[str, float]:
    """Seconds for the artifacts alone with one and with two workers, each of one thread, with and without a cluster."""
    seconds = {}
    for workers in (1, 2):
        ENVIRONMENT["OMP_NUM_THREADS"] = str(workers)  # the grader divides them among its workers
        with dask_workers(workers) as address:
            seconds[f"dask, {workers}"] = with_this(course, hand_ins, "--artifacts-only", "--cluster", address)
        seconds[f"here, {workers}"] = with_this(course, hand_ins, "--artifacts-only", "--workers", str(workers))
    return seconds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--submissions", type=int, default=20)
    parser.add_argument("--many", type=int, default=300, help="how many submissions the memory is watched over")
    chosen = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        execute(EX1.solution, folder / "solution", "embedded", 0)
        few, many = folder / "few", folder / "many"
        write_class(few, chosen.submissions, folder / "solution" / "runs")
        write_class(many, chosen.many, folder / "solution" / "runs")
        seconds = {
            "nbgrader autograde": with_nbgrader(few, chosen.submissions),
            "re-executing": with_this(few, chosen.submissions),
            "artifacts only": with_this(few, chosen.submissions, "--artifacts-only"),
        }
        memory = memory_over(many, chosen.many)
        workers = scaled_out(few, chosen.submissions)
    first = seconds["nbgrader autograde"]
    result = {
        "hand_ins": chosen.submissions,
        "seconds": {name: round(value, 1) for name, value in seconds.items()},
        "times_as_fast": {name: round(first / value, 2) for name, value in seconds.items()},
        "seconds_by_workers": {name: round(value, 1) for name, value in workers.items()},
        "memory": memory,
    }
    save("grading", result)
    print(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
