"""The grader's command line: `python -m grader --help`, or `make grade` and `make bands`."""

from __future__ import annotations

import hashlib
import os
import secrets
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import closing, nullcontext, suppress
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Annotated

os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import typer
from tqdm.auto import tqdm

from loralab import PROFILES, Base, choose_base
from loralab.cluster import fingerprint as code_and_data
from loralab.record import hardware, now, versions

from . import foreign
from .adapter import Refused
from .autograded import answers_differ, origin_of, remove_autograded, write_autograded
from .bands import Band, BaseBands, ExerciseBands, RunBands
from .evaluate import Evaluator, Evidence
from .execute import NotebookFailed, execute
from .exercises import EXERCISES, ROOT, Exercise
from .feedback import write_feedback
from .gradebook import GradebookError, UnusableName, ask_for_another_look, default_url, write_gradebook
from .identity import asked_for, weights_of
from .intake import HandIn, Place, find, left_out, printable
from .judging import Graded, Mode, Setting, fingerprint, grade_class
from .ledger import Ledger, LedgerError
from .release import generate
from .report import FEW, print_class, print_verdict, write_grades, write_report, write_results
from .sandbox import SandboxMissing, available
from .summary import in_order
from .term import commands
from .term.audit import Audited, differences, draw_sample, share_of, write_audit
from .term.term import Term
from .term.terminal import console
from .term.terminal import report_errors as _told
from .term.terminal import say as _say
from .verdict import Verdict
from .watch import GIB, Limits

app = typer.Typer(
    help="Grade exercises from the adapters that they save.", no_args_is_help=True, pretty_exceptions_enable=False
)
BUILD = Path("build")
app.command()(commands.collect)
app.command()(commands.export)
app.command()(commands.regrade)


def _exercises(names: list[str] | None) -> list[Exercise]:
    unknown = set(names or ()) - EXERCISES.keys()
    if unknown:
        raise typer.BadParameter(f"no exercise {sorted(unknown)[0]!r}; there are: {', '.join(EXERCISES)}")
    return [EXERCISES[name] for name in names or EXERCISES]


def _base(name: str) -> Base:
    try:  # a folder by its whole path: it has a name then, wherever it is asked for
        base = choose_base(name if name in PROFILES or not Path(name).is_dir() else str(Path(name).resolve()))
        weights_of(base)
    except ValueError as error:
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
            min=0, max=2**31 - 1, help="Draws the held-out pairs (default: a secret one, kept in the ledger)."
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
    chosen = _exercises(exercise)
    limits = Limits(wall=60 * minutes, memory=round(memory * GIB))
    base_used = _base(base)
    results = "grade" if artifacts is None else "artifacts"  # one folder's verdict is no class's
    out = out or commands.results_folder(course, results)
    a_class = artifacts is None and ((course / "submitted").exists() or course != ROOT)
    url = gradebook or default_url(course)
    with _told(GradebookError, LedgerError, SandboxMissing, ValueError):
        share = _share(audit, artifacts_only and a_class)
        _make_folder(out)
        if artifacts is not None:
            places, mode = [_one_folder(artifacts, chosen)], "artifacts"
        elif a_class:
            places, mode = _class(course, chosen), _mode(artifacts_only, no_sandbox)
        else:
            places, mode = _solutions(chosen), _mode_of_solutions(artifacts_only, no_sandbox)
        places.sort(key=lambda place: -len(EXERCISES[place.exercise].runs))  # a long one begun last would run alone
        _say_where_bands_are_missing(base_used, places)
        with Ledger(out / "ledger.db", heldout_seed) if a_class else nullcontext() as ledger:
            term = Term(course, ledger) if ledger else None
            if a_class:
                write_gradebook([], url)  # one that cannot be opened is told before the hours that grading takes
            fresh = secrets.randbelow(2**31) if heldout_seed is None else heldout_seed
            again = term.again if term else {}
            setting = Setting(base_used, ledger.heldout_seed if ledger else fresh, mode, seed, limits, again)
            grading = grade_class(places, setting, ledger, min(workers, len(places)), cluster)
            if term:
                term.history.remember(
                    {
                        "exercise": exercise, "artifacts_only": artifacts_only, "no_sandbox": no_sandbox, "base": base,
                        "seed": seed, "minutes": minutes, "memory": memory, "workers": workers, "gradebook": gradebook,
                    }
                )  # fmt: skip
                grading = term.adjusted(grading)
            hand_back = partial(_hand_back, course=course, out=out, url=url) if a_class else None
            graded = _each_as_it_ends(grading, len(places), hand_back)
            verdicts = sorted((one.verdict for one in graded), key=lambda one: (in_order(one.student), one.exercise))
            _report(verdicts, graded if a_class else [], out, term.names if term else {})
            if term:
                _say_what_changed(term.publish(verdicts, out), out)
            entered = a_class and _into_gradebook(verdicts, url)
            if share:
                audited = draw_sample(places, share, setting.heldout_seed)
                run_again = replace(setting, mode="sandbox")
                rerun = grade_class(audited, run_again, ledger, min(workers, len(audited)), cluster)
                _say_what_differs(differences(rerun, graded), len(audited), out)
    if not a_class:
        raise typer.Exit(0 if all(verdict.passed for verdict in verdicts) else 1)
    missed = left_out(course / "submitted")
    for what in missed:
        _say("[yellow]left out[/yellow]", what)
    failed = any(verdict.state == "grader failed" for verdict in verdicts)
    raise typer.Exit(0 if entered and not missed and not failed else 1)


def _share(audit: str | None, from_artifacts: bool) -> float:
    """The share to audit, 0 for none. Raises `SandboxMissing` if notebooks cannot be run."""
    if audit is None:
        return 0.0
    if not from_artifacts:
        raise ValueError("--audit runs notebooks of a class that is graded with --artifacts-only: add that option")
    _mode(artifacts_only=False, no_sandbox=False)
    return share_of(audit)


def _say_what_changed(lines: Sequence[str], out: Path) -> None:
    for line in lines[:FEW]:
        _say("[yellow]changed[/yellow]", line)
    if lines:
        more = f"and {len(lines) - FEW} more; " if len(lines) > FEW else ""
        console.print(f"{more}all changes are in {out / 'changes.csv'} and changes.json", highlight=False)


def _say_what_differs(audit: Generator[Audited, None, None], total: int, out: Path) -> None:
    found = list(tqdm(audit, total=total, desc="audit", unit="submission"))
    for one in found:
        if one.difference:
            _say(
                "[yellow]audit[/yellow]",
                f"{foreign.name(one.student)}, {one.exercise}: {foreign.line(one.difference)}",
            )
    differ = sum(bool(one.difference) for one in found)
    path = write_audit(found, out)
    console.print(f"audited {total}, of which {differ} differ ({path}); no points were changed by it", highlight=False)


def _make_folder(out: Path) -> None:
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ValueError(f"--out {out}: no folder can be made there ({error.strerror}): name another one") from None


def _say_where_bands_are_missing(base: Base, places: Sequence[Place]) -> None:
    missing = sorted({place.exercise for place in places if ExerciseBands.load(place.exercise).of(base) is None})
    if missing:
        _say(
            "[yellow]no bands[/yellow]",
            f"{', '.join(missing)}: nothing was measured on these weights of the base {base.name}, so any improvement "
            f"beyond chance counts: make bands BASE={asked_for(base)}",
        )


def _into_gradebook(verdicts: Sequence[Verdict], url: str) -> bool:
    """Whether the gradebook has them now, those of students excepted whose names it cannot have."""
    try:
        for unusable in write_gradebook(verdicts, url):
            _say("[yellow]not in the gradebook[/yellow]", unusable)
    except GradebookError as problem:
        _say("[red]Error[/red]", f"{problem}; then repeat the command: nothing is graded again")
        return False
    return True


def _one_folder(artifacts: Path, chosen: list[Exercise]) -> Place:
    if len(chosen) != 1:
        raise ValueError("--artifacts grades one exercise; name it")
    if not artifacts.is_dir():
        raise ValueError(f"--artifacts {artifacts}: no such folder: name the one with your run folders")
    return Place(printable(artifacts.resolve().name), chosen[0].id, artifacts)


def _class(course: Path, chosen: list[Exercise]) -> list[Place]:
    """The hand-ins to these exercises; if there are none, `ValueError` says where they belong."""
    submitted = course / "submitted"
    places = [place for place in find(submitted) if EXERCISES[place.exercise] in chosen]
    if not places:
        what = "; ".join(left_out(submitted)[:3]) or "put them into submitted/<student>/<exercise>/"
        raise ValueError(f"no hand-ins to {', '.join(one.id for one in chosen)} in {submitted}: {what}")
    return places


def _solutions(chosen: list[Exercise]) -> list[Place]:
    return [Place("solution", one.id, one.solution.parent) for one in chosen]


def _mode(artifacts_only: bool, no_sandbox: bool) -> Mode:
    """Raises `SandboxMissing` where notebooks are to be run and cannot be run safely."""
    if artifacts_only and no_sandbox:
        raise ValueError("--artifacts-only runs nothing, so there is nothing for --no-sandbox to do")
    if artifacts_only or no_sandbox:
        return "artifacts" if artifacts_only else "no sandbox"
    if problem := available():
        raise SandboxMissing(problem)
    return "sandbox"


def _mode_of_solutions(artifacts_only: bool, no_sandbox: bool) -> Mode:
    """The instructor's own code may run unprotected where there is no sandbox."""
    if artifacts_only:
        raise ValueError("--artifacts-only grades what was handed in, and there is no folder submitted/")
    return "no sandbox" if no_sandbox or available() else "sandbox"


def _each_as_it_ends(
    grading: Generator[Graded, None, None], total: int, hand_back: Callable[[Graded], None] | None
) -> list[Graded]:
    graded = []
    with closing(grading):  # so that what still runs ends, and its folder is gone, however this is left
        try:
            for one in tqdm(grading, total=total, desc="grading", unit="hand-in", disable=total == 1):
                if hand_back:
                    hand_back(one)
                graded.append(replace(one, notebook=None))  # it is written, and may be large
        except KeyboardInterrupt:
            _say("[yellow]stopped[/yellow]", f"{len(graded)} of {total} are graded; the same command does the rest")
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


def _report(verdicts: Sequence[Verdict], compared: Sequence[Graded], out: Path, names: Mapping[str, str]) -> None:
    """Everything about all verdicts, in the terminal and as files in `out`; `compared` are searched for identical ones."""
    if len(verdicts) <= FEW:
        for verdict in verdicts:
            print_verdict(verdict, console)
    else:
        print_class(verdicts, console)
    write_results(verdicts, out)
    write_grades(verdicts, out)
    solutions = {
        name: fingerprint(HandIn("", name, exercise.solution.read_bytes(), {}, ()))
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
    with _told(RuntimeError):
        for one in chosen:
            console.print(f"exercises/{one.id}/{generate(one).name}", highlight=False)


@app.command()
def bands(
    exercise: Annotated[list[str] | None, typer.Argument(help="Exercises to measure (default: all).")] = None,
    base: Annotated[str, typer.Option(help="The base to measure on.")] = "embedded",
    seeds: Annotated[int, typer.Option(min=8, help="How many reference runs.")] = 10,
    out: Annotated[Path, typer.Option(help="Where the runs go; finished ones are not repeated.")] = BUILD / "bands",
) -> None:
    """Run the solutions over several seeds and store what they measure as the exercise's bands."""
    base_used, chosen = _base(base), _exercises(exercise)
    with _told(NotebookFailed, Refused, OSError):
        for one in chosen:
            _measure(one, base_used, seeds, out)


def _measure(one: Exercise, base: Base, seeds: int, out: Path) -> None:
    evidence, made_from = [], _made_from(base, one)
    for seed in tqdm(range(1, seeds + 1), desc=f"bands of {one.id}", unit="run"):
        folder = (out / base.name / one.id / made_from / f"seed-{seed}").resolve()
        if not all((folder / "runs" / run.name / "run.json").exists() for run in one.runs):
            execute(one.solution, folder, asked_for(base), seed, progress=False)
        evaluator = Evaluator(base, seed)
        evidence.append({run.name: evaluator.evaluate(run, folder / "runs" / run.name) for run in one.runs})
    stored = ExerciseBands.load(one.id)
    measured = stored.bases[asked_for(base)] = _measured(base, evidence, seeds)
    console.print(stored.save(one.id).name, highlight=False)
    for name, band in measured.runs.items():
        ratio, exact = band.fresh_ratio, band.exact
        console.print(
            f"  {name}: ratio {ratio.low:.4f} to {ratio.high:.4f}, exact match {exact.mean:.2f} ({exact.low:.2f} to {exact.high:.2f}), "
            f"question gain {band.question_gain.mean:.2f} nats per token",
            highlight=False,
        )


def _measured(base: Base, evidence: list[dict[str, Evidence]], seeds: int) -> BaseBands:
    runs = {
        name: RunBands(
            fresh_ratio=Band.of([round(one[name].fresh.ratio, 5) for one in evidence]),
            general_ratio=Band.of([round(one[name].general.ratio, 5) for one in evidence]),
            exact=Band.shares([one[name].scores.exact_match.value for one in evidence]),
            question_gain=Band.linear([round(one[name].control.gain, 5) for one in evidence]),
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
    """What reference runs hang on: runs of another base, solution, code, data or versions are not taken for these."""
    told = weights_of(base) + code_and_data("loralab.training")
    return hashlib.sha256(told.encode() + exercise.solution.read_bytes()).hexdigest()[:8]
