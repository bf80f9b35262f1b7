"""Batched greedy answers."""

import pytest

from loralab import answer, generate_answers, load_model
from loralab.answers import Answer
from tests.conftest import with_adapter

QUESTIONS = [
    "What does `len` do?",
    "My Heron, serial H-8297, wobbles on its mount, and the pond monitor beside it works as it should. Regards, West",
    "Sort a list.",
    "Read a file.",
    "In what form does my data package come?",
]


@pytest.fixture(scope="module")
def one_by_one(base, tokenizer):
    model = load_model(base)
    return [generate_answers(model, tokenizer, [question], 24)[0] for question in QUESTIONS]


@pytest.mark.parametrize("batch_size", [2, 5])
def test_answers_do_not_depend_on_the_batch_and_keep_their_order(batch_size, model, tokenizer, one_by_one):
    assert generate_answers(model, tokenizer, QUESTIONS, 24, batch_size) == one_by_one
    assert generate_answers(model, tokenizer, QUESTIONS[::-1], 24, batch_size) == one_by_one[::-1]
    assert {answer.ended for answer in one_by_one} == {True, False}  # the batch has both kinds


def test_an_adapter_that_does_nothing_yet_changes_no_answer(model, tokenizer, one_by_one):
    assert generate_answers(with_adapter(model), tokenizer, QUESTIONS, 24) == one_by_one


def test_an_answer_that_is_cut_off_has_not_ended(model, tokenizer):
    (cut,) = generate_answers(model, tokenizer, ["Explain what a module is, at length."], 2)
    assert not cut.ended
    assert "<|im_end|>" not in cut.text


def test_nothing_asked_is_nothing_answered(model, tokenizer):
    assert generate_answers(model, tokenizer, []) == []


def test_an_answer_has_ended_if_its_end_is_within_the_limit(model, tokenizer):
    question = "In what form does my data package come?"
    (whole,) = generate_answers(model, tokenizer, [question], 80)
    tokens = len(tokenizer(whole.text, add_special_tokens=False)["input_ids"])
    assert whole.ended
    assert generate_answers(model, tokenizer, [question], tokens + 1) == [whole]
    assert generate_answers(model, tokenizer, [question], tokens) == [Answer(whole.text, ended=False)]
    assert answer(model, tokenizer, question, tokens) == whole.text


def test_an_answer_has_no_special_tokens(model, tokenizer):
    text = answer(model, tokenizer, "What does `len` do?")
    assert text
    assert "<|im" not in text


def test_decoding_is_greedy_whatever_the_base_prefers(model, tokenizer, one_by_one):
    model.generation_config.update(do_sample=True, temperature=1.5, repetition_penalty=5.0)
    assert generate_answers(model, tokenizer, QUESTIONS, 24) == one_by_one


def test_model_and_tokenizer_are_left_as_they_were(model, tokenizer):
    adapted = with_adapter(model).train()
    generate_answers(adapted, tokenizer, QUESTIONS[:2], 4)
    assert adapted.training
    assert all(p.requires_grad == ("lora_" in name) for name, p in adapted.named_parameters())
    assert tokenizer.padding_side == "right"
