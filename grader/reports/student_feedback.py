"""Feedback to hand back: one page a student and exercise, with nothing on it but this student's own."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from ..exercises import EXERCISES
from ..text import file_name, without_folders
from ..verdict import MAX_POINTS, Check, Verdict
from .hints import Hint, hint
from .html import write_page
from .svg import loss_plot, perplexity_bars


@dataclass(frozen=True)
class Failing:
    """A check that did not pass, for the runs where it did not."""

    name: str
    hint: Hint
    checks: list[Check]

    @property
    def lost(self) -> float:
        """Points that it cost."""
        return sum(check.points - check.earned for check in self.checks)

    @property
    def points(self) -> float:
        """Points that it could have earned."""
        return sum(check.points for check in self.checks)


def feedback_path(student: str, exercise: str) -> Path:
    """Return where a student's page is, relative to the report; no student's name leads elsewhere."""
    return Path("feedback") / file_name(student) / f"{file_name(exercise)}.html"


def write_feedback(verdict: Verdict, folder: Path) -> Path:
    """Write the page of a verdict below `folder` and return its path.

    The held-out seed, held-out questions, the grader's own folders and its own errors are not on it, and numbers from
    held-out questions are coarse.
    """
    exercise = EXERCISES.get(verdict.exercise)
    return write_page(
        "student_feedback.html.j2",
        folder / feedback_path(verdict.student, verdict.exercise),
        verdict=verdict,
        title=exercise.title if exercise else verdict.exercise,
        message=without_folders(verdict.message),
        failing=_failing(verdict),
        holding=[
            (run, [c.for_students for c in verdict.checks if c.run == run and c.passed]) for run in [*verdict.runs, ""]
        ],
        losses=loss_plot({run: claim.losses for run, claim in verdict.claims.items()}),
        bars=perplexity_bars({name: float(f"{ppl:.2g}") for name, ppl in verdict.perplexities.items()}),
        max_points=MAX_POINTS,
    )


def _failing(verdict: Verdict) -> list[Failing]:
    """Return the failed checks, the most expensive first."""
    names = dict.fromkeys(check.name for check in verdict.checks if not check.passed)
    found = [
        Failing(name, hint(name), [_presentable(c) for c in verdict.checks if c.name == name and not c.passed])
        for name in names
    ]
    return sorted(found, key=lambda one: -one.lost)


def _presentable(check: Check) -> Check:
    check = check.for_students
    return check.model_copy(update={text: without_folders(getattr(check, text)) for text in ("found", "message")})
