"""Batched greedy answers are those of one prompt at a time."""

from loralab import answer, generate_answers
from tests.conftest import with_adapter


def test_batches_change_no_answer(model, tokenizer, eval_pairs):
    asked = [pair.instruction for pair in eval_pairs[:12]]
    alone = generate_answers(model, tokenizer, asked, 24, batch_size=1)
    assert generate_answers(model, tokenizer, asked, 24, batch_size=5) == alone
    assert [one.text for one in alone] == [answer(model, tokenizer, text, 24) for text in asked]


def test_answers_come_in_the_order_of_the_questions(model, tokenizer, eval_pairs):
    asked = [pair.instruction for pair in eval_pairs[:6]]
    assert generate_answers(model, tokenizer, asked[::-1], 16) == generate_answers(model, tokenizer, asked, 16)[::-1]


def test_an_answer_that_is_cut_off_has_not_ended(model, tokenizer):
    (cut,) = generate_answers(model, tokenizer, ["Explain what a module is, at length."], 2)
    assert not cut.ended
    assert "<|im_end|>" not in cut.text


def test_the_model_is_left_as_it_was(model, tokenizer):
    adapted = with_adapter(model).train()
    generate_answers(adapted, tokenizer, ["Hello?"], 4)
    assert adapted.training
    assert all(p.requires_grad == ("lora_" in name) for name, p in adapted.named_parameters())
    assert generate_answers(adapted, tokenizer, [], 4) == []
