"""What each exercise asks for, in the terms in which it is graded."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[1]


@dataclass(frozen=True)
class Exercise:
    """An exercise and the run that its notebook leaves behind, in `<RUNS>/<run>/`."""

    id: str
    title: str
    run: str
    rank: int
    targets: tuple[str, ...]

    @property
    def solution(self) -> Path:
        """The instructor's solved notebook."""
        return ROOT / "solutions" / self.id / f"{self.id}.ipynb"


EXERCISES = {
    exercise.id: exercise
    for exercise in (
        Exercise(
            id="ex1_first_adapter",
            title="Your first adapter",
            run="first-adapter",
            rank=16,
            targets=("q_proj", "k_proj", "v_proj", "o_proj"),
        ),
    )
}
