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
from .bands import Band, BaseBands, ExerciseBands, RunBands
from .checks import check_all
from .evaluate import Evaluator, Evidence
from .execute import Execution, NotebookFailed, execute, execute_all
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


def judge(evaluator: Evaluator, exercise: Exercise, student: str, runs: Path) -> Verdict:
    """The verdict on the run folders that a student's notebook left in `runs`."""
    verdict = Verdict(
        exercise=exercise.id, student=student, base=evaluator.base.name, heldout_seed=evaluator.seed, state="graded"
    )
    evidence: dict[str, Evidence] = {}
    refused: dict[str, str] = {}
    for run in exercise.runs:
        try:
            evidence[run.name] = evaluator.evaluate(run, runs / run.name, elsewhere=exercise.compares_methods)
        except Refused as refusal:
            refused[run.name] = str(refusal)
    if not evidence:
        return verdict.model_copy(update={"state": "submission failed", "message": "\n".join(refused.values())})
    bands = ExerciseBands.load(exercise.id).bases.get(evaluator.base.name)
    found = {
        "checks": check_all(exercise, evidence, refused, bands, evaluator.base),
        "claims": {name: one.claim for name, one in evidence.items()},
        "perplexities": perplexities(evidence),
    }
    return verdict.model_copy(update=found)


@app.command()
def grade(
    exercise: Annotated[list[str] | None, typer.Argument(help="Exercises to grade (default: all).")] = None,
    base: Annotated[str, typer.Option(help="embedded, smollm2-135m, qwen2.5-0.5b, a hub id or a folder.")] = "embedded",
    seed: Annotated[int, typer.Option(help="The seed that the notebooks train with.")] = 0,
    heldout_seed: Annotated[int | None, typer.Option(help="Draws the held-out pairs (default: a secret one).")] = None,
    artifacts: Annotated[
        Path | None, typer.Option(help="Grade the run folders in this folder instead of running a notebook.")
    ] = None,
    workers: Annotated[int, typer.Option(min=1, help="How many notebooks run at a time.")] = 2,
    out: Annotated[Path, typer.Option(help="Where results go.")] = BUILD / "grade",
) -> None:
    """Run each exercise's solution notebook for real and grade the adapters that it saves."""
    chosen = _exercises(exercise)
    base_used = _base(base)
    if artifacts is not None and len(chosen) != 1:
        raise typer.BadParameter("--artifacts grades one exercise; name it")
    out.mkdir(parents=True, exist_ok=True)
    if artifacts is not None:
        finished = [Execution(chosen[0].solution, artifacts)]
    else:
        finished = _run_all(chosen, base_used, seed, out, workers)
    evaluator = Evaluator(base_used, secrets.randbelow(2**31) if heldout_seed is None else heldout_seed)
    verdicts = []
    for one, ran in zip(chosen, finished, strict=True):
        started = time.perf_counter()
        student = "solution" if artifacts is None else artifacts.name
        if isinstance(ran, NotebookFailed):
            verdict = Verdict(exercise=one.id, student=student, base=base_used.name, heldout_seed=evaluator.seed,
                              state="submission failed", message=str(ran))  # fmt: skip
        else:
            verdict = judge(evaluator, one, student, ran.runs)
            verdict.seconds |= {"notebook": ran.seconds, "evaluation": time.perf_counter() - started}
        verdicts.append(verdict)
        print_verdict(verdict, console)
    write_results(verdicts, out)
    write_grades(verdicts, out)
    report = write_report(verdicts, out)
    console.print(f"results.json, grades.csv and {report.name} are in {out}", highlight=False)
    raise typer.Exit(0 if all(verdict.passed for verdict in verdicts) else 1)


def _run_all(
    chosen: list[Exercise], base: Base, seed: int, out: Path, workers: int
) -> list[Execution | NotebookFailed]:
    """Execute the solutions, `workers` at a time, each in a fresh folder below `out`."""
    name = base.name if base.name in PROFILES else base.source
    # Kernels that run side by side share the cores; more threads than cores stall one another.
    os.environ["OMP_NUM_THREADS"] = str(max(1, (os.cpu_count() or 1) // min(workers, len(chosen))))

    for exercise in chosen:
        shutil.rmtree(out / exercise.id, ignore_errors=True)
    tasks = [(exercise.solution, (out / exercise.id).resolve()) for exercise in chosen]
    return execute_all(tasks, name, seed, workers)


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
            if not all((folder / "runs" / run.name / "run.json").exists() for run in one.runs):
                execute(one.solution, folder, base, seed, progress=False)
            evaluator = Evaluator(base_used, seed)
            evidence.append({run.name: evaluator.evaluate(run, folder / "runs" / run.name) for run in one.runs})
        stored = ExerciseBands.load(one.id)
        stored.bases[base_used.name] = _measured(base_used, evidence, seeds)
        console.print(stored.save(one.id).name, highlight=False)
        for name, band in stored.bases[base_used.name].runs.items():
            console.print(f"  {name}: ratio {band.fresh_ratio.low:.4f} to {band.fresh_ratio.high:.4f}", highlight=False)


def _measured(base: Base, evidence: list[dict[str, Evidence]], seeds: int) -> BaseBands:
    runs = {
        name: RunBands(
            fresh_ratio=Band.of([round(one[name].fresh.ratio, 5) for one in evidence]),
            general_ratio=Band.of([round(one[name].general.ratio, 5) for one in evidence]),
        )
        for name in evidence[0]
    }
    return BaseBands(
        runs=runs,
        seeds=list(range(1, seeds + 1)),
        hardware=hardware(),
        versions=versions(),
        base_sha256=_weights_hash(base),
        measured=now(),
    )


def _weights_hash(base: Base) -> str:
    file = Path(base.source) / "model.safetensors"
    return hashlib.sha256(file.read_bytes()).hexdigest() if file.is_file() else "a model of the hub"
