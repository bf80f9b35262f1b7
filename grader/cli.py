"""The grader's command line: `python -m grader --help`, or `make grade` and `make bands`."""

from __future__ import annotations

import os
import secrets
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import closing, suppress
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Annotated, Any

os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import typer
from tqdm.auto import tqdm

from loralab import PROFILES, Base, choose_base
from loralab.bases import asked_for, weights_of
from loralab.errors import LoralabError

from .console import console, private_files, report_errors, say
from .errors import GradebookError, GraderError, SandboxMissing, UnusableName
from .evaluation.measure_bands import measure_bands
from .evaluation.reference_bands import BaseBands, ExerciseBands
from .exercises import EXERCISES, ROOT, Exercise
from .pipeline import Graded, GradingSetup, Mode, grade_class
from .records.autograded import answers_differ, origin_of, remove_autograded, write_autograded
from .records.gradebook import ask_for_another_look, default_url, write_gradebook
from .records.ledger import SEED_BITS, Ledger
from .release import generate, stamp
from .reports.class_report import FEW, write_report
from .reports.class_stats import in_order
from .reports.exports import write_grades, write_results
from .reports.student_feedback import write_feedback
from .reports.terminal import print_class, print_verdict
from .sandbox.bubblewrap import available
from .sandbox.limits import GIB, Limits
from .submission.find import SubmissionFolder, doubtful_names, find, left_out
from .submission.intake import Submission
from .submission.similarity import fingerprint
from .term import commands
from .term.audit import differences, draw_sample, share_of, write_audit
from .term.commands import results_folder
from .term.term import Term
from .text import display_line, display_name, printable
from .verdict import MAX_POINTS, Verdict

app = typer.Typer(
    help="Grade exercises from the adapters that they save.", no_args_is_help=True, pretty_exceptions_enable=False
)
REFERENCE_RUNS = results_folder(ROOT, "bands")
app.command()(commands.collect)
app.command()(commands.export)


@dataclass(frozen=True)
class _Request:
    """What is to be graded, with which options, and where the results go."""

    exercises: list[Exercise]
    course: Path
    base: Base
    seed: int
    heldout_seed: int | None
    limits: Limits
    workers: int
    cluster: str | None
    out: Path

    def setup(self, mode: Mode, heldout_seed: int, again: Mapping[tuple[str, str], int] | None = None) -> GradingSetup:
        return GradingSetup(self.base, heldout_seed, mode, self.seed, self.limits, again or {})


def _exercises(names: list[str] | None) -> list[Exercise]:
    for name in names or ():
        commands.known(name)
    return [EXERCISES[name] for name in names or EXERCISES]


def _base(name: str) -> Base:
    try:  # a folder by its whole path: it has a name then, wherever it is asked for
        base = choose_base(name if name in PROFILES or not Path(name).is_dir() else str(Path(name).resolve()))
        weights_of(base)
    except LoralabError as error:
        raise typer.BadParameter(str(error)) from None
    if Path(base.source).is_dir():
        os.environ["HF_HUB_OFFLINE"] = "1"  # nothing is fetched, so nothing should try
    return base


@app.command()
def grade(
    exercise: Annotated[list[str] | None, typer.Argument(help="Exercises to grade (default: all).")] = None,
    course: Annotated[
        Path, typer.Option(help="The folder with submitted/, where autograded/ and the gradebook go.")
    ] = ROOT,
    artifacts_only: Annotated[
        bool, typer.Option("--artifacts-only", help="Run no notebook: grade the run folders that were handed in.")
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
    minutes: Annotated[float, typer.Option(min=0.1, help="How long one notebook may run in the sandbox.")] = 15,
    memory: Annotated[float, typer.Option(min=0.5, help="GiB that it may use there; a larger base needs more.")] = 4,
    workers: Annotated[int, typer.Option(min=1, help="How many hand-ins are graded at a time.")] = 2,
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
    """Grade the hand-ins in submitted/<student>/<exercise>/; where there are none, the exercises' own solutions."""
    course = course.resolve()
    results = "grade" if artifacts is None else "artifacts"  # one folder's verdict is no class's
    out = out or results_folder(course, results)
    limits = Limits(wall=60 * minutes, memory=round(memory * GIB))
    request = _Request(_exercises(exercise), course, _base(base), seed, heldout_seed, limits, workers, cluster, out)
    a_class = artifacts is None and ((course / "submitted").exists() or course != ROOT)
    with report_errors(), private_files():
        share = _audited_share(audit, artifacts_only and a_class)
        _make_folder(request.out)
        if artifacts is not None:
            well = _grade_folders(request, [_one_folder(artifacts, request.exercises)], "artifacts")
        elif a_class:
            options = {
                "exercise": exercise, "artifacts_only": artifacts_only, "no_sandbox": no_sandbox,
                "base": asked_for(request.base), "seed": seed, "minutes": minutes, "memory": memory, "workers": workers,
                "gradebook": gradebook,
            }  # fmt: skip
            mode = _mode(artifacts_only, no_sandbox)
            well = _grade_submitted(request, mode, gradebook or default_url(course), options, share)
        else:
            mode = _mode_of_solutions(artifacts_only, no_sandbox)
            well = _grade_folders(request, _solutions(request.exercises), mode)
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
    out = out or results_folder(course)
    with report_errors():
        options = commands.decide(student, exercise, note, points, remove, course, out)
    grade(course=course, out=out, **options)


def _grade_folders(request: _Request, folders: list[SubmissionFolder], mode: Mode) -> bool:
    """Grade what is no class, and tell whether all of it passed."""
    _say_where_bands_are_missing(request.base, folders)
    seed = secrets.randbits(SEED_BITS) if request.heldout_seed is None else request.heldout_seed
    verdicts = _in_order(_each_as_it_ends(_grade(request, folders, request.setup(mode, seed)), len(folders)))
    _report(verdicts, [], request.out)
    return all(verdict.passed for verdict in verdicts)


def _grade_submitted(request: _Request, mode: Mode, url: str, options: dict[str, Any], share: float) -> bool:
    """Grade the class, hand the results back, and tell whether everything was graded and entered.

    `options` are kept for a later `regrade`; of the notebooks a `share` is audited.
    """
    folders = _class(request.course, request.exercises)
    _say_where_bands_are_missing(request.base, folders)
    with Ledger(request.out / "ledger.db", request.heldout_seed) as ledger:
        term = Term(request.course, ledger)
        write_gradebook([], url)  # fail early if it cannot be opened
        term.history.remember(options)
        setup = request.setup(mode, ledger.heldout_seed, term.again)
        grading = term.adjusted(_grade(request, folders, setup, ledger))
        graded = _each_as_it_ends(
            grading, len(folders), partial(_hand_back, course=request.course, out=request.out, url=url)
        )
        verdicts = _in_order(graded)
        _report(verdicts, graded, request.out, term.names)
        _say_what_changed(term.publish(verdicts, request.out), request.out)
        entered = _into_gradebook(verdicts, url)
        if share:
            _audit(request, draw_sample(folders, share, setup.heldout_seed), setup, ledger, graded)
    missed = left_out(request.course / "submitted")
    for what in missed:
        say("[yellow]left out[/yellow]", what)
    for what in doubtful_names(request.course / "submitted"):
        say("[yellow]check the name[/yellow]", what)
    failed = any(verdict.state == "grader failed" for verdict in verdicts)
    return entered and not missed and not failed


def _grade(
    request: _Request, folders: list[SubmissionFolder], setup: GradingSetup, ledger: Ledger | None = None
) -> Generator[Graded, None, None]:
    # The longest first: one that is begun last would run alone.
    folders = sorted(folders, key=lambda one: -len(EXERCISES[one.exercise].runs))
    return grade_class(folders, setup, ledger, min(request.workers, len(folders)), request.cluster)


def _audited_share(audit: str | None, from_run_folders: bool) -> float:
    """Return the share to audit, 0 for none. Raises `SandboxMissing` if notebooks cannot be run."""
    if audit is None:
        return 0.0
    if not from_run_folders:
        raise GraderError("--audit runs notebooks of a class that is graded with --artifacts-only: add that option")
    _mode(artifacts_only=False, no_sandbox=False)
    return share_of(audit)


def _audit(
    request: _Request, sample: list[SubmissionFolder], setup: GradingSetup, ledger: Ledger, graded: Sequence[Graded]
) -> None:
    """Run the notebooks of the sample, and report which of them make other runs than those that were graded."""
    rerun = _grade(request, sample, replace(setup, mode="sandbox"), ledger)
    audited = list(tqdm(differences(rerun, graded), total=len(sample), desc="audit", unit="submission"))
    for one in audited:
        if one.difference:
            say(
                "[yellow]audit[/yellow]",
                f"{display_name(one.student)}, {one.exercise}: {display_line(one.difference)}",
            )
    differ = sum(bool(one.difference) for one in audited)
    path = write_audit(audited, request.out)
    console.print(
        f"audited {len(sample)}, of which {differ} differ ({path}); no points were changed by it", highlight=False
    )


def _say_what_changed(lines: Sequence[str], out: Path) -> None:
    for line in lines[:FEW]:
        say("[yellow]changed[/yellow]", line)
    if lines:
        more = f"and {len(lines) - FEW} more; " if len(lines) > FEW else ""
        console.print(f"{more}all changes are in {out / 'changes.csv'} and changes.json", highlight=False)


def _in_order(graded: Sequence[Graded]) -> list[Verdict]:
    return sorted((one.verdict for one in graded), key=lambda one: (in_order(one.student), one.exercise))


def _make_folder(out: Path) -> None:
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise GraderError(f"--out {out}: no folder can be made there ({error.strerror}): name another one") from None


def _say_where_bands_are_missing(base: Base, folders: Sequence[SubmissionFolder]) -> None:
    missing = sorted({one.exercise for one in folders if ExerciseBands.load(one.exercise).of(base) is None})
    if missing:
        say(
            "[yellow]no bands[/yellow]",
            f"{', '.join(missing)}: nothing was measured on these weights of the base {base.name}, so any improvement "
            f"beyond chance counts: make bands BASE={asked_for(base)}",
        )


def _into_gradebook(verdicts: Sequence[Verdict], url: str) -> bool:
    """Whether the gradebook has them now, those of students excepted whose names it cannot have."""
    try:
        for unusable in write_gradebook(verdicts, url):
            say("[yellow]not in the gradebook[/yellow]", unusable)
    except GradebookError as problem:
        say("[red]Error[/red]", f"{problem}; then repeat the command: nothing is graded again")
        return False
    return True


def _one_folder(artifacts: Path, chosen: list[Exercise]) -> SubmissionFolder:
    if len(chosen) != 1:
        raise GraderError("--artifacts grades one exercise; name it")
    if not artifacts.is_dir():
        raise GraderError(f"--artifacts {artifacts}: no such folder: name the one with your run folders")
    return SubmissionFolder(printable(artifacts.resolve().name), chosen[0].id, artifacts)


def _class(course: Path, chosen: list[Exercise]) -> list[SubmissionFolder]:
    """The hand-ins to these exercises; if there are none, `GraderError` says where they belong."""
    submitted = course / "submitted"
    folders = [folder for folder in find(submitted) if EXERCISES[folder.exercise] in chosen]
    if not folders:
        what = "; ".join(left_out(submitted)[:3]) or "put them into submitted/<student>/<exercise>/"
        raise GraderError(f"no hand-ins to {', '.join(one.id for one in chosen)} in {submitted}: {what}")
    return folders


def _solutions(chosen: list[Exercise]) -> list[SubmissionFolder]:
    return [SubmissionFolder("solution", one.id, one.solution.parent) for one in chosen]


def _mode(artifacts_only: bool, no_sandbox: bool) -> Mode:
    """Raises `SandboxMissing` where notebooks are to be run and cannot be run safely."""
    if artifacts_only and no_sandbox:
        raise GraderError("--artifacts-only runs nothing, so there is nothing for --no-sandbox to do")
    if artifacts_only or no_sandbox:
        return "artifacts" if artifacts_only else "no sandbox"
    if problem := available():
        raise SandboxMissing(problem)
    return "sandbox"


def _mode_of_solutions(artifacts_only: bool, no_sandbox: bool) -> Mode:
    """The instructor's own code may run unprotected where there is no sandbox."""
    if artifacts_only:
        raise GraderError("--artifacts-only grades what was handed in, and there is no folder submitted/")
    return "no sandbox" if no_sandbox or available() else "sandbox"


def _each_as_it_ends(
    grading: Generator[Graded, None, None], total: int, hand_back: Callable[[Graded], None] | None = None
) -> list[Graded]:
    graded = []
    with closing(grading):  # so that what still runs ends, and its folder is gone, however this is left
        try:
            for one in tqdm(grading, total=total, desc="grading", unit="hand-in", disable=total == 1):
                if hand_back:
                    hand_back(one)
                graded.append(replace(one, notebook=None))  # it is written, and may be large
        except KeyboardInterrupt:
            say("[yellow]stopped[/yellow]", f"{len(graded)} of {total} are graded; the same command does the rest")
            raise
    return graded


def _hand_back(one: Graded, course: Path, out: Path, url: str) -> None:
    """What the instructor and the student get of one verdict, written as soon as it is there."""
    write_feedback(one.verdict, out)
    if one.verdict.state != "grader failed":  # then all stays as it is, as in the gradebook
        # A student whom the gradebook cannot have, or a gradebook that is lost meanwhile, is told at the end; then the
        # notebook stays as it is, so that the next run finds what has changed.
        with suppress(UnusableName, GradebookError):
            _bring_up_to_date(one, course, url)


def _bring_up_to_date(one: Graded, course: Path, url: str) -> None:
    """See to it that the notebook that is shown is of this hand-in; what its run put out is kept for as long."""
    where = one.verdict.student, EXERCISES[one.verdict.exercise]
    if answers_differ(*where, one.notebook, course):  # from those that were graded by hand
        ask_for_another_look(*where, url)
    if one.notebook is None:
        remove_autograded(*where, course)
    elif not (one.from_ledger and origin_of(*where, course) == one.origin):
        write_autograded(*where, one.notebook, course)


def _report(
    verdicts: Sequence[Verdict], compared: Sequence[Graded], out: Path, names: Mapping[str, str] | None = None
) -> None:
    """Everything about all verdicts, in the terminal and as files in `out`; `compared` are searched for identical ones."""
    if len(verdicts) <= FEW:
        for verdict in verdicts:
            print_verdict(verdict, console)
    else:
        print_class(verdicts, console)
    write_results(verdicts, out)
    write_grades(verdicts, out)
    solutions = {
        name: fingerprint(Submission("", name, exercise.solution.read_bytes(), {}, ()))
        for name, exercise in EXERCISES.items()
    }
    found = {(one.verdict.student, one.verdict.exercise): one.fingerprint for one in compared}
    report = write_report(verdicts, out, found, solutions, names)
    pages = f"{report.name}, feedback/" if compared else report.name
    console.print(f"results.json, grades.csv and {pages} are in {out}", highlight=False)


@app.command()
def exercises(
    exercise: Annotated[list[str] | None, typer.Argument(help="Exercises to generate (default: all).")] = None,
) -> None:
    """Generate the student notebooks from the solutions."""
    chosen = _exercises(exercise)
    with report_errors():
        for one in chosen:
            stamp(one)
            console.print(f"exercises/{one.id}/{generate(one).name}", highlight=False)


@app.command()
def bands(
    exercise: Annotated[list[str] | None, typer.Argument(help="Exercises to measure (default: all).")] = None,
    base: Annotated[str, typer.Option(help="The base to measure on.")] = "embedded",
    seeds: Annotated[int, typer.Option(min=8, help="How many reference runs.")] = 10,
    out: Annotated[Path, typer.Option(help="Where the runs go; finished ones are not repeated.")] = REFERENCE_RUNS,
) -> None:
    """Run the solutions over several seeds and store what they measure as the exercise's bands."""
    base_used, chosen = _base(base), _exercises(exercise)
    with report_errors():
        _make_folder(out)
        for one in chosen:
            _print_bands(*measure_bands(one, base_used, seeds, out))


def _print_bands(file: Path, measured: BaseBands) -> None:
    console.print(file.name, highlight=False)
    for name, band in measured.runs.items():
        ratio, exact = band.fresh_ratio, band.exact
        console.print(
            f"  {name}: ratio {ratio.low:.4f} to {ratio.high:.4f}, exact match {exact.mean:.2f} ({exact.low:.2f} to {exact.high:.2f}), "
            f"question gain {band.question_gain.mean:.2f} nats per token",
            highlight=False,
        )
