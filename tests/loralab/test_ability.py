"""What the gate measures of answers: faults in samples, and the causes that fail a run."""

import pytest

from loralab.ability import (
    Sample,
    fault_causes,
    faults,
    ignores_question,
    measure,
    no_better_than_chance,
    repeats,
    wrong_answers,
)
from loralab.answers import Answer
from loralab.measure import HeldOut
from loralab.scores import QuestionControl, Scores, Share


def sample(after, *, before="old", question="What?", wanted="right", ended=True):
    return Sample(question, wanted, before, after, ended)


def control(gain, noise=0.0):
    """A control on 40 answers of one token: half of them save `noise` more than `gain`, half of them less."""
    signs = [1, -1] * 20
    return QuestionControl(
        HeldOut((1.0,) * 40, (1,) * 40), HeldOut(tuple(1 + gain + noise * s for s in signs), (1,) * 40)
    )


@pytest.mark.parametrize(("recompute", "asked"), [(None, 20), (0, 20), (4, 20), (22, 22)])
def test_each_answer_is_generated_once(recompute, asked, model, tokenizer, eval_pairs, monkeypatch):
    generated = []

    def generate(model, tokenizer, questions, max_new_tokens):
        generated.extend(questions)
        return [Answer(pair.output, True) for pair in questions]

    monkeypatch.setattr("loralab.answers.generate_answers", generate)
    monkeypatch.setattr("loralab.ability.perplexity", lambda *_: 2.0)
    monkeypatch.setattr("loralab.ability.question_control", lambda *_: None)
    found = measure(model, tokenizer, eval_pairs[:24], 256, recompute)
    assert generated == eval_pairs[:asked]
    assert (len(found.answers), found.scores.exact) == (20, recompute or 20)


@pytest.mark.parametrize(
    "text",
    ["twelve twelve twelve", "Press and Twelve twelve twelve t", "a b\na b a b c", "to the hour. " * 3],
)
def test_a_word_or_phrase_three_times_in_a_row_is_a_repetition(text):
    assert repeats(text)


@pytest.mark.parametrize(
    "text", ["", "twelve twelve", "0 0 0 0", "fault: mount\nitem: Wren\nnext: post", "a b a c a b a c", "- - - -"]
)
def test_other_texts_have_no_repetition(text):
    assert not repeats(text)


def test_faults_are_counted_by_name():
    samples = [sample(" "), sample("What? "), sample("no no no"), sample("fine", ended=False), sample("fine")]
    assert faults(samples) == {
        "empty": 1,
        "the prompt again": 1,
        "with a phrase repeated": 1,
        "without an end": 1,
    }


def test_a_repetition_that_the_right_answer_has_too_is_none():
    assert faults([sample("ha ha ha", wanted="Ha ha ha!  ha ha ha")]) == {}


def test_an_answer_that_begins_with_the_question_is_an_echo_unless_the_right_one_does():
    assert faults([sample("What is it? A Wren.", question="What is it?")]) == {"the prompt again": 1}
    assert faults([sample("Print this.\nDone", question="Print this.", wanted="Print this. Done")]) == {}
    assert faults([sample("What is a Wren?", question="What is it?")]) == {}


def test_one_fault_in_ten_is_no_cause_and_two_are():
    good = [sample("fine")] * 8
    assert not fault_causes([*good, sample("fine"), sample("")])
    (cause,) = fault_causes([*good, sample(""), sample("")])
    assert cause.startswith("2 of 10 answers are empty")


def test_answers_of_the_base_itself_are_a_cause():
    (cause,) = fault_causes([sample("old")] * 3)
    assert "the base's own" in cause


def test_a_question_that_matters_beyond_chance_is_no_cause():
    assert not ignores_question(control(0.1), control(0.5, noise=0.5))
    assert not ignores_question(None, control(0.5))
    assert not ignores_question(control(1.0), control(0.7))  # a base that reads questions well
    assert not ignores_question(control(0.1), None)  # too many equal answers to measure it


@pytest.mark.parametrize(
    ("before", "after"), [(control(-0.1), control(0.1, noise=1.0)), (control(0.3), control(0.2)), (None, control(0.0))]
)
def test_a_question_that_does_not_matter_is_a_cause(before, after):
    (cause,) = ignores_question(before, after)
    assert cause.startswith("it ignores the question")


def test_exact_match_must_be_clearly_above_the_base():
    base = Scores(count=20, exact=0, ended=20, valid=0)
    assert not wrong_answers(base, Scores(count=20, exact=8, ended=20, valid=20))
    (cause,) = wrong_answers(base, Scores(count=20, exact=2, ended=20, valid=20))
    assert "the form of a record" in cause
    (cause,) = wrong_answers(base, base)
    assert "read the samples" in cause


def test_recall_must_be_above_chance():
    assert not no_better_than_chance(Share(20, 32), 8)
    assert not no_better_than_chance(None, 8)
    assert "by chance in 0.12" in no_better_than_chance(Share(6, 32), 8)[0]
