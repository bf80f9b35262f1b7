"""The grader's command line: `python -m grader --help`, or `make grade` and `make bands`.

What a command needs is imported when it runs, so that help and the commands that read records do not load torch.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import typer

from .console import console, report_errors
from .exercises import EXERCISES, ROOT, SEED_BITS
from .term import commands
from .verdict import MAX_POINTS

if TYPE_CHECKING:
    from .evaluation.reference_bands import BaseBands

app = typer.Typer(
    help="Grade exercises from the adapters that they save.", no_args_is_help=True, pretty_exceptions_enable=False
)
REFERENCE_RUNS = commands.results_folder(ROOT, "bands")
app.command()(commands.collect)
app.command()(commands.export)


def _known(names: list[str] | None) -> list[str]:
    return [name for name in names or () if commands.known(name)]


Exercises = Annotated[list[str] | None, typer.Argument(callback=_known, help="The exercises (default: all).")]


@app.command()
def grade(
    exercise: Exercises = None,
    course: Annotated[
        Path, typer.Option(help="The folder with submitted/, where autograded/ and the gradebook go.")
    ] = ROOT,
    artifacts_only: Annotated[
        bool, typer.Option("--artifacts-only", help="Run no notebook: grade the run folders that were submitted.")
    ] = False,
    no_sandbox: Annotated[
        bool, typer.Option("--no-sandbox", help="Run notebooks unprotected: they can do all that you can.")
    ] = False,
    artifacts: Annotated[
        Path | None, typer.Option(help="Grade the run folders in this folder, and nothing else.")
    ] = None,
    base: Annotated[str, typer.Option(help="embedded, smollm2-135m, qwen2.5-0.5b, a hub id or a folder.")] = "embedded",
    seed: Annotated[int, typer.Option(min=0, max=2**32 - 1, help="The seed that the notebooks train with.")] = 0,
    audit: Annotated[
        str | None,
        typer.Option(help="With --artifacts-only: run a random share of the notebooks after all, as in 10%."),
    ] = None,
    heldout_seed: Annotated[
        int | None,
        typer.Option(
            min=0, max=2**SEED_BITS - 1, help="Draws the held-out pairs (default: a secret one, kept in the ledger)."
        ),
    ] = None,
    minutes: Annotated[
        float | None,
        typer.Option(
            min=0.1,
            help="How long one notebook may run; without a sandbox, one cell (default: 15; on larger bases, 60).",
        ),
    ] = None,
    memory: Annotated[float, typer.Option(min=0.5, help="GiB that it may use there; a larger base needs more.")] = 4,
    workers: Annotated[int, typer.Option(min=1, help="How many submissions are graded at a time.")] = 2,
    cluster: Annotated[
        str | None, typer.Option(help="A dask scheduler to grade on, such as tcp://10.0.0.1:8786.")
    ] = None,
    gradebook: Annotated[
        str | None, typer.Option(help="URL of nbgrader's gradebook (default: gradebook.db in the course folder).")
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(help="Where results go (default: build/grade in the course; with --artifacts, build/artifacts)."),
    ] = None,
) -> None:
    """Grade the submissions in submitted/<student>/<exercise>/; where there are none, the exercises' own solutions."""
    from . import grading

    course = course.resolve()
    results = "grade" if artifacts is None else "artifacts"  # one folder's verdict is no class's
    with report_errors():
        options = grading.Options(
            exercises=exercise or [], course=course, artifacts_only=artifacts_only, no_sandbox=no_sandbox,
            artifacts=artifacts, base_name=base, seed=seed, audit=audit, heldout_seed=heldout_seed, minutes=minutes,
            memory=memory, workers=workers, cluster=cluster, gradebook=gradebook,
            out=out or commands.results_folder(course, results),
        )  # fmt: skip
        well = grading.grade(options)
    raise typer.Exit(0 if well else 1)


@app.command()
def regrade(
    student: Annotated[str, typer.Argument(help="The student's folder in submitted/.")],
    exercise: Annotated[str, typer.Argument(callback=commands.known, help="The exercise.")],
    note: Annotated[str, typer.Option(help="Why; it is kept, and shown beside points set by hand.")],
    points: Annotated[
        float | None, typer.Option(min=0, max=MAX_POINTS, help="Set these points by hand, and judge nothing again.")
    ] = None,
    remove: Annotated[bool, typer.Option("--remove", help="Remove the points that were set by hand.")] = False,
    course: commands.Course = ROOT,
    out: Annotated[
        Path | None, typer.Option(help="The folder that grade wrote (default: build/grade in the course).")
    ] = None,
) -> None:
    """Judge one submission again, or set its points by hand; then bring all results up to date, as `grade` did last."""
    out = out or commands.results_folder(course)
    with report_errors():
        options = commands.decide(student, exercise, note, points, remove, course, out)
    grade(course=course, out=out, **options)


@app.command()
def exercises(exercise: Exercises = None) -> None:
    """Generate the student notebooks from the solutions."""
    from .release import generate, stamp

    with report_errors():
        for name in exercise or EXERCISES:
            stamp(EXERCISES[name])
            console.print(f"exercises/{name}/{generate(EXERCISES[name]).name}")


@app.command()
def bands(
    exercise: Exercises = None,
    base: Annotated[str, typer.Option(help="The base to measure on.")] = "embedded",
    seeds: Annotated[int, typer.Option(min=8, help="How many reference runs.")] = 10,
    out: Annotated[Path, typer.Option(help="Where the runs go; finished ones are not repeated.")] = REFERENCE_RUNS,
) -> None:
    """Run the solutions over several seeds and store what they measure as the exercise's bands."""
    from loralab.files import make_folder

    from .evaluation.measure_bands import measure_bands
    from .grading import find_base

    with report_errors():
        make_folder(out)
        for name in exercise or EXERCISES:
            _print_bands(*measure_bands(EXERCISES[name], find_base(base), seeds, out))


def _print_bands(file: Path, measured: BaseBands) -> None:
    console.print(file.name)
    for name, band in measured.runs.items():
        ratio, exact = band.fresh_ratio, band.exact
        console.print(
            f"  {name}: ratio {ratio.low:.4f} to {ratio.high:.4f}, exact match {exact.mean:.2f} ({exact.low:.2f} to {exact.high:.2f}), "
            f"question gain {band.question_gain.mean:.2f} nats per token",
        )
