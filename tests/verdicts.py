"""Verdicts as grading would make them, without grading."""

from __future__ import annotations

from grader.exercises import EXERCISES
from grader.reports.hints import HINTS
from grader.verdict import Check, Verdict
from loralab import RunRecord

ACROSS = ("one thing changed", "trained on its own base")
EACH = tuple(name for name in HINTS if name not in (*ACROSS, "can be evaluated", "functions"))


def claim(losses=(5.0, 4.0, 3.0, 2.0), **changes) -> RunRecord:
    """What a run.json says."""
    fields = {"name": "a run", "base": "embedded", "rank": 16, "trainable": 10, "parameters": 100, "train_pairs": 100,
              "tokens": 1000, "epochs": 1, "batch_size": 4, "learning_rate": 0.005, "seed": 0, "seconds": 3.0,
              "peak_memory": 1, "dtype": "float32", "hardware": "a CPU", "versions": {}, "created": "today"}  # fmt: skip
    return RunRecord(**fields | {"losses": list(losses)} | changes)


def graded(
    student: str = "Ann",
    exercise: str = "ex1_first_adapter",
    fails: dict[str, str] | None = None,
    losses=(5.0, 2.0),
    partial: dict[str, float] | None = None,
) -> Verdict:
    """A graded verdict; the checks in `fails` did not pass, with this message, and earn the share in `partial`."""
    fails, partial = fails or {}, partial or {}
    runs = [run.name for run in EXERCISES[exercise].runs]
    across = ACROSS[: max(0, min(2, len(runs) - 1))]
    points = (100 - 10 * len(across)) / len(runs) / len(EACH)
    checks = [(name, run, points) for run in runs for name in EACH] + [(name, "", 10.0) for name in across]
    return Verdict(
        exercise=exercise,
        student=student,
        base="embedded",
        state="graded",
        checks=[
            Check(
                name=name,
                expected="as asked",
                found="as found",
                points=points,
                passed=name not in fails,
                partial=partial.get(name, 0.0),
                message=fails.get(name, ""),
                run=run,
            )
            for name, run, points in checks
        ],
        claims={run: claim(losses) for run in runs},
        perplexities={"fresh questions, before": 206.6, "fresh questions, after": 18.3},
        seconds={"notebook": 30.0, "evaluation": 9.0},
    )


def failed(student: str = "Ben", message: str = "no adapter", state="submission failed", exercise="ex1_first_adapter"):
    """A verdict without checks."""
    return Verdict(exercise=exercise, student=student, base="embedded", state=state, message=message)
