"""What each exercise asks for, in the terms in which it is graded."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from loralab.layers import ATTENTION, LINEAR

if TYPE_CHECKING:
    from nbformat import NotebookNode

ROOT = Path(__file__).resolve().parents[1]
ABOUT = "loralab"  # where a notebook's metadata name the exercise and the version that it was made from
FRESH_PAIRS = 100  # drawn from the secret seed; each adapter answers them all
SEED_BITS = 128  # of the secret seed; it cannot be found by trying all of them

Method = Literal["lora", "qlora"]
Subject = Literal["triage", "far", "codes"]


@dataclass(frozen=True)
class RunSpec:
    """A run that an exercise's notebook leaves behind, in `<RUNS>/<name>/`.

    `method` says on which base it is trained (as it is, or in 4 bits), `subject` on which pairs. With `size_of`, its
    rank is the one at which it trains as nearly as possible as many parameters as that run. It is trained on `pairs`
    pairs for `epochs` epochs, or for `own_epochs` times the base's own.
    """

    name: str
    rank: int = 16
    targets: tuple[str, ...] = ATTENTION
    method: Method = "lora"
    subject: Subject = "triage"
    size_of: RunSpec | None = None
    pairs: int = 100
    epochs: float | None = None
    own_epochs: float = 1.0

    def rank_on(self, source: str) -> int:
        """Return the rank that this run must have on the base at `source`."""
        if self.size_of is None:
            return self.rank
        from loralab.shapes import adapter_shape  # loads torch, which reports and records need not

        budget = adapter_shape(source, self.size_of.rank, self.size_of.targets).trainable
        return max(1, round(budget / adapter_shape(source, 1, self.targets).trainable))

    def epochs_on(self, own: float) -> float:
        """Return the epochs that this run must have on a base whose own number is `own`."""
        return self.own_epochs * own if self.epochs is None else self.epochs


@dataclass(frozen=True)
class Exercise:
    """An exercise and what it is graded by: its runs, and the functions and classes that its tasks define.

    Functions whose effect the adapters show, such as those that train, are not among `functions`. Raise `version` when
    the tasks change: the released notebook carries it, and the grader names submissions of another one.
    """

    id: str
    title: str
    runs: tuple[RunSpec, ...]
    functions: tuple[str, ...] = ()
    version: int = 2  # of all exercises: the second edition

    @property
    def about(self) -> dict[str, str | int]:
        """What its notebooks say of themselves in their metadata, under `ABOUT`."""
        return {"exercise": self.id, "version": self.version}

    def run(self, name: str) -> RunSpec:
        """Return the run called `name`."""
        return next(run for run in self.runs if run.name == name)

    @property
    def solution(self) -> Path:
        """The instructor's solved notebook."""
        return ROOT / "solutions" / self.id / f"{self.id}.ipynb"

    def released(self) -> NotebookNode:
        """Return the notebook that students get, unsolved, with nbgrader's checksums."""
        from nbformat import read  # slow to import, and records and reports need none

        notebook: NotebookNode = read(ROOT / "exercises" / self.id / self.solution.name, as_version=4)
        return notebook

    @property
    def compares_methods(self) -> bool:
        """Whether runs on different bases are compared, so that it matters which run was trained on which."""
        return len({run.method for run in self.runs}) > 1


QV = ("q_proj", "v_proj")
QKVO = RunSpec("qkvo-8", 8, own_epochs=0.6)

EXERCISES = {
    exercise.id: exercise
    for exercise in (
        Exercise(
            "ex1_first_adapter",
            "Your first adapter",
            (RunSpec("first-adapter"),),
            ("encode_pair", "answer_loss", "perplexity", "LoRALinear"),
        ),
        Exercise(
            "ex2_rank_sweep",
            "Which rank is enough?",
            tuple(RunSpec(f"rank-{r}", r, LINEAR, own_epochs=0.5) for r in (4, 16, 64)),
            ("adapter_parameters", "next_rate", "paired_difference", "smallest_enough"),
        ),
        Exercise(
            "ex3_target_modules",
            "Rank or spread?",
            (
                RunSpec("qv-8", 8, QV, own_epochs=0.6),
                QKVO,
                RunSpec("all-8", 8, LINEAR, own_epochs=0.6),
                RunSpec("qv-same-size", targets=QV, size_of=QKVO, own_epochs=0.6),
                RunSpec("all-same-size", targets=LINEAR, size_of=QKVO, own_epochs=0.6),
            ),
            ("cost_of_rank", "rank_for", "carried"),
        ),
        Exercise(
            "ex4_qlora",
            "Four bits",
            (RunSpec("lora"), RunSpec("qlora", method="qlora")),
            ("bits_per_weight", "model_bytes", "merge_weight"),
        ),
        Exercise(
            "ex5_low_rank_limits",
            "Where a low rank ends",
            (
                *(RunSpec(f"far-{r}", r, LINEAR, subject="far", own_epochs=0.5) for r in (4, 16, 64)),
                *(RunSpec(f"codes-{r}", r, LINEAR, subject="codes", pairs=16, epochs=25) for r in (1, 4, 16)),
            ),
            ("energy_shares", "share_of_gain", "bits_stored", "diagnose"),
        ),
    )
}
