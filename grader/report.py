"""Showing verdicts: tables in the terminal, results.json, grades.csv and a self-contained report.html."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from markupsafe import Markup
from rich.console import Console
from rich.table import Table
from rich.text import Text

from loralab.files import write_whole

from . import foreign, similarity
from .checks import EXACT, HELD_OUT, Check
from .evaluate import Evidence
from .exercises import EXERCISES
from .feedback import feedback_path
from .pages import link, write_page
from .pictures import Bar, LossPlot, histogram, loss_plot, perplexity_bars
from .similarity import Fingerprint
from .summary import STATES, Reason, Summary, by_exercise, in_order
from .verdict import MAX_POINTS, State, Verdict

FEW = 10  # verdicts, each of which then has a section of its own on the report
STYLES: dict[State, str] = {"graded": "green", "submission failed": "red", "grader failed": "magenta"}


def print_verdict(verdict: Verdict, console: Console | None = None) -> None:
    """One verdict as a table: check, expected, found, points, pass; below it every reason for a failure."""
    console = console or Console()
    title = Text(
        f"{verdict.exercise}: {foreign.name(verdict.student)} on the {foreign.name(verdict.base)} base", style="bold"
    )
    if verdict.state != "graded":
        console.print(title)
        _print_reason(console, verdict.state, verdict.message)
        _print_adjustment(console, verdict)
        return
    console.print(_one_run(verdict, title) if len(verdict.runs) <= 1 else _many_runs(verdict, title))
    for check in verdict.checks:
        if check.name in (EXACT, HELD_OUT) and len(verdict.runs) > 1:
            console.print(Text(foreign.shown(f"{check.run}: {check.found}")))
    if verdict.message:
        _print_reason(console, "the notebook did not run to its end", verdict.message)
    for check in verdict.checks:
        if not check.passed:
            _print_reason(console, _named(check), check.message)
    console.print(
        f"{verdict.points:g} of {MAX_POINTS} points, {'passed' if verdict.passed else 'not passed'}", highlight=False
    )
    _print_adjustment(console, verdict)


def print_class(verdicts: Sequence[Verdict], console: Console | None = None) -> None:
    """A class as one table, an exercise a row; below it every hand-in that the grader failed at."""
    console = console or Console()
    students = len({verdict.student for verdict in verdicts})
    table = Table(title=f"{len(verdicts)} hand-ins of {students} students", title_justify="left", title_style="bold")
    table.add_column("exercise")
    for heading in (*STATES, "passed", "mean", "median"):
        table.add_column(heading, justify="right")
    summaries = by_exercise(verdicts)
    total = Summary("all", tuple(verdicts))
    for summary in [*summaries, total] if len(summaries) > 1 else summaries:
        counts = [Text(f"{n}", style=STYLES[state] if n else "dim") for state, n in summary.counts.items()]
        middle = ["" if value is None else f"{value:.1f}" for value in (summary.mean, summary.median)]
        table.add_row(
            Text(foreign.name(summary.exercise)),
            *counts,
            f"{summary.passed}",
            *middle,
            end_section=summary is summaries[-1],
        )
    console.print(table)
    console.print("Points are of those graded.", style="dim", highlight=False)
    if adjusted := sum(bool(verdict.adjustments) for verdict in verdicts):
        console.print(
            f"{adjusted} have adjusted points (late, or set by hand); report.html lists the reasons.", highlight=False
        )
    broken = total.of_state("grader failed")
    for verdict in broken[:FEW]:
        _print_reason(console, f"grader failed: {foreign.name(verdict.student)}, {verdict.exercise}", verdict.message)
    if len(broken) > FEW:
        console.print(f"and {len(broken) - FEW} more that the grader failed at, in report.html", highlight=False)


def _print_adjustment(console: Console, verdict: Verdict) -> None:
    if verdict.adjustments:
        reasons = foreign.shown(verdict.reasons)
        console.print(Text(f"{verdict.final_points:g} of {MAX_POINTS} points count ({reasons})"), soft_wrap=True)


def _print_reason(console: Console, what: str, message: str) -> None:
    console.print(Text.assemble((foreign.shown(what), "red"), ": ", foreign.shown(message)))


def _one_run(verdict: Verdict, title: Text) -> Table:
    """What was expected and what was found, a check a row."""
    table = Table(title=title, title_justify="left")
    for heading in ("check", "expected", "found", "points", "pass"):
        table.add_column(heading, justify="right" if heading == "points" else "left", overflow="fold")
    for check in verdict.checks:
        texts = (Text(foreign.shown(text)) for text in (check.name, check.expected, check.found))
        table.add_row(*texts, f"{check.earned:g}/{check.points:g}", _mark(check))
    return table


def _many_runs(verdict: Verdict, title: Text) -> Table:
    """Which check passed for which run, a check a row and a run a column."""
    table = Table(title=title, title_justify="left")
    table.add_column("check")
    for run in verdict.runs:
        table.add_column(Text(foreign.name(run)), justify="center")
    table.add_column("points", justify="right")
    for name in dict.fromkeys(check.name for check in verdict.checks):
        same = {check.run: check for check in verdict.checks if check.name == name}
        marks = [_mark(same[run]) if run in same else "" for run in verdict.runs]
        if "" in same:  # a check of the whole exercise
            marks = [_mark(same[""]), *[""] * (len(marks) - 1)]
        earned, points = (sum(getattr(check, what) for check in same.values()) for what in ("earned", "points"))
        table.add_row(Text(name), *marks, f"{earned:.4g}/{points:.4g}")
    return table


def _mark(check: Check) -> str:
    return "[green]yes[/green]" if check.passed else "[red]no[/red]"


def _named(check: Check) -> str:
    return f"{check.run}: {check.name}" if check.run else check.name


def write_results(verdicts: Sequence[Verdict], folder: Path) -> None:
    """Every verdict as JSON, with all checks and the run's own record; the held-out seed is in the ledger alone.

    NaN and infinity are written as Python's json does, a name that is no UTF-8 with \\u escapes: both can be read back.
    """
    unfinished = folder / "results.json.part"  # verdict by verdict, since all at once may be much
    with unfinished.open("w", encoding="ascii") as file:
        for i, verdict in enumerate(verdicts):
            file.write("[\n" if i == 0 else ",\n")
            file.write(json.dumps(verdict.published(), indent=1))
        file.write("\n]\n" if verdicts else "[]\n")
    unfinished.replace(folder / "results.json")


def write_grades(verdicts: Sequence[Verdict], folder: Path) -> None:
    """One row a student and exercise; a text that a spreadsheet would run as a formula is marked as text.

    What the grader failed at has neither points nor a pass or fail. If anything was adjusted (late, by hand), two more
    columns have the points that count and why.
    """
    adjusted = any(verdict.adjustments for verdict in verdicts)
    rows = io.StringIO(newline="")
    writer = csv.writer(rows, quoting=csv.QUOTE_NONNUMERIC)
    writer.writerow(
        ["student", "exercise", "state", "points", "max_points", "passed", "message"]
        + ["final_points", "adjustment"] * adjusted
    )
    for verdict in verdicts:
        texts = map(foreign.in_spreadsheet, (verdict.student, verdict.exercise, verdict.state))
        scored = ("", MAX_POINTS, "") if verdict.points is None else (verdict.points, MAX_POINTS, str(verdict.passed))
        counts = "" if verdict.final_points is None else verdict.final_points
        more = [counts, foreign.in_spreadsheet(verdict.reasons)] * adjusted
        writer.writerow([*texts, *scored, foreign.in_spreadsheet(_reasons(verdict)), *more])
    write_whole(folder / "grades.csv", "\ufeff" + rows.getvalue())  # the mark by which a spreadsheet knows UTF-8


def _reasons(verdict: Verdict) -> str:
    failed = [f"{_named(check)}: {check.message}" for check in verdict.checks if not check.passed]
    return "; ".join([verdict.message, *failed] if verdict.message else failed)


@dataclass(frozen=True)
class _Cell:
    """A verdict in the overview, and where more is said of it ("" where nothing is)."""

    verdict: Verdict
    href: str


@dataclass(frozen=True)
class _Part:
    """What the report shows of one exercise of a class."""

    summary: Summary
    picture: Markup
    reasons: list[Reason]


@dataclass(frozen=True)
class _Section:
    """What the report shows of one verdict where there are few."""

    verdict: Verdict
    anchor: str
    losses: LossPlot
    bars: list[Bar]


def write_report(
    verdicts: Sequence[Verdict],
    folder: Path,
    fingerprints: Mapping[tuple[str, str], Fingerprint] | None = None,
    reference: Mapping[str, Fingerprint] | None = None,
    names: Mapping[str, str] | None = None,
) -> Path:
    """The report: one page with no outside files, which links to the feedback that is already in `folder`.

    `fingerprints` (by student and exercise) and `reference` (the solutions' own, by exercise) tell identical hand-ins.
    `names` are shown beside the students' ids, where they are known.
    """
    few = len(verdicts) <= FEW
    verdicts = sorted(verdicts, key=lambda verdict: (in_order(verdict.student), verdict.exercise))
    cells = {
        (v.student, v.exercise): _Cell(v, _href(v, f"#s{i}" if few else "", folder)) for i, v in enumerate(verdicts)
    }
    summaries = by_exercise(verdicts)
    return write_page(
        "report.html.j2",
        folder / "report.html",
        total=Summary("", tuple(verdicts)),
        summaries=summaries,
        titles={exercise.id: exercise.title for exercise in EXERCISES.values()},
        students=list(dict.fromkeys(verdict.student for verdict in verdicts)),
        cells=cells,
        names=names or {},
        adjusted=[verdict for verdict in verdicts if verdict.adjustments],
        parts=[] if few else [_part(summary) for summary in summaries],
        sections=[_section(verdict, f"s{i}") for i, verdict in enumerate(verdicts)] if few else [],
        groups=similarity.groups(fingerprints or {}, reference),
        compared=len(fingerprints or {}),
        max_points=MAX_POINTS,
    )


def _href(verdict: Verdict, anchor: str, folder: Path) -> str:
    path = feedback_path(verdict.student, verdict.exercise)
    return anchor or (link(path) if (folder / path).exists() else "")


def _part(summary: Summary) -> _Part:
    counts = summary.counts
    return _Part(summary, histogram(summary.points, counts["submission failed"], MAX_POINTS), summary.reasons())


def _section(verdict: Verdict, anchor: str) -> _Section:
    losses = loss_plot({run: claim.losses for run, claim in verdict.claims.items()})
    return _Section(verdict, anchor, losses, perplexity_bars(verdict.perplexities))


def perplexities(evidence: dict[str, Evidence]) -> dict[str, float]:
    """The perplexities of the report's bar plot, by label: all kinds of pairs for one run, fresh pairs for several."""
    if len(evidence) > 1:
        named = {name: one.fresh for name, one in evidence.items()}
    else:
        (one,) = evidence.values()
        named = {"fresh questions": one.fresh, "eval.jsonl": one.public, "general.jsonl": one.general}
    return {
        f"{name}, {when}": getattr(measured, when).ppl
        for name, measured in named.items()
        for when in ("before", "after")
    }
