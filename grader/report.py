"""Showing verdicts: a table in the terminal, results.json, grades.csv and a self-contained report.html."""

from __future__ import annotations

import base64
import csv
import io
from collections.abc import Sequence
from pathlib import Path

import matplotlib

matplotlib.use("Agg")

import matplotlib.pyplot as plt
from jinja2 import Environment, FileSystemLoader, select_autoescape
from pydantic import TypeAdapter
from rich.console import Console
from rich.table import Table

from loralab import plot_loss, plot_ppl
from loralab.plots import COLOURS

from .checks import HELD_OUT, Check
from .evaluate import Evidence
from .verdict import Verdict

MAX_POINTS = 100
FORMULA_STARTS = ("=", "+", "-", "@", "\t", "\r")
TEMPLATES = Environment(loader=FileSystemLoader(Path(__file__).parent), autoescape=select_autoescape(default=True))


def print_verdict(verdict: Verdict, console: Console | None = None) -> None:
    """One verdict as a table: check, expected, found, points, pass; below it every reason for a failure."""
    console = console or Console()
    title = f"{verdict.exercise}: {verdict.student} on the {verdict.base} base"
    if verdict.state != "graded":
        console.print(f"[bold]{title}[/bold]\n[red]{verdict.state}[/red]: {verdict.message}", highlight=False)
        return
    console.print(_one_run(verdict, title) if len(verdict.runs) <= 1 else _many_runs(verdict, title))
    for check in verdict.checks:
        if check.name == HELD_OUT and len(verdict.runs) > 1:
            console.print(f"{check.run}: {check.found}", highlight=False)
    for check in verdict.checks:
        if not check.passed:
            console.print(f"[red]{_named(check)}[/red]: {check.message}", highlight=False)
    console.print(
        f"{verdict.points:g} of {MAX_POINTS} points, {'passed' if verdict.passed else 'not passed'}", highlight=False
    )


def _one_run(verdict: Verdict, title: str) -> Table:
    """What was expected and what was found, a check a row."""
    table = Table(title=title, title_justify="left", title_style="bold")
    for heading in ("check", "expected", "found", "points", "pass"):
        table.add_column(heading, justify="right" if heading == "points" else "left", overflow="fold")
    for check in verdict.checks:
        table.add_row(check.name, check.expected, check.found, f"{check.earned:g}/{check.points:g}", _mark(check))
    return table


def _many_runs(verdict: Verdict, title: str) -> Table:
    """Which check passed for which run, a check a row and a run a column."""
    table = Table(title=title, title_justify="left", title_style="bold")
    table.add_column("check")
    for run in verdict.runs:
        table.add_column(run, justify="center")
    table.add_column("points", justify="right")
    for name in dict.fromkeys(check.name for check in verdict.checks):
        same = {check.run: check for check in verdict.checks if check.name == name}
        marks = [_mark(same[run]) if run in same else "" for run in verdict.runs]
        if "" in same:  # a check of the whole exercise
            marks = [_mark(same[""]), *[""] * (len(marks) - 1)]
        earned, points = (sum(getattr(check, what) for check in same.values()) for what in ("earned", "points"))
        table.add_row(name, *marks, f"{earned:.4g}/{points:.4g}")
    return table


def _mark(check: Check) -> str:
    return "[green]yes[/green]" if check.passed else "[red]no[/red]"


def _named(check: Check) -> str:
    return f"{check.run}: {check.name}" if check.run else check.name


def write_results(verdicts: Sequence[Verdict], folder: Path) -> None:
    """Every verdict as JSON, with all checks and the run's own record."""
    (folder / "results.json").write_bytes(TypeAdapter(list[Verdict]).dump_json(list(verdicts), indent=1) + b"\n")


def write_grades(verdicts: Sequence[Verdict], folder: Path) -> None:
    """One line a student and exercise; a text that a spreadsheet would run as a formula is quoted as text."""
    with (folder / "grades.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, quoting=csv.QUOTE_NONNUMERIC)
        writer.writerow(["student", "exercise", "state", "points", "max_points", "passed", "message"])
        for verdict in verdicts:
            texts = (verdict.student, verdict.exercise, verdict.state)
            points = "" if verdict.points is None else verdict.points
            row = [*map(_as_text, texts), points, MAX_POINTS, str(verdict.passed), _as_text(_reasons(verdict))]
            writer.writerow(row)


def write_report(verdicts: Sequence[Verdict], folder: Path) -> Path:
    """The report: one page with no outside files."""
    sections = [(verdict, _figures(verdict)) for verdict in verdicts]
    page = TEMPLATES.get_template("report.html.j2").render(sections=sections, max_points=MAX_POINTS)
    path = folder / "report.html"
    path.write_text(page, "utf-8")
    return path


def _reasons(verdict: Verdict) -> str:
    return verdict.message or "; ".join(f"{_named(c)}: {c.message}" for c in verdict.checks if not c.passed)


def _as_text(value: str) -> str:
    return f"'{value}" if value.startswith(FORMULA_STARTS) else value


def _figures(verdict: Verdict) -> list[tuple[str, str]]:
    """(alternative text, image as data URI) for each plot of a verdict."""
    if verdict.state != "graded":
        return []
    figures = []
    if learned := [claim for claim in verdict.claims.values() if claim.losses]:
        plot_loss(learned)
        alt = "Training loss: " + ", ".join(
            f"{one.name} {one.losses[0]:.2f} to {one.losses[-1]:.2f}" for one in learned
        )
        figures.append((alt, _data_uri()))
    if verdict.perplexities:
        axes = plot_ppl(verdict.perplexities, colours=(COLOURS[-1], COLOURS[0]))
        axes.set_title("Perplexity, recomputed by the grader")
        alt = "Perplexities: " + ", ".join(f"{name} {value:.2f}" for name, value in verdict.perplexities.items())
        figures.append((alt, _data_uri()))
    return figures


def _data_uri() -> str:
    buffer = io.BytesIO()
    plt.gcf().savefig(buffer, format="png", dpi=144, facecolor="white")
    plt.close()
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()


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
