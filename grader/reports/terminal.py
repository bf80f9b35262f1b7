"""Verdicts as tables in the terminal."""

from __future__ import annotations

from collections.abc import Sequence

from rich.console import Console
from rich.table import Table
from rich.text import Text

from ..text import display, display_name
from ..verdict import EXACT, HELD_OUT, MAX_POINTS, Check, State, Verdict
from .class_report import FEW
from .class_stats import STATES, Summary, by_exercise

MARKS = {"yes": "green", "partly": "yellow", "no": "red"}
STYLES: dict[State, str] = {"graded": "green", "submission failed": "red", "grader failed": "magenta"}


def print_verdict(verdict: Verdict, console: Console) -> None:
    """Print one verdict as a table: check, expected, found, points, pass; below it the reason for each failure."""
    title = Text(
        f"{verdict.exercise}: {display_name(verdict.student)} on the {display_name(verdict.base)} base", style="bold"
    )
    if verdict.state != "graded":
        console.print(title)
        _print_version(console, verdict)
        _print_reason(console, verdict.state, verdict.message)
        _print_adjustment(console, verdict)
        return
    console.print(_one_run(verdict, title) if len(verdict.runs) <= 1 else _many_runs(verdict, title))
    for check in verdict.checks:
        if check.name in (EXACT, HELD_OUT) and len(verdict.runs) > 1:
            console.print(Text(display(f"{check.run}: {check.found}")))
    _print_version(console, verdict)
    if verdict.message:
        _print_reason(console, "the notebook stopped early", verdict.message)
    for check in verdict.checks:
        if not check.passed:
            _print_reason(console, check.label, check.reason)
    console.print(f"{verdict.points:g} of {MAX_POINTS} points, {'passed' if verdict.passed else 'not passed'}")
    _print_adjustment(console, verdict)


def print_class(verdicts: Sequence[Verdict], console: Console) -> None:
    """Print a class as one table, one exercise per row; below it every submission that the grader failed on."""
    students = len({verdict.student for verdict in verdicts})
    table = Table(title=f"{len(verdicts)} submissions of {students} students", title_justify="left", title_style="bold")
    table.add_column("exercise")
    for heading in (*STATES, "passed", "mean", "median"):
        table.add_column(heading, justify="right")
    summaries = by_exercise(verdicts)
    total = Summary("all", tuple(verdicts))
    for summary in [*summaries, total] if len(summaries) > 1 else summaries:
        counts = [Text(f"{n}", style=STYLES[state] if n else "dim") for state, n in summary.counts.items()]
        middle = ["" if value is None else f"{value:.1f}" for value in (summary.mean, summary.median)]
        table.add_row(
            Text(display_name(summary.exercise)),
            *counts,
            f"{summary.passed}",
            *middle,
            end_section=summary is summaries[-1],
        )
    console.print(table)
    console.print("Points are of those graded.", style="dim")
    if adjusted := sum(bool(verdict.adjustments) for verdict in verdicts):
        console.print(f"{adjusted} have adjusted points (late, or set by hand); report.html lists the reasons.")
    for what, those, others in (
        ("another version", total.of_other_versions, "made from other versions"),
        ("grader failed", total.of_state("grader failed"), "that the grader failed at"),
    ):
        for verdict in those[:FEW]:
            why = verdict.message if what == "grader failed" else verdict.other_version
            _print_reason(console, f"{what}: {display_name(verdict.student)}, {verdict.exercise}", why)
        if len(those) > FEW:
            console.print(f"and {len(those) - FEW} more {others}, in report.html")


def _print_adjustment(console: Console, verdict: Verdict) -> None:
    if verdict.adjustments:
        reasons = display(verdict.reasons)
        console.print(Text(f"{verdict.final_points:g} of {MAX_POINTS} points count ({reasons})"), soft_wrap=True)


def _print_version(console: Console, verdict: Verdict) -> None:
    if verdict.other_version:
        _print_reason(console, "another version", verdict.other_version)


def _print_reason(console: Console, what: str, message: str) -> None:
    console.print(Text.assemble((display(what), "red"), ": ", display(message)))


def _one_run(verdict: Verdict, title: Text) -> Table:
    """Return a table of expected and found values, one check per row."""
    table = Table(title=title, title_justify="left")
    for heading in ("check", "expected", "found", "points", "pass"):
        table.add_column(heading, justify="right" if heading == "points" else "left", overflow="fold")
    for check in verdict.checks:
        texts = (Text(display(text)) for text in (check.name, check.expected, check.found))
        table.add_row(*texts, f"{check.earned:.3g}/{check.points:.3g}", _mark(check))
    return table


def _many_runs(verdict: Verdict, title: Text) -> Table:
    """Return a table of outcomes, one check per row and one run per column."""
    table = Table(title=title, title_justify="left")
    table.add_column("check")
    for run in verdict.runs:
        table.add_column(Text(display_name(run)), justify="center")
    table.add_column("points", justify="right")
    for name in dict.fromkeys(check.name for check in verdict.checks):
        same = {check.run: check for check in verdict.checks if check.name == name}
        marks = [_mark(same[run]) if run in same else Text() for run in verdict.runs]
        if "" in same:  # a check of the whole exercise
            marks = [_mark(same[""]), *[Text()] * (len(marks) - 1)]
        earned, points = (sum(getattr(check, what) for check in same.values()) for what in ("earned", "points"))
        table.add_row(Text(name), *marks, f"{earned:.4g}/{points:.4g}")
    return table


def _mark(check: Check) -> Text:
    return Text(check.outcome, MARKS[check.outcome])
