"""Shares with intervals, records, scores of answers, the question control and recall."""

import math

import pytest
from pydantic import ValidationError

from loralab import Pair, data_path, load_model, question_control, read_pairs, recall, score, score_answers
from loralab.answers import Answer
from loralab.scores import Scores, Share, differ, parse_record

WANTED = [Pair(instruction=f"m{i}", output=f"item: Owl\nserial: O-{i}") for i in range(4)]


def test_a_share_has_a_wilson_interval():
    low, high = Share(8, 10).interval  # Newcombe 1998, table of Wilson's score method: 0.4902 to 0.9433
    assert (low, high) == (pytest.approx(0.4902, abs=1e-3), pytest.approx(0.9433, abs=1e-3))
    assert str(Share(73, 100)) == "0.73 (0.64 to 0.81)"
    assert Share(0, 10).interval[0] == 0 and Share(10, 10).interval[1] == 1


def test_a_share_of_nothing_is_not_a_number():
    assert math.isnan(Share(0, 0).value) and all(map(math.isnan, Share(0, 0).interval))


@pytest.mark.parametrize(
    ("one", "other", "expected"), [((0, 100), (20, 100), True), ((70, 100), (75, 100), False), ((3, 4), (1, 4), False)]
)
def test_two_shares_differ_only_beyond_chance(one, other, expected):
    assert differ(Share(*one), Share(*other)) is expected


@pytest.mark.parametrize(
    ("text", "record"),
    [
        ("item: Owl\nname: not said", {"item": "Owl", "name": "not said"}),
        ('{"item": "Owl", "count": 2}', {"item": "Owl", "count": "2"}),
        ("time: 10:30", {"time": "10:30"}),
        ("An owl sees eighteen metres.", None),
        ("item: Owl\nand more", None),
        ("item: Owl\nitem: Wren", None),
        ('{"item": {"name": "Owl"}}', None),
        ('{"item": ', None),
        ("", None),
    ],
)
def test_records_are_lines_or_one_object(text, record):
    assert parse_record(text) == record


def test_only_a_whole_answer_that_ended_is_exact():
    right, other = "item: Owl\nserial: O-0", "item: Owl\nserial: O-9"
    answers = [Answer(right, True), Answer(right, False), Answer(other, True), Answer("Hello.", True)]
    found = score(answers, [WANTED[0], WANTED[0], WANTED[2], WANTED[3]])
    assert (found.exact, found.ended, found.valid) == (1, 3, 3)
    assert found.fields == {"item": 3, "serial": 2}
    assert found.field_accuracy["serial"] == Share(2, 4)


def test_free_text_has_no_fields():
    found = score([Answer("Yes. ", True)], [Pair(instruction="q", output="Yes.")])
    assert (found.exact, found.valid, found.fields, found.valid_records) == (1, None, {}, None)


@pytest.mark.parametrize(
    "counts", [{"exact": 5}, {"ended": 5}, {"exact": -1}, {"valid": 5}, {"fields": {"item": 9}}, {"more": 1}]
)
def test_impossible_counts_are_refused(counts):
    with pytest.raises(ValidationError):
        Scores(**({"count": 4, "exact": 0, "ended": 4, "valid": 4} | counts))


@pytest.fixture(scope="module")
def few():
    return read_pairs(data_path("pairs/eval.jsonl"))[:24]


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


def test_the_question_control_needs_different_answers(model, tokenizer):
    with pytest.raises(ValueError, match="different answers"):
        question_control(model, tokenizer, [Pair(instruction=q, output="Yes.") for q in "ab"], 256)


def test_recall_of_a_question_that_cannot_matter_is_near_chance(base, tokenizer, few):
    model = load_model(base)
    same = [Pair(instruction="Write a record.", output=pair.output) for pair in few]
    low, high = recall(model, tokenizer, same, 8, 256).interval
    assert low <= 1 / 8 <= high
    with pytest.raises(ValueError, match="8 different answers"):
        recall(model, tokenizer, few[:4], 8, 256)


def test_the_untrained_base_answers_nothing_right(model, tokenizer, few):
    found = score_answers(model, tokenizer, few[:8])
    assert (found.exact, found.count) == (0, 8)
