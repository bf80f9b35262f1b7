"""From `make grade` to the first verdict: where the seconds go, and what was done about those that imports take.

Grades the solution of exercise 1 as `make grade` does. Writes `benchmarks/results/start_up.json`.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import nbformat

from benchmarks.measured import save
from grader.evaluation.evaluator import Evaluator
from grader.exercises import EXERCISES, ROOT
from grader.sandbox.execute import execute
from loralab import RunRecord, choose_base

EX1 = EXERCISES["ex1_first_adapter"]
COMMAND = ["grade", EX1.id, "--heldout-seed", "7"]
# The same command without the process that loads torch beside it.
ONE_AFTER_ANOTHER = f"import sys; sys.argv[1:] = {COMMAND}; from grader.cli import app; app()"
COLLECTING = "import gc; gc.disable = gc.freeze = lambda: None; import loralab"


def seconds_of(*arguments: str) -> float:
    """Return how long a fresh Python takes for `arguments`. Raises `CalledProcessError` if it fails."""
    started = time.perf_counter()
    environment = os.environ | {"PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1"}
    with tempfile.TemporaryDirectory() as folder:
        subprocess.run([sys.executable, *arguments], cwd=folder, env=environment, check=True, capture_output=True)
    return time.perf_counter() - started


def alternating(rounds: int, **commands: tuple[str, ...]) -> dict[str, dict[str, float]]:
    """Return the median and the range, in seconds, of each command over the rounds."""
    times: dict[str, list[float]] = {name: [] for name in commands}
    for _ in range(rounds):
        for name, command in commands.items():
            times[name].append(seconds_of(*command))
    return {
        name: {"median": statistics.median(of), "lowest": min(of), "highest": max(of)} for name, of in times.items()
    }


def parts() -> dict[str, float]:
    """Measure the seconds of each part of `make grade` for one exercise."""
    with tempfile.TemporaryDirectory() as scratch:
        folder, started = Path(scratch), time.perf_counter()
        execute(EX1.solution, folder, "embedded", 0)
        running = time.perf_counter() - started
        cells = nbformat.read(folder / EX1.solution.name, as_version=4).cells
        took = {cell.id: cell.metadata.get("papermill", {}).get("duration") or 0.0 for cell in cells}
        training = sum(RunRecord.load(folder / "runs" / run.name).seconds for run in EX1.runs)
        evaluator = Evaluator(choose_base("embedded"), seed=7)
        started = time.perf_counter()
        for run in EX1.runs:
            evaluator.evaluate(run, folder / "runs" / run.name)
        evaluation = time.perf_counter() - started
    return {
        "the command's own imports": seconds_of("-c", "import grader.grading"),
        "starting a kernel": running - sum(took.values()),
        "the notebook's imports": took["imports"],
        "training": training,
        "its other cells": sum(took.values()) - took["imports"] - training,
        "evaluation, the base's included": evaluation,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=3)
    rounds = parser.parse_args().rounds
    result = {
        "parts": parts(),
        "imports": alternating(5 * rounds, collecting=("-c", COLLECTING), not_collecting=("-c", "import loralab")),
        "to_the_first_verdict": alternating(
            rounds, one_after_another=("-c", ONE_AFTER_ANOTHER), side_by_side=("-m", "grader", *COMMAND)
        ),
    }
    save("start_up", result)
    print(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
