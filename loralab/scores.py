"""Score generated answers: are they right, and do they depend on the question?

Perplexity says how likely the tokens of the right answer are. It also falls if a model only learns how answers look, so
these measures complement it.
"""

from __future__ import annotations

import json
import math
import random
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, model_validator

from .errors import LoralabError
from .tuning import Estimate, interval

if TYPE_CHECKING:  # torch is slow to import, and who reads scores needs none
    from transformers import PreTrainedTokenizerBase

    from .answers import Answer
    from .measure import HeldOut, LanguageModel
    from .pairs import Pair

CONFIDENCE = 0.95
SLACK = 8  # tokens that a generated answer may be longer than the longest right one
MIXED = 2  # a question with another pair's answer is at most twice as long as the longest pair


@dataclass(frozen=True)
class Share:
    """`hits` successes out of `of` trials."""

    hits: int
    of: int

    @property
    def value(self) -> float:
        """The share itself; NaN without trials."""
        return self.hits / self.of if self.of else math.nan

    @property
    def interval(self) -> tuple[float, float]:
        """Its 95 % Wilson interval."""
        if not self.of:
            return math.nan, math.nan
        from scipy.stats import binomtest  # slow to import

        found = binomtest(self.hits, self.of).proportion_ci(CONFIDENCE, method="wilson")
        return float(found.low), float(found.high)

    def __str__(self) -> str:
        low, high = self.interval
        return f"{self.value:.2f} ({low:.2f} to {high:.2f})"


def differ(one: Share, other: Share) -> bool:
    """Tell whether two shares of independent trials differ at the 95 % level, by Fisher's exact test.

    The test is valid for small counts. For two models on the same questions it is cautious: a paired test finds more.
    """
    from scipy.stats import fisher_exact  # slow to import

    table = [[share.hits, share.of - share.hits] for share in (one, other)]
    return bool(fisher_exact(table).pvalue < 1 - CONFIDENCE)


def paired_interval(one: Sequence[float], other: Sequence[float]) -> Estimate:
    """Return the mean of `one - other` and its 95 % interval, low and high, by the t distribution.

    Values at the same place belong together: two runs with one seed, or two models on one message. Raises
    `LoralabError` if the lists differ in length or have fewer than two values.
    """
    if len(one) != len(other) or len(one) < 2:
        raise LoralabError(
            f"a paired interval needs two lists of the same length, 2 or more: got {len(one)} and {len(other)}"
        )
    return interval(np.subtract(one, other))


def parse_record(text: str) -> dict[str, str] | None:
    """Read a record: `name: value` lines or one JSON object of strings, numbers, true, false and null.

    Values are returned as text, numbers as they were written. None if the text is neither, or repeats a name.
    """
    text = text.strip()
    pairs = (_from_json(text) if text.startswith("{") else _from_lines(text)) or []
    fields = dict(pairs)
    return fields if fields and len(fields) == len(pairs) else None


def _from_json(text: str) -> list[tuple[str, str]] | None:
    try:
        found = json.loads(text, object_pairs_hook=list, parse_int=str, parse_float=str, parse_constant=str)
    except (ValueError, RecursionError):
        return None
    if any(isinstance(value, list) for _, value in found):  # an array, or an object inside the object
        return None
    return [(name, value if isinstance(value, str) else json.dumps(value)) for name, value in found]


def _from_lines(text: str) -> list[tuple[str, str]] | None:
    parts = [line.partition(":") for line in text.splitlines()]
    pairs = [(name.strip(), value.strip()) for name, _, value in parts]
    return pairs if all(name and value for name, value in pairs) else None


class Scores(BaseModel):
    """Counts of right answers among `count` generated ones, as stored in run.json.

    `exact` counts answers that are the right text and nothing else; `ended` those that the model ended itself. If the
    right answers are records, `valid` counts records with exactly the right field names, in any order, and `fields`
    counts the right values of each field that all right answers have.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    count: int = Field(ge=0)
    exact: int = Field(ge=0)
    ended: int = Field(ge=0)
    valid: int | None = Field(default=None, ge=0)
    fields: dict[str, int] = Field(default_factory=dict)

    @model_validator(mode="after")
    def _within_count(self) -> Scores:
        counts = [self.ended, *self.fields.values()] + ([] if self.valid is None else [self.valid])
        if any(not self.exact <= count <= self.count for count in counts):  # an exact answer counts everywhere
            raise ValueError(f"a count is below the {self.exact} exact answers or above all {self.count}")
        if self.fields and self.valid is None:
            raise ValueError("fields are counted only where the right answers are records, which valid counts")
        return self

    @property
    def exact_match(self) -> Share:
        """Share of answers that are exactly right."""
        return Share(self.exact, self.count)

    @property
    def stopped(self) -> Share:
        """Share of answers that the model ended by itself."""
        return Share(self.ended, self.count)

    @property
    def valid_records(self) -> Share | None:
        """Share of answers that are records with the right field names; None if the right answers are not records."""
        return None if self.valid is None else Share(self.valid, self.count)

    @property
    def field_accuracy(self) -> dict[str, Share]:
        """By field, the share of answers with the right value."""
        return {name: Share(hits, self.count) for name, hits in self.fields.items()}


def score(answers: Sequence[Answer], pairs: Sequence[Pair]) -> Scores:
    """Compare generated answers with the right ones in `pairs`, which has the same order.

    Surrounding white space does not count. An answer that was cut off is never exact: what would follow is unknown.
    Raises `ValueError` if there are not as many answers as pairs.
    """
    exact = [a.ended and a.text.strip() == pair.output.strip() for a, pair in zip(answers, pairs, strict=True)]
    scores = partial(Scores, count=len(pairs), exact=sum(exact), ended=sum(answer.ended for answer in answers))
    wanted = [record for pair in pairs if (record := parse_record(pair.output)) is not None]
    if not wanted or len(wanted) < len(pairs):
        return scores()
    found = [parse_record(answer.text) or {} for answer in answers]
    both = list(zip(found, wanted, strict=True))
    names = [name for name in wanted[0] if all(name in record for record in wanted)]
    return scores(
        valid=sum(record.keys() == right.keys() for record, right in both),
        fields={name: sum(record.get(name) == right[name] for record, right in both) for name in names},
    )


def score_answers(model: LanguageModel, tokenizer: PreTrainedTokenizerBase, pairs: Sequence[Pair]) -> Scores:
    """Generate an answer to each pair's instruction and score it."""
    return score(answer_pairs(model, tokenizer, pairs), pairs)


def answer_pairs(
    model: LanguageModel,
    tokenizer: PreTrainedTokenizerBase,
    pairs: Sequence[Pair],
    slack: int = SLACK,
    max_length: int | None = None,
) -> list[Answer]:
    """Generate an answer to each pair's instruction.

    Generation stops `slack` tokens after the length of the longest right answer, or after `max_length` if that is less.
    """
    from .answers import generate_answers

    longest = max((len(tokenizer(p.output, add_special_tokens=False)["input_ids"]) for p in pairs), default=0)
    return generate_answers(model, tokenizer, pairs, min(longest, max_length or longest) + slack)


@dataclass(frozen=True)
class QuestionControl:
    """The loss of the right answers under their own question and under another pair's."""

    own: HeldOut
    other: HeldOut

    @property
    def gain(self) -> float:
        """The loss that the right question saves, in nats per token; near zero, the question is ignored."""
        return self.other.loss - self.own.loss

    @property
    def interval(self) -> tuple[float, float]:
        """The gain's 95 % interval, from the spread of the pairs' differences by the normal approximation."""
        tokens = np.array(self.own.tokens, float)
        saved = np.array(self.other.nll) - np.array(self.own.nll)  # [pairs], nats
        errors = saved - self.gain * tokens
        n = len(tokens)
        reach = 1.96 * math.sqrt((errors**2).sum() * n / max(1, n - 1)) / float(tokens.sum())
        return self.gain - reach, self.gain + reach


def question_control(
    model: LanguageModel,
    tokenizer: PreTrainedTokenizerBase,
    pairs: Sequence[Pair],
    max_length: int = 512,
    seed: int = 0,
    own: HeldOut | None = None,
) -> QuestionControl:
    """Measure whether the right answers are likelier after their own question than after another pair's.

    The other pair always has a different answer. `own` is `held_out` of the same pairs, if it is known already. Raises
    `LoralabError` if all answers are the same.
    """
    from .measure import held_out

    questions = _other_questions(pairs, seed)
    mixed = [asked.model_copy(update={"output": pair.output}) for asked, pair in zip(questions, pairs, strict=True)]
    own = own or held_out(model, tokenizer, pairs, max_length)
    return QuestionControl(own, held_out(model, tokenizer, mixed, MIXED * max_length))


def _other_questions(pairs: Sequence[Pair], seed: int) -> list[Pair]:
    """Return a pair for each pair whose question belongs to a different answer: each question once, if that is possible."""
    answers = Counter(pair.output for pair in pairs)
    if len(answers) < 2:
        raise LoralabError("the question control needs at least two different answers")
    order = random.Random(seed).sample(range(len(pairs)), len(pairs))
    order.sort(key=lambda i: pairs[i].output)  # equal answers side by side, in random order
    shift = max(answers.values())  # moves every pair past those with its own answer
    questions = {}
    for place, i in enumerate(order):
        start = (place + shift) % len(order)
        other = next(j for j in order[start:] + order[:start] if pairs[j].output != pairs[i].output)
        questions[i] = pairs[other]
    return [questions[i] for i in range(len(pairs))]


def recall(
    model: LanguageModel, tokenizer: PreTrainedTokenizerBase, pairs: Sequence[Pair], k: int = 8, max_length: int = 512
) -> Share:
    """Return how often a pair's own answer is the likeliest per token among `k`; chance is 1/k.

    The other `k - 1` answers are drawn from `pairs`. Use it for free text, where exact match makes no sense. Raises
    `LoralabError` if there are fewer than `k` different answers.
    """
    from .measure import held_out

    rng = random.Random(0)
    texts = sorted({pair.output for pair in pairs})
    if len(texts) < k:
        raise LoralabError(f"{k} different answers are needed to choose from, but there are {len(texts)}")
    choices = [[pair.output, *rng.sample([text for text in texts if text != pair.output], k - 1)] for pair in pairs]
    asked = [p.model_copy(update={"output": text}) for p, some in zip(pairs, choices, strict=True) for text in some]
    measured = held_out(model, tokenizer, asked, MIXED * max_length)
    losses = (np.array(measured.nll) / np.array(measured.tokens)).reshape(-1, k)  # nats per token
    first = (losses[:, :1] < losses[:, 1:]).all(1)  # a loss that is NaN is never first
    return Share(int(first.sum()), len(pairs))
