"""The report on a class, or on few verdicts: one self-contained page."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote

from ..exercises import EXERCISES
from ..submission import similarity
from ..submission.similarity import Fingerprint
from ..verdict import MAX_POINTS, Verdict
from .alike import alike
from .class_stats import Summary, by_exercise, in_order
from .html import write_page
from .student_feedback import feedback_path
from .svg import histogram, loss_plot, perplexity_bars

FEW = 10  # verdicts, each of which then has a section of its own on the report


@dataclass(frozen=True)
class _Cell:
    """A verdict in the overview, and where more is said of it ("" where nothing is)."""

    verdict: Verdict
    href: str


def write_report(
    verdicts: Sequence[Verdict],
    folder: Path,
    fingerprints: Mapping[tuple[str, str], Fingerprint] | None = None,
    reference: Mapping[str, Fingerprint] | None = None,
    names: Mapping[str, str] | None = None,
) -> Path:
    """Write the report: one page without external files, linking to the feedback already in `folder`.

    `fingerprints` (by student and exercise) and `reference` (the solutions' own, by exercise) tell identical submissions.
    `names` are shown beside the students' ids, where they are known.
    """
    few = len(verdicts) <= FEW
    verdicts = sorted(verdicts, key=lambda verdict: (in_order(verdict.student), verdict.exercise))
    cells = {
        (v.student, v.exercise): _Cell(v, _href(v, f"#s{i}" if few else "", folder)) for i, v in enumerate(verdicts)
    }
    summaries = by_exercise(verdicts)
    return write_page(
        "class_report.html.j2",
        folder / "report.html",
        total=Summary("", tuple(verdicts)),
        summaries=summaries,
        titles={exercise.id: exercise.title for exercise in EXERCISES.values()},
        students=list(dict.fromkeys(verdict.student for verdict in verdicts)),
        cells=cells,
        names=names or {},
        adjusted=[verdict for verdict in verdicts if verdict.adjustments],
        parts=[] if few else [(one, histogram(one.points, one.counts["submission failed"])) for one in summaries],
        sections=[
            (
                v,
                f"s{i}",
                loss_plot({run: claim.losses for run, claim in v.claims.items()}),
                perplexity_bars(v.perplexities),
            )
            for i, v in enumerate(verdicts)
            if few
        ],
        groups=similarity.groups(fingerprints or {}, reference),
        compared=len(fingerprints or {}),
        alike=alike(verdicts),
        max_points=MAX_POINTS,
    )


def _href(verdict: Verdict, anchor: str, folder: Path) -> str:
    path = feedback_path(verdict.student, verdict.exercise)
    return anchor or (quote(path.as_posix()) if (folder / path).exists() else "")
