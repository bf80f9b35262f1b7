"""Find evaluation pairs that are also in the training pairs: they measure memory, not ability."""

from __future__ import annotations

import math
import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import chain

from .pairs import Pair

NEAR = 0.9  # of the different words of two instructions, the share that both have
LABELS = 0.25  # different answers per training pair, below which answers are labels, which pairs share by nature


@dataclass(frozen=True)
class Leaks:
    """Indices of evaluation pairs whose text is also in the training pairs, of `of` pairs.

    Case, punctuation and white space do not count. `near` has instructions that are not the same as one in training but
    share at least `NEAR` of their words with it. Nearly equal answers are no leak: records often differ in one value. Nor are
    labels, of which there are few (at most `LABELS` different ones per training pair).
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
    if len(answered) <= LABELS * len(train_pairs):
        answered = set()
    asked = [_plain(pair.instruction) for pair in eval_pairs]
    near = _near(asked, list(trained_on))
    return Leaks(
        instructions=tuple(i for i, text in enumerate(asked) if text in trained_on),
        outputs=tuple(i for i, pair in enumerate(eval_pairs) if _plain(pair.output) in answered),
        near=tuple(i for i, text in enumerate(asked) if text not in trained_on and i in near),
        of=len(eval_pairs),
    )


def near_duplicates(pairs: Sequence[Pair]) -> list[int]:
    """Return the indices of pairs whose instruction nearly equals that of an earlier pair."""
    texts = [_plain(pair.instruction) for pair in pairs]
    return [i for i, other in sorted(_near(texts, texts).items()) if other < i]


def _plain(text: str) -> str:
    return " ".join(re.findall(r"\w+", text.casefold())) or text.strip()


def _near(texts: Sequence[str], others: Sequence[str]) -> dict[int, int]:
    """Return, by index into `texts`, the first of `others` that shares at least `NEAR` of the words in either.

    The share is the Jaccard index of the two sets of words. Two sets that reach it share one of their rarest words, so
    only those are compared (prefix filtering, as in Chaudhuri et al. 2006), which keeps 100,000 texts quick. A text is
    not compared with itself if both lists are the same.
    """
    bags, other_bags = ([set(text.split()) for text in some] for some in (texts, others))
    count = Counter(chain.from_iterable(other_bags))
    by_word = defaultdict(list)
    for j, bag in enumerate(other_bags):
        for word in _rarest(bag, count):
            by_word[word].append(j)
    found = {}
    for i, bag in enumerate(bags):
        candidates = sorted({j for word in _rarest(bag, count) for j in by_word[word]})
        alike = (
            j
            for j in candidates
            if not (texts is others and i == j) and len(bag & other_bags[j]) / len(bag | other_bags[j]) >= NEAR
        )
        if (first := next(alike, None)) is not None:
            found[i] = first
    return found


def _rarest(bag: set[str], count: Counter[str]) -> list[str]:
    """Return the words of which a set that is nearly the same must have at least one."""
    return sorted(bag, key=lambda word: (count[word], word))[: len(bag) - math.ceil(NEAR * len(bag)) + 1]
