"""Print the points of the gate."""

from __future__ import annotations

from rich.console import Console
from rich.table import Table
from rich.text import Text

from .points import Point

PAGE = 96  # columns that a notebook shows without a scroll bar
RESULTS = {True: ("pass", "green"), False: ("fail", "red"), None: ("not judged", "yellow")}


def show(points: list[Point], title: str = "", console: Console | None = None) -> None:
    """Print the points as a table, then the samples, then why each point that did not pass failed."""
    console = console or Console(markup=False, highlight=False)  # an answer may hold what looks like markup
    if console.is_jupyter:
        console.width = min(console.width, PAGE)
    table = Table(title=f"Operating gate: {title}", title_justify="left")
    for heading in ("", "point", "result", "found"):
        table.add_column(heading, overflow="fold")
    for number, point in enumerate(points, start=1):
        word, style = RESULTS[point.passed]
        table.add_row(str(number), point.name, Text(word, style), point.found)
    console.print(table)
    for point in points:
        if point.details:
            console.print(f"\n{point.details}\n")
    for point in points:
        if not point.passed:
            console.print(Text(point.name, RESULTS[point.passed][1]) + f": {point.advice}")
    passed = sum(point.passed is True for point in points)
    console.print(f"{passed} of {len(points)} points passed")
