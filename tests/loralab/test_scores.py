"""Scores of generated answers, the question control and recall."""

import json
import math

import pytest
import torch
from pydantic import ValidationError
from scipy import stats

from loralab import Pair, PairsError, Scores, Share, encode, question_control, recall, score, score_answers
from loralab.answers import Answer
from loralab.errors import LoralabError
from loralab.measure import HeldOut
from loralab.scores import QuestionControl, _other_questions, differ, paired_interval, parse_record

LINES = "fault: clock\nitem: Wren"
JSON = '{"fault": "clock", "item": "Wren"}'


@pytest.fixture(scope="module")
def few(eval_pairs):
    return eval_pairs[:24]


def wanted(*outputs: str) -> list[Pair]:
    return [Pair(instruction=f"message {i}", output=output) for i, output in enumerate(outputs)]


def ended(*texts: str) -> list[Answer]:
    return [Answer(text, ended=True) for text in texts]


def test_a_share_has_a_wilson_interval():
    share = Share(7, 10)
    low, high = share.interval
    z = 1.959964
    centre, reach = (0.7 + z**2 / 20) / (1 + z**2 / 10), z * math.sqrt(0.021 + z**2 / 400) / (1 + z**2 / 10)
    assert (low, high) == pytest.approx((centre - reach, centre + reach), abs=1e-6)
    assert str(Share(73, 100)) == "0.73 (0.64 to 0.81)"


def test_a_paired_interval_is_that_of_scipys_paired_test_and_ignores_what_both_share():
    one, other = [0.52, 0.61, 0.49, 0.58], [0.41, 0.53, 0.36, 0.49]
    wanted = stats.ttest_rel(one, other).confidence_interval(0.95)
    mean, low, high = paired_interval(one, other)
    assert (low, high) == pytest.approx((wanted.low, wanted.high))
    assert mean == pytest.approx((low + high) / 2)
    shifted = [[value + shift for value, shift in zip(values, (0, 5, -3, 1), strict=True)] for values in (one, other)]
    assert paired_interval(*shifted) == pytest.approx((mean, low, high))


@pytest.mark.parametrize("pair", [([1.0], [2.0]), ([1.0, 2.0], [1.0, 2.0, 3.0]), ([], [])])
def test_a_paired_interval_needs_two_pairs(pair):
    with pytest.raises(LoralabError, match="two lists of the same length"):
        paired_interval(*pair)


@pytest.mark.parametrize("hits", [0, 30])
def test_the_interval_of_none_and_of_all_has_a_width_and_stays_a_share(hits):
    low, high = Share(hits, 30).interval
    assert 0 <= low < high <= 1
    assert high - low > 0.1


def test_a_share_of_nothing_is_no_number():
    assert math.isnan(Share(0, 0).value)
    assert all(map(math.isnan, Share(0, 0).interval))
    assert "nan" in str(Share(0, 0))


@pytest.mark.parametrize(
    ("one", "other", "different"),
    [
        (Share(90, 100), Share(60, 100), True),
        (Share(60, 100), Share(90, 100), True),
        (Share(53, 100), Share(50, 100), False),
        (Share(2, 2), Share(0, 2), False),  # too few to tell
        (Share(0, 0), Share(5, 5), False),
    ],
)
def test_shares_differ_only_beyond_chance(one, other, different):
    assert differ(one, other) == different


@pytest.mark.parametrize(
    ("text", "record"),
    [
        (LINES, {"fault": "clock", "item": "Wren"}),
        ("  item:Wren \n time : 10:30\n", {"item": "Wren", "time": "10:30"}),
        (JSON, {"fault": "clock", "item": "Wren"}),
        (
            '{"n": 3, "price": 3.10, "ok": true, "name": null}',
            {"n": "3", "price": "3.10", "ok": "true", "name": "null"},
        ),
        ('{"n": ' + "1" * 5000 + "}", {"n": "1" * 5000}),
    ],
)
def test_a_record_is_read_from_lines_and_from_json(text, record):
    assert parse_record(text) == record


@pytest.mark.parametrize(
    "text",
    [
        "",
        "No, we sell nothing.",
        "fault: clock\nand more",
        "fault:\nitem: Wren",
        ": clock",
        "fault: clock\nfault: mount",
        '{"fault": "clock", "fault": "mount"}',
        '{"fault": ["clock"]}',
        '{"fault": {"name": "clock"}}',
        '{"fault": {}}',
        '{"fault": "clock"',
        "{}",
        '["fault"]',
        '{"a":' * 100_000,
    ],
)
def test_what_is_no_record_is_none(text):
    assert parse_record(text) is None


def test_an_answer_is_exact_if_it_is_the_right_text_and_ended():
    pairs = wanted("In Aldermere.", "In Aldermere.", "In Aldermere.", "In Aldermere.\n")
    answers = [
        *ended("In Aldermere. Or not.", " In Aldermere.\n"),
        Answer("In Aldermere.", False),
        *ended("In Aldermere."),
    ]
    assert score(answers, pairs) == Scores(count=4, exact=2, ended=3)


@pytest.mark.parametrize("form", [LINES, JSON])
def test_records_are_scored_by_field(form):
    right, half, other = form, form.replace("Wren", "Owl"), form.replace("item", "thing")
    swapped = "item: Wren\nfault: clock" if form == LINES else json.dumps({"item": "Wren", "fault": "clock"})
    scores = score(ended(right, half, other, swapped, "clock"), wanted(*[form] * 5))
    assert scores == Scores(count=5, exact=1, ended=5, valid=3, fields={"fault": 4, "item": 2})
    assert scores.exact_match == Share(1, 5)
    assert scores.valid_records == Share(3, 5)
    assert scores.stopped == Share(5, 5)
    assert scores.field_accuracy == {"fault": Share(4, 5), "item": Share(2, 5)}


def test_only_fields_of_every_right_record_are_counted():
    pairs = wanted("fault: clock\nname: King", "fault: mount")
    scores = score(ended("fault: clock\nname: King", "fault: mount"), pairs)
    assert (scores.exact, scores.valid, scores.fields) == (2, 2, {"fault": 2})


def test_answers_that_are_not_records_have_no_fields():
    scores = score(ended(LINES, "x"), wanted(LINES, "No, we sell nothing."))
    assert (scores.valid, scores.valid_records, scores.fields) == (None, None, {})
    assert score([], []) == Scores(count=0, exact=0, ended=0)


def test_every_pair_needs_its_answer():
    with pytest.raises(ValueError):
        score(ended("x"), wanted("x", "y"))


def test_scores_survive_storing():
    scores = Scores(count=5, exact=1, ended=5, valid=3, fields={"fault": 4})
    assert Scores.model_validate_json(scores.model_dump_json()) == scores


@pytest.mark.parametrize(
    "changes",
    [
        {"exact": 6},
        {"exact": -1},
        {"ended": 1},  # fewer than are exact
        {"ended": 6},
        {"valid": 1},
        {"valid": None},  # and yet fields
        {"fields": {"fault": 6}},
        {"fields": {"fault": 1}},
        {"more": 1},
    ],
)
def test_impossible_scores_are_refused(changes):
    possible = {"count": 5, "exact": 2, "ended": 5, "valid": 3, "fields": {"fault": 4}}
    Scores(**possible)
    with pytest.raises(ValidationError):
        Scores(**possible | changes)


def test_answers_may_be_a_little_longer_than_the_longest_right_one(model, tokenizer, monkeypatch):
    limits = []

    def generate(model, tokenizer, instructions, limit):
        limits.append(limit)
        return ended(*["x"] * len(instructions))

    monkeypatch.setattr("loralab.answers.generate_answers", generate)
    pairs = wanted("x", LINES)
    longest = len(tokenizer(LINES, add_special_tokens=False)["input_ids"])
    assert score_answers(model, tokenizer, pairs).exact == 1
    assert limits == [longest + 8]


@pytest.mark.parametrize("outputs", ["abcdefgh", "aabbccdd", "aaaabbcd", "ab"])
def test_every_question_is_used_once_and_never_for_its_own_answer(outputs):
    pairs = wanted(*outputs)
    for seed in range(5):
        questions = [pair.instruction for pair in _other_questions(pairs, seed)]
        own = {pair.instruction: pair.output for pair in pairs}
        assert all(own[question] != pair.output for question, pair in zip(questions, pairs, strict=True))
        assert sorted(questions) == sorted(own)
    assert _other_questions(pairs, 1) == _other_questions(pairs, 1)


def test_an_answer_of_most_pairs_leaves_few_other_questions():
    pairs = wanted(*"aaaaab")
    questions = [pair.instruction for pair in _other_questions(pairs, 0)]
    assert questions[:5] == ["message 5"] * 5
    assert questions[5] in {f"message {i}" for i in range(5)}


def test_the_question_control_needs_two_answers(model, tokenizer):
    with pytest.raises(ValueError, match="at least two different answers"):
        question_control(model, tokenizer, wanted("a", "a"))


def test_the_question_control_compares_losses_per_token(model, tokenizer, eval_pairs):
    pairs = eval_pairs[:2]  # two pairs can only swap their questions
    control = question_control(model, tokenizer, pairs)

    def loss(question, answer):
        encoded = encode(Pair(instruction=question.instruction, output=answer.output), tokenizer)
        with torch.no_grad():
            whole = {name: torch.tensor([values]) for name, values in encoded.items()}
            return model(**whole).loss.item(), sum(label != -100 for label in encoded["labels"])

    def mean(losses):
        return sum(loss * tokens for loss, tokens in losses) / sum(tokens for _, tokens in losses)

    own = mean([loss(pair, pair) for pair in pairs])
    other = mean([loss(pairs[1], pairs[0]), loss(pairs[0], pairs[1])])
    assert (control.own.loss, control.other.loss) == pytest.approx((own, other), rel=1e-4)
    assert control.gain == pytest.approx(other - own, abs=1e-3)


def test_the_question_control_is_zero_where_the_question_cannot_matter(model, tokenizer, few):
    """With one question for all, the other question is the same."""
    same = [Pair(instruction="Write a record.", output=pair.output) for pair in few]
    control = question_control(model, tokenizer, same, 256)
    assert control.gain == pytest.approx(0, abs=1e-4)
    assert control.interval[0] <= 1e-3


def test_a_base_already_prefers_answers_that_repeat_their_question(model, tokenizer, few):
    """This is why an adapter is compared with its base, and not with zero."""
    control = question_control(model, tokenizer, few, 256)
    assert control.interval[0] > 0
    assert question_control(model, tokenizer, few, 256, own=control.own).gain == control.gain


def test_the_interval_of_the_gain_is_that_of_a_mean_where_all_answers_have_one_length():
    own = HeldOut((10.0, 12.0, 8.0, 10.0), (2, 2, 2, 2))
    other = HeldOut((14.0, 13.0, 14.0, 13.0), (2, 2, 2, 2))
    saved = torch.tensor([2.0, 0.5, 3.0, 1.5])  # nats per token
    reach = 1.96 * (saved.std() / 2).item()
    control = QuestionControl(own, other)
    assert control.gain == pytest.approx(1.75)
    assert control.interval == pytest.approx((1.75 - reach, 1.75 + reach))


def test_a_long_question_with_a_long_answer_is_measured_and_a_pair_too_long_is_not(model, tokenizer):
    pairs = [
        Pair(instruction="very " * 100, output="short"),
        Pair(instruction="short", output="long " * 100),
        Pair(instruction="a", output="b"),
    ]
    longest = max(len(encode(pair, tokenizer)["input_ids"]) for pair in pairs)
    both = Pair(instruction=pairs[0].instruction, output=pairs[1].output)
    with pytest.raises(PairsError):
        encode(both, tokenizer, longest)
    assert any(_other_questions(pairs, seed)[1].instruction == both.instruction for seed in range(2))
    for seed in range(2):
        assert math.isfinite(question_control(model, tokenizer, pairs, longest, seed).gain)
    assert recall(model, tokenizer, pairs, 3, longest).of == 3
    with pytest.raises(PairsError):
        question_control(model, tokenizer, pairs, longest - 1)


def fake_losses(monkeypatch, loss):
    """Make `held_out` return `loss(pair)` nats for every pair, and two tokens."""

    def held_out(model, tokenizer, pairs, max_length):
        return HeldOut(tuple(map(loss, pairs)), tuple(2 for _ in pairs))

    monkeypatch.setattr("loralab.measure.held_out", held_out)


def test_recall_counts_own_answers_that_are_first_among_k(monkeypatch):
    pairs = wanted(*"abcdefghij")
    own = {pair.instruction: pair.output for pair in pairs}
    asked = []

    def loss(pair):
        asked.append(pair)
        known = pair.instruction in ("message 0", "message 3")
        return 1.0 if known == (own[pair.instruction] == pair.output) else 2.0

    fake_losses(monkeypatch, loss)
    assert recall(None, None, pairs, k=4) == Share(2, 10)
    for pair in pairs:
        texts = [other.output for other in asked if other.instruction == pair.instruction]
        assert len(texts) == len(set(texts)) == 4
        assert pair.output in texts


@pytest.mark.parametrize("loss", [1.0, math.nan, math.inf])
def test_a_model_that_cannot_tell_answers_apart_recalls_none(monkeypatch, loss):
    fake_losses(monkeypatch, lambda pair: loss)
    assert recall(None, None, wanted(*"abcdefgh")) == Share(0, 8)


def test_recall_needs_enough_different_answers():
    with pytest.raises(ValueError, match="8 different answers are needed"):
        recall(None, None, wanted(*"abcdabcdabcd"))


def test_recall_of_a_question_that_cannot_matter_is_near_chance(model, tokenizer, few):
    same = [Pair(instruction="Write a record.", output=pair.output) for pair in few]
    low, high = recall(model, tokenizer, same, 8, 256).interval
    assert low <= 1 / 8 <= high


def test_the_untrained_base_answers_nothing_right(model, tokenizer, few):
    found = score_answers(model, tokenizer, few[:8])
    assert (found.exact, found.count) == (0, 8)
