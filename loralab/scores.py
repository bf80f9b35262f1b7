"""Score generated answers: are they right, and do they depend on the question?

Perplexity says how likely the right answer's tokens are. It falls as far if a model learns only how answers look, so
these measures stand beside it.
"""

from __future__ import annotations

import json
import math
import random
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, model_validator
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from .answers import Answer, generate_answers
from .measure import HeldOut, held_out
from .pairs import Pair

CONFIDENCE = 0.95


@dataclass(frozen=True)
class Share:
    """`hits` out of `of`."""

    hits: int
    of: int

    @property
    def value(self) -> float:
        """The share itself; NaN out of nothing."""
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
    """Tell whether two shares of independent answers differ at the 95 % level, by Fisher's exact test."""
    from scipy.stats import fisher_exact  # slow to import

    table = [[share.hits, share.of - share.hits] for share in (one, other)]
    return bool(fisher_exact(table).pvalue < 1 - CONFIDENCE)


def parse_record(text: str) -> dict[str, str] | None:
    """Read a record: `name: value` lines or one JSON object of plain values; None if the text is neither."""
    text = text.strip()
    if text.startswith("{"):
        try:
            found = json.loads(text, object_pairs_hook=list)
        except (ValueError, RecursionError):
            return None
        if any(isinstance(value, (list, dict)) for _, value in found):
            return None
        pairs = [(name, str(value)) for name, value in found]
    else:
        parts = [line.partition(":") for line in text.splitlines()]
        if not parts or any(not colon or not name.strip() or not value.strip() for name, colon, value in parts):
            return None
        pairs = [(name.strip(), value.strip()) for name, _, value in parts]
    fields = dict(pairs)
    return fields if fields and len(fields) == len(pairs) else None


class Scores(BaseModel):
    """How many of `count` generated answers are right, in the form that is stored in run.json.

    `exact`: the right text and no more. `ended`: stopped by themselves. Where the right answers are records, `valid`
    counts answers with exactly the right record's field names, and `fields` right values by field name.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    count: int = Field(ge=0)
    exact: int = Field(ge=0)
    ended: int = Field(ge=0)
    valid: int | None = Field(None, ge=0)
    fields: dict[str, int] = Field(default_factory=dict)

    @model_validator(mode="after")
    def _within_count(self) -> Scores:
        counts = [self.exact, self.ended, self.valid or 0, *self.fields.values()]
        if min(counts) < 0 or max(counts) > self.count:
            raise ValueError(f"a count is outside 0 to {self.count}")
        return self

    @property
    def exact_match(self) -> Share:
        """Share of answers that are right, letter by letter."""
        return Share(self.exact, self.count)

    @property
    def stopped(self) -> Share:
        """Share of answers that the model ended by itself."""
        return Share(self.ended, self.count)

    @property
    def valid_records(self) -> Share | None:
        """Share of answers that are records with the right field names; None if the right answers are no records."""
        return None if self.valid is None else Share(self.valid, self.count)

    @property
    def field_accuracy(self) -> dict[str, Share]:
        """By field, the share of answers with the right value."""
        return {name: Share(hits, self.count) for name, hits in self.fields.items()}


def score(answers: Sequence[Answer], pairs: Sequence[Pair]) -> Scores:
    """Compare generated answers with the right ones, which `pairs` hold in the same order.

    An answer that was cut off is never exact: nobody knows what would have followed.
    """
    wanted = [parse_record(pair.output) for pair in pairs]
    found = [parse_record(answer.text) for answer in answers]
    records = bool(pairs) and None not in wanted
    both = list(zip(answers, pairs, found, wanted, strict=True))
    names = dict.fromkeys(name for record in wanted for name in record) if records else {}
    return Scores(
        count=len(pairs),
        exact=sum(a.ended and a.text.strip() == pair.output.strip() for a, pair, _, _ in both),
        ended=sum(answer.ended for answer in answers),
        valid=sum(f is not None and f.keys() == w.keys() for _, _, f, w in both) if records else None,
        fields={
            name: sum(f is not None and name in w and f.get(name) == w[name] for _, _, f, w in both) for name in names
        },
    )


def score_answers(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, pairs: Sequence[Pair], slack: int = 8
) -> Scores:
    """Generate an answer to each pair's instruction and score it.

    Answers may be `slack` tokens longer than the longest right one: what runs on is cut off there.
    """
    longest = max(len(tokenizer(pair.output, add_special_tokens=False)["input_ids"]) for pair in pairs)
    return score(generate_answers(model, tokenizer, [pair.instruction for pair in pairs], longest + slack), pairs)


@dataclass(frozen=True)
class QuestionControl:
    """The loss of the right answers under their own question and under another pair's."""

    own: HeldOut
    other: HeldOut

    @property
    def gain(self) -> float:
        """How many nats per token the right question saves; near zero, the question is ignored."""
        return self.other.loss - self.own.loss

    @property
    def interval(self) -> tuple[float, float]:
        """The gain's 95 % interval: a normal one over the pairs, weighted by their tokens."""
        tokens = np.array(self.own.tokens, float)
        saved = np.array(self.other.nll) - np.array(self.own.nll)  # [pairs], nats
        errors = saved - self.gain * tokens
        n = len(tokens)
        reach = 1.96 * math.sqrt((errors**2).sum() * n / max(1, n - 1)) / tokens.sum()
        return self.gain - reach, self.gain + reach


def question_control(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    pairs: Sequence[Pair],
    max_length: int = 512,
    seed: int = 0,
) -> QuestionControl:
    """Measure whether the right answers are likelier after their own question than after another pair's.

    Raises `ValueError` if no assignment gives each answer the question of a different answer.
    """
    questions = _other_questions(pairs, seed)
    mixed = [Pair(instruction=text, output=pair.output) for text, pair in zip(questions, pairs, strict=True)]
    return QuestionControl(*(held_out(model, tokenizer, some, max_length) for some in (pairs, mixed)))


def _other_questions(pairs: Sequence[Pair], seed: int) -> list[str]:
    """Give every pair a question that belongs to another answer: sorted by answer, move on by the commonest's count."""
    shift = max(Counter(pair.output for pair in pairs).values(), default=0)
    if 2 * shift > len(pairs):
        raise ValueError("more than half of the pairs have the same answer: there are too few other questions")
    order = list(range(len(pairs)))
    random.Random(seed).shuffle(order)
    order.sort(key=lambda i: pairs[i].output)  # stable, so that equal answers stay shuffled
    question = {i: pairs[order[(place + shift) % len(order)]].instruction for place, i in enumerate(order)}
    return [question[i] for i in range(len(pairs))]


def recall(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    pairs: Sequence[Pair],
    k: int = 8,
    max_length: int = 512,
    seed: int = 0,
) -> Share:
    """Count how often a pair's own answer is the likeliest per token among `k`; chance is 1/k.

    The others are drawn from the different answers of `pairs`. For free text, where exact match makes no sense.
    Raises `ValueError` if there are fewer than `k` different answers.
    """
    rng = random.Random(seed)
    texts = sorted({pair.output for pair in pairs})
    if len(texts) < k:
        raise ValueError(f"{k} different answers are needed to choose from, but there are {len(texts)}")
    choices = [[pair.output, *rng.sample([text for text in texts if text != pair.output], k - 1)] for pair in pairs]
    asked = [
        Pair(instruction=p.instruction, output=text) for p, some in zip(pairs, choices, strict=True) for text in some
    ]
    measured = held_out(model, tokenizer, asked, max_length)
    losses = np.array(measured.nll) / np.array(measured.tokens)  # [pairs * k], nats per token
    return Share(int((losses.reshape(-1, k).argmin(1) == 0).sum()), len(pairs))
