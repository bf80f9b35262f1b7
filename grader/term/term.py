"""What a term adds when a class is graded: deadlines, points by hand, and what changed since the last results."""

from __future__ import annotations

from collections.abc import Generator, Sequence
from contextlib import closing
from dataclasses import replace
from pathlib import Path

from ..pipeline import Graded
from ..records.ledger import Ledger
from ..verdict import Verdict
from .deadlines import lateness, read_rules
from .history import History, format_changes, set_by_hand
from .roster import read_roster


class Term:
    """The rules, the roster and the decisions of a course, read once. Raises `GraderError`."""

    def __init__(self, course: Path, ledger: Ledger) -> None:
        rules = read_rules(course)
        roster = read_roster(course)
        self.names = {entry.student: entry.name for entry in roster.values()}
        self._late = lateness(rules, roster) if rules else {}
        self.history = History(ledger)
        self._points_by_hand = self.history.points_by_hand()

    def adjust(self, verdict: Verdict) -> Verdict:
        """Return the verdict with the cost of being late, and then with the points set by hand."""
        who = verdict.student, verdict.exercise
        if late := self._late.get(who):
            verdict = late.adjust(verdict)
        if decision := self._points_by_hand.get(who):
            verdict = set_by_hand(verdict, decision)
        return verdict

    def adjusted(self, grading: Generator[Graded, None, None]) -> Generator[Graded, None, None]:
        """Yield the same with each verdict adjusted; the ledger keeps what was earned."""
        with closing(grading):
            for one in grading:
                yield replace(one, verdict=self.adjust(one.verdict))

    def publish(self, verdicts: Sequence[Verdict], out: Path) -> list[str]:
        """Store the results; write what changed since the last ones, and return it as lines."""
        return format_changes(self.history.publish(verdicts, out))
