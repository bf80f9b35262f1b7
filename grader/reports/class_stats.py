"""A class in numbers: what came of each exercise, which checks pass, what goes wrong most often, and what it cost."""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from statistics import mean, median
from typing import get_args

from ..verdict import State, Verdict

NUMBER = re.compile(r"\d[\d.,]*(?:e[-+]?\d+)?")
ONLY_WHERE_IT_FAILS = "can be evaluated"
MOST_REASONS = 5
STATES: tuple[State, ...] = get_args(State)


@dataclass(frozen=True)
class CheckCount:
    """How many submissions passed a check (for every run that was checked), of how many in which it ran."""

    name: str
    passed: int
    ran: int


@dataclass(frozen=True)
class Reason:
    """A reason for a failure, in its most frequent wording; `alike` if others differ from it in numbers."""

    where: str
    message: str
    count: int
    alike: bool


@dataclass(frozen=True)
class Cost:
    """Seconds of one kind of work over a class."""

    what: str
    count: int
    total: float
    median: float
    slowest: float
    slowest_verdict: Verdict


@dataclass(frozen=True)
class Summary:
    """The verdicts on one exercise (or on all of them, with no name)."""

    exercise: str
    verdicts: tuple[Verdict, ...]

    def of_state(self, state: State) -> list[Verdict]:
        """Return the verdicts of one state."""
        return [verdict for verdict in self.verdicts if verdict.state == state]

    @property
    def of_other_versions(self) -> list[Verdict]:
        """The verdicts on submissions that were made from another version of their exercise."""
        return [verdict for verdict in self.verdicts if verdict.other_version]

    @property
    def counts(self) -> dict[State, int]:
        """How many verdicts there are of each state."""
        return {state: len(self.of_state(state)) for state in STATES}

    @property
    def points(self) -> list[float]:
        """The points of those that were graded; a submission that failed and a failure of the grader are none of them."""
        return [verdict.points or 0.0 for verdict in self.of_state("graded")]

    @property
    def mean(self) -> float | None:
        """Mean points of those graded."""
        return mean(self.points) if self.points else None

    @property
    def median(self) -> float | None:
        """Median points of those graded."""
        return median(self.points) if self.points else None

    @property
    def passed(self) -> int:
        """How many passed every check."""
        return sum(verdict.passed for verdict in self.verdicts)

    def checks(self) -> list[CheckCount]:
        """Return every check in the order of the verdicts."""
        ran: Counter[str] = Counter()
        failed: Counter[str] = Counter()
        graded = self.of_state("graded")
        for verdict in graded:
            ran.update({check.name for check in verdict.checks})
            failed.update({check.name for check in verdict.checks if not check.passed})
        if ran[ONLY_WHERE_IT_FAILS]:
            ran[ONLY_WHERE_IT_FAILS] = len(graded)
        names = dict.fromkeys(check.name for verdict in graded for check in verdict.checks)
        return [CheckCount(name, ran[name] - failed[name], ran[name]) for name in names]

    def reasons(self) -> list[Reason]:
        """Return the most frequent reasons; a submission counts once for each, however many of its runs have it."""
        wordings: dict[tuple[str, str], Counter[str]] = defaultdict(Counter)
        for verdict in self.verdicts:
            mine = {(where, NUMBER.sub("#", message)): message for where, message in _reasons(verdict)}
            for key, message in mine.items():
                wordings[key][message] += 1
        ordered = sorted(wordings.items(), key=lambda one: -one[1].total())[:MOST_REASONS]
        return [Reason(key[0], same.most_common(1)[0][0], same.total(), len(same) > 1) for key, same in ordered]

    def costs(self) -> list[Cost]:
        """Return the time of each kind of work, the longest first."""
        spent: dict[str, list[tuple[float, Verdict]]] = defaultdict(list)
        for verdict in self.verdicts:
            for what, seconds in verdict.seconds.items():
                spent[what].append((seconds, verdict))
        costs = []
        for what, each in spent.items():
            times = [seconds for seconds, _ in each]
            costs.append(Cost(what, len(each), sum(times), median(times), *max(each, key=lambda one: one[0])))
        return sorted(costs, key=lambda cost: -cost.total)


def _reasons(verdict: Verdict) -> Iterator[tuple[str, str]]:
    if verdict.message and verdict.state != "grader failed":  # that one is nothing the students can learn from
        where = "the notebook stopped" if verdict.state == "graded" else verdict.state
        yield where, verdict.message.strip().splitlines()[0]
    for check in verdict.checks:
        if not check.passed:
            yield check.name, check.message


def by_exercise(verdicts: Sequence[Verdict]) -> list[Summary]:
    """Return a summary per exercise, by name."""
    found: dict[str, list[Verdict]] = defaultdict(list)
    for verdict in verdicts:
        found[verdict.exercise].append(verdict)
    return [Summary(exercise, tuple(found[exercise])) for exercise in sorted(found)]


def in_order(student: str) -> tuple[str, str]:
    """Return a sort key that ignores case and puts number 9 before number 10."""

    def with_length(number: re.Match[str]) -> str:
        digits = number[0].lstrip("0")
        return f"{len(digits):03}{digits}"

    return re.sub("[0-9]+", with_length, student.casefold()), student
