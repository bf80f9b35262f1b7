"""Judge a model's answers: are they right, do they depend on the question, and can they be read at all?

The operating gate uses it. It measures the base alone and the base with its adapter in the same way.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass

from transformers import PreTrainedTokenizerBase

from .answers import Answer
from .measure import LanguageModel, perplexity
from .pairs import Pair
from .scores import QuestionControl, Scores, Share, answer_pairs, differ, parse_record, question_control, recall, score

SAMPLES = 20  # answers that are generated and looked at
SLACK = 16  # tokens that an answer may be longer than the longest right one
MEASURED = 100  # pairs for the question control and for recall, at most
CHOICES = 8  # answers to choose from in recall
REPEATS, PHRASE = 3, 8  # a word, or a phrase of up to 8 words, three times in a row is a repetition
ENOUGH_GAIN = 0.25  # nats per token: a base that reads questions well may gain no more by training on a style
FAULTY_SHARE = 0.1  # more faulty samples than this fail a run: a single one can happen to a good model


@dataclass(frozen=True)
class Sample:
    """A question, the right answer to it, and the greedy answers of the base alone and of the base with the adapter."""

    question: str
    wanted: str
    before: str
    after: str
    ended: bool  # whether the model itself ended the answer after training


@dataclass(frozen=True)
class Ability:
    """What one model does with the held-out pairs.

    `scores` compares generated answers with the right ones. `control` is None where too many answers are the same, and
    `chosen` (with `choices`, the number of answers to choose from) where the right answers are records, or all the same.
    `ppl` is None unless it was to be measured again.
    """

    answers: list[Answer]
    scores: Scores
    control: QuestionControl | None = None
    chosen: Share | None = None
    choices: int = 0
    ppl: float | None = None


def measure(
    model: LanguageModel,
    tokenizer: PreTrainedTokenizerBase,
    pairs: Sequence[Pair],
    max_length: int,
    recompute: int | None = None,
) -> Ability:
    """Measure what `model` does with `pairs`.

    Generates answers to the first `SAMPLES` and scores them. With `recompute`, also measures perplexity on all pairs,
    and scores the answers to the first `recompute` of them; 0 stands for the samples.
    """
    some, scored = pairs[:MEASURED], pairs[: recompute or SAMPLES]
    answers = answer_pairs(model, tokenizer, pairs[: max(SAMPLES, len(scored))], SLACK, max_length)
    choices = min(CHOICES, len({pair.output for pair in some}))
    control = chosen = None
    with suppress(ValueError):  # most answers are the same, or a pair is too long, which another point reports
        if choices > 1 and any(parse_record(pair.output) is None for pair in some):  # records are scored exactly
            chosen = recall(model, tokenizer, some, choices, max_length)
        control = question_control(model, tokenizer, some, max_length)
    ppl = None if recompute is None else perplexity(model, tokenizer, pairs, max_length)
    return Ability(answers[:SAMPLES], score(answers[: len(scored)], scored), control, chosen, choices, ppl)


def samples_of(pairs: Sequence[Pair], before: Ability, after: Ability) -> list[Sample]:
    """Put the answers before and after training side by side."""
    return [
        Sample(pair.instruction, pair.output, old.text, new.text, new.ended)
        for pair, old, new in zip(pairs[:SAMPLES], before.answers, after.answers, strict=True)
    ]


def faults(samples: Sequence[Sample]) -> dict[str, int]:
    """Count the samples with each fault, by the fault's name; faults that none has are left out."""
    found = {
        "empty": sum(not sample.after.strip() for sample in samples),
        "the prompt again": sum(_echoes(s.after, s.question) and not _echoes(s.wanted, s.question) for s in samples),
        "with a phrase repeated": sum(repeats(s.after) and not repeats(s.wanted) for s in samples),
        "without an end": sum(not sample.ended for sample in samples),
    }
    return {name: count for name, count in found.items() if count}


def _echoes(text: str, question: str) -> bool:
    """Tell whether the text begins with the whole question."""
    words = question.split()
    return text.split()[: len(words)] == words


def repeats(text: str) -> bool:
    """Tell whether a word, or a phrase of up to `PHRASE` words, stands `REPEATS` times in a row."""
    words = text.casefold().split()
    for size in range(1, PHRASE + 1):
        run = 0  # words in a row that equal the one `size` places before
        for place in range(size, len(words)):
            run = run + 1 if words[place] == words[place - size] else 0
            if run >= size * (REPEATS - 1) and any(map(str.isalpha, "".join(words[place - size : place]))):
                return True
    return False


def fault_causes(samples: Sequence[Sample]) -> list[str]:
    """Say which faults too many samples have."""
    advice = {
        "empty": "look at the labels: is the end-of-answer token the only one that was learned?",
        "the prompt again": "look at the labels: the prompt must be masked",
        "with a phrase repeated": "train longer, on more pairs, or at a lower learning rate",
        "without an end": "train longer, and check point 3: do the labels have the end-of-answer token?",
    }
    limit = FAULTY_SHARE * len(samples)
    wrong = [
        f"{count} of {len(samples)} answers are {name}; {advice[name]}"
        for name, count in faults(samples).items()
        if count > limit
    ]
    if samples and all(sample.before.split() == sample.after.split() for sample in samples):
        wrong.append("every answer is the base's own, so users would see no difference; train longer or on more pairs")
    return wrong


def ignores_question(before: QuestionControl | None, after: QuestionControl | None) -> list[str]:
    """Say so if the right question helps no more than another pair's.

    It must help for certain, and more than it helps the base alone or by `ENOUGH_GAIN`.
    """
    if after is None:
        return []
    low = after.interval[0]
    if low > 0 and (before is None or after.gain > before.gain or low > ENOUGH_GAIN):
        return []
    base = f", the base alone {before.gain:.2f}" if before else ""
    return [
        f"it ignores the question: the right question, instead of another pair's, saves {gain_text(after)}{base}; "
        "check that each answer is paired with its own question, or train longer"
    ]


def gain_text(control: QuestionControl) -> str:
    """Write the gain with its interval."""
    low, high = control.interval
    return f"{control.gain:.2f} ({low:.2f} to {high:.2f}) nats per token"


def wrong_answers(before: Scores, after: Scores) -> list[str]:
    """Say so if the records are not right more often than the base's, beyond chance."""
    was, now = before.exact_match, after.exact_match
    if now.value > was.value and differ(now, was):
        return []
    form = after.valid_records
    only_form = form is not None and form.value >= 0.5
    return [
        f"{after.exact} of {after.count} answers are exactly right, the base's {before.exact}: no clear difference; "
        + ("it has learned the form of a record, not what to write into it" if only_form else "read the samples")
        + ": train longer, on more layers or on more pairs"
    ]


def no_better_than_chance(chosen: Share | None, choices: int) -> list[str]:
    """Say so if the model does not find the right answer among others."""
    if chosen is None or chosen.interval[0] > 1 / choices:
        return []
    return [
        f"it cannot tell the right answer from others: its own ranks first among {choices} in {chosen}, by chance in "
        f"{1 / choices:.2f}; it may have memorised the answers, but not which question each belongs to"
    ]
