"""The words of grading: a check, and the verdict on a submission, in a form that can be stored and shown."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, computed_field, field_validator

from loralab import RunRecord

from .text import coarse, display

MAX_POINTS = 100
State = Literal["graded", "submission failed", "grader failed"]
# Checks that reports single out.
HELD_OUT, EXACT = "fresh held-out PPL", "exact match"
# Checks whose numbers a student can compute, too; those of all others come from the secret pairs.
PUBLIC = {
    *("rank and targets", "trainable share", "adapter size", "lora_B moved", "training loss", "claims of run.json"),
    *("one thing changed", "can be evaluated"),
}
MAX_CHECK_TEXT = 1000  # characters of each text of a check: they quote what others wrote


class Check(BaseModel):
    """One line of a verdict, on the run of that name, or on the exercise as a whole.

    `partial` is the share of the points that a check earns although it did not pass.
    """

    model_config = ConfigDict(frozen=True)

    name: str
    expected: str
    found: str
    points: float
    passed: bool
    partial: Annotated[float, Field(ge=0, lt=1)] = 0.0
    message: str = ""
    run: str = ""

    @field_validator("expected", "found", "message")
    @classmethod
    def _presentable(cls, text: str) -> str:
        return display(text, MAX_CHECK_TEXT)

    @computed_field  # type: ignore[prop-decorator]  # as pydantic's manual says: mypy has no support for it
    @property
    def earned(self) -> float:
        """The points that it gives."""
        return self.points if self.passed else self.points * self.partial

    @property
    def reason(self) -> str:
        """Why it did not earn all its points, and how many it did earn if there are any."""
        return f"{self.message} ({self.score})" if 0 < self.earned < self.points else self.message

    @property
    def score(self) -> str:
        """The points earned and possible, in words."""
        return f"{self.earned:.3g} of {self.points:.3g} points"

    @property
    def outcome(self) -> str:
        """One word on how it ended."""
        return "yes" if self.passed else "partly" if self.earned > 0 else "no"

    @property
    def label(self) -> str:
        """Its name, after that of its run if it has one."""
        return f"{self.run}: {self.name}" if self.run else self.name

    @property
    def for_students(self) -> Check:
        """What a student is told of it: numbers from the secret pairs are coarse."""
        if self.name in PUBLIC:
            return self
        return self.model_copy(update={text: coarse(getattr(self, text)) for text in ("expected", "found", "message")})


class Adjustment(BaseModel):
    """What changes the points that a submission earned: it is late, or a person decided. `points` are those afterwards."""

    model_config = ConfigDict(frozen=True)

    kind: Literal["late", "by hand"]
    points: float
    reason: str


class Verdict(BaseModel):
    """The outcome for one student and exercise.

    "graded" has checks and points; "submission failed" has none and a message to the student; "grader
    failed" is nobody's zero: it has no score and is to be repeated. `other_version` is a line that says so if the
    submission was made from another version of the exercise than the current one. `sketches` has, by run, what the adapters that were
    submitted do, in a form in which students' adapters are compared (base64).
    """

    exercise: str
    student: str
    base: str
    state: State
    message: str = ""
    other_version: str = ""
    checks: list[Check] = []
    claims: dict[str, RunRecord] = {}
    perplexities: dict[str, float] = {}
    seconds: dict[str, float] = {}
    adjustments: list[Adjustment] = []
    sketches: dict[str, str] = {}

    @property
    def runs(self) -> list[str]:
        """The runs that were checked, in their order."""
        return list(dict.fromkeys(check.run for check in self.checks if check.run))

    @property
    def points(self) -> float | None:
        """Points earned; None if the grader failed."""
        return None if self.state == "grader failed" else round(sum(check.earned for check in self.checks), 2)

    @property
    def final_points(self) -> float | None:
        """Points that count: those earned, after the adjustments; None if there are none yet."""
        return self.adjustments[-1].points if self.adjustments else self.points

    def published(self) -> dict[str, Any]:
        """Return the verdict as plain data; with both sums of points and the reasons if it was adjusted."""
        found = self.model_dump(exclude=set() if self.adjustments else {"adjustments"})
        return found | ({"points": self.points, "final_points": self.final_points} if self.adjustments else {})

    @property
    def reasons(self) -> str:
        """Why the points that count may differ from those earned; "" if nothing was adjusted."""
        return "; ".join(f"{one.kind}: {one.reason}" for one in self.adjustments)

    @property
    def passed(self) -> bool:
        """Whether every check ran and passed, and the notebook finished: one that stopped left its message here."""
        finished = self.state == "graded" and not self.message
        return finished and bool(self.checks) and all(check.passed for check in self.checks)
