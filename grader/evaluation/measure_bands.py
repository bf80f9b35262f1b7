"""Measuring the reference bands: the solutions run over several seeds, and what their runs measure."""

from __future__ import annotations

import hashlib
from pathlib import Path

from tqdm.auto import tqdm

from loralab import Base
from loralab.bases import asked_for, weights_of
from loralab.provenance import describe
from loralab.record import RECORD_FILE, hardware, now, versions

from ..exercises import Exercise
from ..sandbox.execute import execute
from .evaluator import Evaluator, Evidence
from .reference_bands import Band, BaseBands, ExerciseBands, RunBands


def measure_bands(exercise: Exercise, base: Base, seeds: int, out: Path) -> tuple[Path, BaseBands]:
    """Run the solution with seeds 1 to `seeds` below `out`, store its bands, and return their file and them.

    Runs that are finished are not repeated. Raises `NotebookFailed` or `Refused` if the solution itself is at fault.
    """
    evidence, made_from = [], _made_from(base, exercise)
    for seed in tqdm(range(1, seeds + 1), desc=f"bands of {exercise.id}", unit="run"):
        folder = (out / base.name / exercise.id / made_from / f"seed-{seed}").resolve()
        if not all((folder / "runs" / run.name / RECORD_FILE).exists() for run in exercise.runs):
            execute(exercise.solution, folder, asked_for(base), seed, progress=False)
        evaluator = Evaluator(base, seed)
        evidence.append({run.name: evaluator.evaluate(run, folder / "runs" / run.name) for run in exercise.runs})
    stored = ExerciseBands.load(exercise.id)
    measured = stored.bases[asked_for(base)] = _measured(base, evidence, seeds)
    return stored.save(exercise.id), measured


def _measured(base: Base, evidence: list[dict[str, Evidence]], seeds: int) -> BaseBands:
    runs = {
        name: RunBands(
            fresh_ratio=Band.of([round(one[name].fresh.ratio, 5) for one in evidence]),
            exact=Band.shares([one[name].scores.exact_match.value for one in evidence]),
            question_gain=Band.linear([round(one[name].control.gain, 5) for one in evidence]),
            forgetting=Band.of([round(one[name].general.ratio, 5) for one in evidence]),
        )
        for name in evidence[0]
    }
    return BaseBands(
        runs=runs,
        seeds=list(range(1, seeds + 1)),
        hardware=hardware(),
        versions=versions(),
        base_sha256=weights_of(base),
        measured=now(),
    )


def _made_from(base: Base, exercise: Exercise) -> str:
    """Hash what reference runs depend on: those of another base, solution, code, data or version are not reused."""
    told = weights_of(base) + describe("loralab.training")
    return hashlib.sha256(told.encode() + exercise.solution.read_bytes()).hexdigest()[:8]
