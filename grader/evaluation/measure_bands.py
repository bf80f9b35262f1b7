"""Measuring the reference bands: the solutions run over several seeds, and what their runs measure."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from itertools import count
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

HOUR = 3600  # seconds: a cell that trains many runs may take long on a busy machine


def measure_bands(exercise: Exercise, base: Base, seeds: int, out: Path) -> tuple[Path, BaseBands]:
    """Run the solution below `out` until at least `seeds` seeds are trained, store its bands, and return their file and them.

    Runs that are finished are not repeated. Raises `NotebookFailed` or `Refused` if the solution itself is at fault.
    """
    evidence: list[dict[str, Evidence]] = []
    progress = tqdm(total=seeds, desc=f"bands of {exercise.id}", unit="seed")
    while len(evidence) < seeds:
        first = len(evidence) + 1
        folder = (out / base.name / exercise.id / _made_from(base, exercise) / f"seed-{first}").resolve()
        if not _all_recorded(next(_trained(exercise, folder, first))):
            execute(exercise.solution, folder, asked_for(base), first, timeout=HOUR)
        for seed, trained in enumerate(_trained(exercise, folder, first), start=first):
            evaluator = Evaluator(base, seed)
            evidence.append({run.name: evaluator.evaluate(run, trained[run.name]) for run in exercise.runs})
            progress.update()
    stored = ExerciseBands.load(exercise.id)
    measured = stored.bases[asked_for(base)] = _measured(base, evidence)
    return stored.save(exercise.id), measured


def _trained(exercise: Exercise, folder: Path, first: int) -> Iterator[dict[str, Path]]:
    """Yield the folders of the runs of the seed `first` of a notebook, and of each seed after it that it has trained, too.

    An exercise that compares over seeds trains all its runs with several.
    """
    for seed in count(first):
        suffix = f"-seed-{seed}" * (seed != first)
        runs = {run.name: folder / "runs" / (run.name + suffix) for run in exercise.runs}
        if seed != first and not _all_recorded(runs):
            return
        yield runs


def _all_recorded(runs: dict[str, Path]) -> bool:
    return all((run / RECORD_FILE).exists() for run in runs.values())


def _measured(base: Base, evidence: list[dict[str, Evidence]]) -> BaseBands:
    return BaseBands(
        runs={name: _of_run([one[name] for one in evidence]) for name in evidence[0]},
        seeds=list(range(1, len(evidence) + 1)),
        hardware=hardware(),
        versions=versions(),
        base_sha256=weights_of(base),
        measured=now(),
    )


def _of_run(evidence: list[Evidence]) -> RunBands:
    measured = [(one.before, one.after) for one in evidence]
    return RunBands(
        fresh_ratio=Band.of([round(after.fresh.ppl / before.fresh.ppl, 5) for before, after in measured]),
        exact=Band.shares([after.scores.exact_match.value for _, after in measured]),
        question_gain=Band.linear([round(after.control.gain, 5) for _, after in measured]),
        forgetting=Band.of([round(after.general.ppl / before.general.ppl, 5) for before, after in measured]),
    )


def _made_from(base: Base, exercise: Exercise) -> str:
    """Hash what reference runs depend on: those of another base, solution, code, data or version are not reused."""
    told = weights_of(base) + describe("loralab.training")
    return hashlib.sha256(told.encode() + exercise.solution.read_bytes()).hexdigest()[:8]
