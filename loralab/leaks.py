"""Find evaluation pairs that stand in the training data: what they measure is memory."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from .pairs import Pair

NEAR = 0.9  # share of words that two instructions have in common


@dataclass(frozen=True)
class Leaks:
    """Places (from 0) of evaluation pairs whose text also stands in the training pairs.

    Texts are the same if they differ in case, punctuation and white space alone. `near` has instructions that share at
    least nine tenths of their words with one of the training, and are not the same. Nearly equal answers are no leak: records
    often differ in one value.
    """

    instructions: tuple[int, ...]
    outputs: tuple[int, ...]
    near: tuple[int, ...]
    of: int

    @property
    def exact(self) -> int:
        """Number of evaluation pairs whose instruction or answer stands in the training pairs."""
        return len({*self.instructions, *self.outputs})

    def __str__(self) -> str:
        """One line: counts, and the first place."""
        if not (self.exact or self.near):
            return f"none of {self.of} evaluation pairs stands in the training pairs"
        first = 1 + min((*self.instructions, *self.outputs, *self.near))
        return (
            f"of {self.of} evaluation pairs {len(self.instructions)} instructions and {len(self.outputs)} answers stand in "
            f"the training pairs, and {len(self.near)} instructions nearly do (first: pair {first}); measure on others"
        )


def find_leaks(train_pairs: Iterable[Pair], eval_pairs: Sequence[Pair]) -> Leaks:
    """Compare instructions and answers of both lists."""
    train_pairs = list(train_pairs)
    asked = {_plain(pair.instruction) for pair in train_pairs}
    answered = {_plain(pair.output) for pair in train_pairs}
    bags = [set(text.split()) for text in asked]
    instructions = [i for i, pair in enumerate(eval_pairs) if _plain(pair.instruction) in asked]
    return Leaks(
        instructions=tuple(instructions),
        outputs=tuple(i for i, pair in enumerate(eval_pairs) if _plain(pair.output) in answered),
        near=tuple(
            i
            for i, pair in enumerate(eval_pairs)
            if i not in instructions and any(_close(set(_plain(pair.instruction).split()), bag) for bag in bags)
        ),
        of=len(eval_pairs),
    )


def _plain(text: str) -> str:
    return " ".join(re.findall(r"\w+", text.casefold())) or text.strip()


def _close(one: set[str], other: set[str]) -> bool:
    shared = len(one & other)
    return shared >= NEAR * (len(one) + len(other) - shared)
