"""Find evaluation pairs that are also in the training pairs: they measure memory, not ability."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from .pairs import Pair

NEAR = 0.9  # of the different words of two instructions, the share that both have


@dataclass(frozen=True)
class Leaks:
    """Indices of evaluation pairs whose text is also in the training pairs, of `of` pairs.

    Case, punctuation and white space do not count. `near` has instructions that are not the same as one in training but
    share at least `NEAR` of their words with it. Nearly equal answers are no leak: records often differ in one value.
    """

    instructions: tuple[int, ...]
    outputs: tuple[int, ...]
    near: tuple[int, ...]
    of: int

    @property
    def exact(self) -> int:
        """Number of evaluation pairs whose instruction or answer is in the training pairs."""
        return len({*self.instructions, *self.outputs})

    def __str__(self) -> str:
        """Summarise the leaks in one line, which counts pairs from 1."""
        if not (self.exact or self.near):
            return f"none of {self.of} evaluation pairs is in the training pairs"
        first = 1 + min((*self.instructions, *self.outputs, *self.near))
        return (
            f"of {self.of} evaluation pairs, {len(self.instructions)} instructions and {len(self.outputs)} answers are in "
            f"the training pairs, and {len(self.near)} more instructions nearly are (first: pair {first}); replace them"
        )


def find_leaks(train_pairs: Iterable[Pair], eval_pairs: Sequence[Pair]) -> Leaks:
    """Find the evaluation pairs whose instruction or answer is also in the training pairs."""
    train_pairs = list(train_pairs)
    trained_on = {_plain(pair.instruction) for pair in train_pairs}
    answered = {_plain(pair.output) for pair in train_pairs}
    bags = [set(text.split()) for text in trained_on]
    asked = [_plain(pair.instruction) for pair in eval_pairs]
    return Leaks(
        instructions=tuple(i for i, text in enumerate(asked) if text in trained_on),
        outputs=tuple(i for i, pair in enumerate(eval_pairs) if _plain(pair.output) in answered),
        near=tuple(i for i, text in enumerate(asked) if text not in trained_on and _near(set(text.split()), bags)),
        of=len(eval_pairs),
    )


def _plain(text: str) -> str:
    return " ".join(re.findall(r"\w+", text.casefold())) or text.strip()


def _near(words: set[str], bags: Iterable[set[str]]) -> bool:
    """Tell whether one of `bags` has at least `NEAR` of the words in either (the Jaccard index)."""
    return any(len(words & bag) >= NEAR * len(words | bag) for bag in bags)
