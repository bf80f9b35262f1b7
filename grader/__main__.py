"""The grader's command line: `python -m grader --help`, or `make grade` and `make bands`."""

from __future__ import annotations

import hashlib
import os
import secrets
import shutil
import time
from pathlib import Path
from typing import Annotated

os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import typer
from rich.console import Console
from tqdm.auto import tqdm

from loralab import PROFILES, Base, choose_base
from loralab.record import hardware, now, versions

from .adapter import Refused
from .bands import Band, BaseBands, ExerciseBands
from .checks import check_all
from .evaluate import Evaluator, Evidence
from .execute import NotebookFailed, execute
from .exercises import EXERCISES, Exercise
from .release import generate
from .report import perplexities, print_verdict, write_grades, write_report, write_results
from .verdict import Verdict

app = typer.Typer(
    help="Grade exercises from the adapters that they save.", no_args_is_help=True, pretty_exceptions_enable=False
)
console = Console()
BUILD = Path("build")


def _exercises(names: list[str] | None) -> list[Exercise]:
    unknown = set(names or ()) - EXERCISES.keys()
    if unknown:
        raise typer.BadParameter(f"no exercise {sorted(unknown)[0]!r}; there are: {', '.join(EXERCISES)}")
    return [EXERCISES[name] for name in names or EXERCISES]


def _base(name: str) -> Base:
    try:
        base = choose_base(name)
    except ValueError as error:
        raise typer.BadParameter(str(error)) from None
    if base.name == "embedded":
        os.environ["HF_HUB_OFFLINE"] = "1"  # nothing is fetched, so nothing should try
    return base


def judge(evaluator: Evaluator, exercise: Exercise, student: str, folder: Path) -> Verdict:
    """The verdict on the run folder that a student's notebook left."""
    verdict = Verdict(
        exercise=exercise.id, student=student, base=evaluator.base.name, heldout_seed=evaluator.seed, state="graded"
    )
    try:
        evidence = evaluator.evaluate(folder)
    except Refused as refusal:
        return verdict.model_copy(update={"state": "submission failed", "message": str(refusal)})
    bands = ExerciseBands.load(exercise.id).bases.get(evaluator.base.name)
    found = {
        "checks": check_all(exercise, evidence, bands),
        "claim": evidence.claim,
        "perplexities": perplexities(evidence),
    }
    return verdict.model_copy(update=found)


@app.command()
def grade(
    exercise: Annotated[list[str] | None, typer.Argument(help="Exercises to grade (default: all).")] = None,
    base: Annotated[str, typer.Option(help="embedded, smollm2-135m, qwen2.5-0.5b, a hub id or a folder.")] = "embedded",
    seed: Annotated[int, typer.Option(help="The seed that the notebook trains with.")] = 0,
    heldout_seed: Annotated[int | None, typer.Option(help="Draws the held-out pairs (default: a secret one).")] = None,
    artifacts: Annotated[Path | None, typer.Option(help="Grade this run folder instead of running a notebook.")] = None,
    out: Annotated[Path, typer.Option(help="Where results go.")] = BUILD / "grade",
) -> None:
    """Run each exercise's solution notebook for real and grade the adapter that it saves."""
    chosen = _exercises(exercise)
    base_used = _base(base)
    if artifacts is not None and len(chosen) != 1:
        raise typer.BadParameter("--artifacts grades one exercise; name it")
    out.mkdir(parents=True, exist_ok=True)
    evaluator = Evaluator(base_used, secrets.randbelow(2**31) if heldout_seed is None else heldout_seed)
    verdicts = []
    for one in chosen:
        started = time.perf_counter()
        student = "solution" if artifacts is None else artifacts.name
        try:
            folder = artifacts or _run(one, base_used, seed, out) / one.run
            ran = time.perf_counter()
            verdict = judge(evaluator, one, student, folder)
        except NotebookFailed as failure:
            ran = time.perf_counter()
            verdict = Verdict(exercise=one.id, student=student, base=base_used.name, heldout_seed=evaluator.seed,
                              state="submission failed", message=str(failure))  # fmt: skip
        verdict.seconds |= {"notebook": ran - started, "evaluation": time.perf_counter() - ran}
        verdicts.append(verdict)
        print_verdict(verdict, console)
    write_results(verdicts, out)
    write_grades(verdicts, out)
    report = write_report(verdicts, out)
    console.print(f"results.json, grades.csv and {report.name} are in {out}", highlight=False)
    raise typer.Exit(0 if all(verdict.passed for verdict in verdicts) else 1)


def _run(exercise: Exercise, base: Base, seed: int, out: Path) -> Path:
    """Execute the solution in a fresh folder below `out` and return its RUNS folder."""
    folder = (out / exercise.id).resolve()
    shutil.rmtree(folder, ignore_errors=True)
    return execute(exercise.solution, folder, base.name if base.name in PROFILES else base.source, seed).runs


@app.command()
def exercises(
    exercise: Annotated[list[str] | None, typer.Argument(help="Exercises to generate (default: all).")] = None,
) -> None:
    """Generate the student notebooks from the solutions."""
    for one in _exercises(exercise):
        console.print(f"exercises/{one.id}/{generate(one).name}", highlight=False)


@app.command()
def bands(
    exercise: Annotated[list[str] | None, typer.Argument(help="Exercises to measure (default: all).")] = None,
    base: Annotated[str, typer.Option(help="The base to measure on.")] = "embedded",
    seeds: Annotated[int, typer.Option(min=8, help="How many reference runs.")] = 10,
    out: Annotated[Path, typer.Option(help="Where the runs go; finished ones are not repeated.")] = BUILD / "bands",
) -> None:
    """Run the solutions over several seeds and store what they measure as the exercise's bands."""
    base_used = _base(base)
    for one in _exercises(exercise):
        evidence = []
        for seed in tqdm(range(1, seeds + 1), desc=f"bands of {one.id}", unit="run"):
            folder = (out / base_used.name / one.id / f"seed-{seed}").resolve()
            if not (folder / "runs" / one.run / "run.json").exists():
                execute(one.solution, folder, base, seed, progress=False)
            evidence.append(Evaluator(base_used, seed).evaluate(folder / "runs" / one.run))
        stored = ExerciseBands.load(one.id)
        stored.bases[base_used.name] = _measured(base_used, evidence, seeds)
        console.print(f"{stored.save(one.id).name}: {stored.bases[base_used.name].fresh_ratio}")


def _measured(base: Base, evidence: list[Evidence], seeds: int) -> BaseBands:
    return BaseBands(
        fresh_ratio=Band.of([round(e.fresh.ratio, 5) for e in evidence]),
        general_ratio=Band.of([round(e.general.ratio, 5) for e in evidence]),
        seeds=list(range(1, seeds + 1)),
        hardware=hardware(),
        versions=versions(),
        base_sha256=_weights_hash(base),
        measured=now(),
    )


def _weights_hash(base: Base) -> str:
    file = Path(base.source) / "model.safetensors"
    return hashlib.sha256(file.read_bytes()).hexdigest() if file.is_file() else "a model of the hub"


if __name__ == "__main__":
    app()
