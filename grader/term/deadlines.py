"""Deadlines: `course.toml` says when an exercise is due and what being late costs; the roster says when it came."""

from __future__ import annotations

import math
import tomllib
from collections import defaultdict
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta, tzinfo
from pathlib import Path
from typing import Annotated, Any
from zoneinfo import ZoneInfo

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, model_validator

from loralab.errors import first_problem

from ..errors import GraderError
from ..exercises import EXERCISES
from ..verdict import Adjustment, Verdict
from .roster import Entry, Roster

FILE = "course.toml"
DAY = timedelta(days=1)


def _with_time(value: Any) -> Any:
    if type(value) is date:
        raise ValueError(f"has no time of day: write {value.isoformat()}T23:59:00")
    return value


def _exercise(value: str) -> str:
    if value not in EXERCISES:
        raise ValueError(f"no exercise {value!r}; there are: {', '.join(EXERCISES)}")
    return value


def _zone(value: Any) -> tzinfo:
    try:
        return UTC if value == "UTC" else ZoneInfo(value)
    except (LookupError, ValueError, OSError, TypeError):
        raise ValueError(
            f"no time zone {value!r}: write it as in Asia/Seoul (no zone at all? pip install tzdata)"
        ) from None


Due = Annotated[datetime, BeforeValidator(_with_time)]
ExerciseId = Annotated[str, AfterValidator(_exercise)]
Days = Annotated[int, Field(ge=1)]
Percent = Annotated[float, Field(ge=0, le=100)]


class LatePolicy(BaseModel):
    """The cost of being late: nothing for the days of a student's budget, then so much per day, down to a floor.

    Without `percent_per_day` a submission has no points once the budget is used up.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    budget_days: Annotated[int, Field(ge=0)] = 0
    percent_per_day: Annotated[float, Field(gt=0, le=100)] | None = None
    floor_percent: Percent = 0.0


class Extension(BaseModel):
    """A later due date for one student, for one exercise or for all; by so many days, or until a time."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    student: Annotated[str, BeforeValidator(str)]
    exercise: ExerciseId | None = None
    due: Due | None = None
    days: Days | None = None
    note: str = ""

    @model_validator(mode="after")
    def _check_due_or_days(self) -> Extension:
        if (self.due is None) == (self.days is None):
            raise ValueError("needs either due or days")
        return self


class CourseRules(BaseModel):
    """`course.toml`. A time without an offset is of the course's time zone, in the roster too."""

    model_config = ConfigDict(extra="forbid", frozen=True, arbitrary_types_allowed=True)

    timezone: Annotated[tzinfo, BeforeValidator(_zone)] = UTC
    grace_minutes: Annotated[int, Field(ge=0)] = 0
    due: dict[ExerciseId, Due] = {}
    late: LatePolicy | None = None
    extension: list[Extension] = []

    def due_for(self, student: str, exercise: str) -> tuple[datetime, bool] | None:
        """Return when a student's submission is due, and whether that was extended; None if it is never due."""
        if exercise not in self.due:
            return None
        due = usual = self.in_zone(self.due[exercise])
        for one in self.extension:
            if one.student == student and one.exercise in (None, exercise):
                due = max(due, self.in_zone(one.due) if one.due else usual + (one.days or 0) * DAY)
        return due, due > usual

    def in_zone(self, time: datetime) -> datetime:
        """Return the time in the course's zone; without an offset it is taken to be of that zone."""
        return time.replace(tzinfo=self.timezone) if time.tzinfo is None else time.astimezone(self.timezone)


def read_rules(course: Path) -> CourseRules | None:
    """Return the rules, None if there is no `course.toml`. Raises `GraderError` if it cannot be used."""
    path = course / FILE
    if not path.exists():
        return None
    try:
        return CourseRules.model_validate(tomllib.loads(path.read_text("utf-8-sig")))
    except ValidationError as error:
        raise GraderError(f"{path}: {first_problem(error)}") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError, OSError) as error:
        raise GraderError(f"{path}: cannot be read as TOML: {error}") from None


@dataclass(frozen=True)
class Lateness:
    """How late a submission is, in words, and the share of its points that still counts."""

    share: float
    reason: str

    def adjust(self, verdict: Verdict) -> Verdict:
        """Return the verdict with this adjustment after its others; as it is if it has no points."""
        if verdict.final_points is None:
            return verdict
        points = round(verdict.final_points * self.share, 2)
        one = Adjustment(kind="late", points=points, reason=self.reason)
        return verdict.model_copy(update={"adjustments": [*verdict.adjustments, one]})


def lateness(rules: CourseRules, roster: Roster) -> dict[tuple[str, str], Lateness]:
    """Return what is late, by student and exercise; a student's budget is spent in the order of the due dates.

    Where the platform itself says whether it is late, as Canvas does, that counts and costs nothing: the times in such a
    download are those of the download. If `late` is empty in the roster, the time counts.
    """
    late: dict[str, list[tuple[datetime, bool, Entry]]] = defaultdict(list)
    for (student, exercise), entry in roster.items():
        rule = rules.due_for(student, exercise)
        if rule and entry.late != "no":
            late[student].append((*rule, entry))
    found = {}
    for student, entries in late.items():
        budget = rules.late.budget_days if rules.late else 0
        for due, extended, entry in sorted(entries, key=lambda one: (one[0], one[2].exercise)):
            one, budget = _lateness(rules, due, extended, entry, budget)
            if one:
                found[student, entry.exercise] = one
    return found


def _lateness(
    rules: CourseRules, due: datetime, extended: bool, entry: Entry, budget: int
) -> tuple[Lateness | None, int]:
    """Return how late this one is, and what is left of the student's budget after it."""
    if entry.late == "yes":
        return Lateness(1.0, f"late, as {entry.lms} says, which does not say when: nothing is taken off"), budget
    if entry.submitted is None:
        return None, budget
    submitted = rules.in_zone(entry.submitted)
    behind = submitted.astimezone(UTC) - due.astimezone(UTC)
    if behind <= timedelta(minutes=rules.grace_minutes):
        return None, budget
    days = max(1, math.ceil(behind / DAY))
    used = min(days, budget)
    share, cost = _cost(rules.late, days - used)
    words = [
        f"submitted {submitted:%Y-%m-%d %H:%M}, due {due:%Y-%m-%d %H:%M} ({rules.timezone})"
        f"{', extended' if extended else ''}: {_days(days)} late",
        f"{used} of {_days(rules.late.budget_days)} of the budget used, {budget - used} left"
        if used and rules.late
        else "",
        cost,
    ]
    return Lateness(share, "; ".join(filter(None, words))), budget - used


def _cost(policy: LatePolicy | None, days: int) -> tuple[float, str]:
    """Return the share of the points that is left after so many days beyond the budget, and why."""
    if policy is None or days == 0:
        return 1.0, "nothing is taken off"
    if policy.percent_per_day is None:
        return 0.0, f"{_days(days)} beyond the budget: no points"
    share = max(policy.floor_percent, 100 - days * policy.percent_per_day, 0.0)
    floor = " (the floor)" if share == policy.floor_percent > 0 else ""
    return share / 100, f"{_days(days)} at {policy.percent_per_day:g} % per day: {share:g} % of the points count{floor}"


def _days(count: int) -> str:
    return f"{count} day{'' if count == 1 else 's'}"
