"""Batches for training: the same loss and the same gradients as in plain batches, with fewer logits."""

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import DataCollatorForSeq2Seq

from loralab import encode_all
from loralab.collate import AnswersAtTheEnd
from loralab.measure import token_losses
from loralab.pairs import IGNORED


@pytest.fixture
def examples(train_pairs, tokenizer, base):
    return encode_all(train_pairs[:6], tokenizer, base.max_length)


def loss_and_gradients(model, batch):
    model.zero_grad()
    loss = model(**batch).loss
    loss.backward()
    return loss.item(), torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])


def test_loss_and_gradients_are_those_of_a_plain_batch(examples, model, tokenizer):
    adapted = get_peft_model(model, LoraConfig(r=4, target_modules=["q_proj", "v_proj"], init_lora_weights=False))
    plain = loss_and_gradients(adapted, DataCollatorForSeq2Seq(tokenizer, label_pad_token_id=IGNORED)(examples))
    fast = loss_and_gradients(adapted, AnswersAtTheEnd(tokenizer)(examples))
    assert fast[0] == pytest.approx(plain[0], rel=1e-5)
    assert torch.linalg.norm(fast[1] - plain[1]) < 1e-4 * torch.linalg.norm(plain[1])


def test_no_logits_are_made_for_what_stands_before_the_longest_answer(examples, model, tokenizer):
    batch = AnswersAtTheEnd(tokenizer)(examples)
    longest = max(sum(label != IGNORED for label in example["labels"]) for example in examples)
    assert model(**batch).logits.shape[1] == batch["labels"].shape[1] == longest + 1
    assert batch["input_ids"].shape[1] == max(len(example["input_ids"]) for example in examples)


def test_labels_may_begin_or_end_anywhere(model, tokenizer):
    """Whole texts (a domain), and answers whose end is not learned (a pitfall) are encoded by a notebook itself."""
    whole = {"input_ids": [5, 6, 7, 8], "labels": [5, 6, 7, 8]}
    no_end = {"input_ids": [5, 6, 7, 8, 9], "labels": [IGNORED, IGNORED, 7, 8, IGNORED]}
    batch = AnswersAtTheEnd(tokenizer)([whole, no_end])
    pad = tokenizer.pad_token_id
    assert batch["input_ids"].tolist() == [[pad, 5, 6, 7, 8], [5, 6, 7, 8, 9]]
    assert batch["position_ids"].tolist() == [[0, 0, 1, 2, 3], [0, 1, 2, 3, 4]]
    assert batch["labels"].tolist() == [[IGNORED, 6, 7, 8], [IGNORED, 7, 8, IGNORED]]
    assert torch.isfinite(model(**batch).loss)
    assert torch.isfinite(model(**AnswersAtTheEnd(tokenizer)([whole])).loss)


def test_a_whole_text_has_the_loss_that_it_has_alone(model, tokenizer):
    """The padding before a shorter text predicts none of its tokens."""
    texts = [{"input_ids": list(range(5, 5 + n)), "labels": list(range(5, 5 + n))} for n in (4, 9)]
    together, alone = token_losses(model, tokenizer, texts), [token_losses(model, tokenizer, [one])[0] for one in texts]
    assert [len(losses) for losses in together] == [3, 8]
    for losses, wanted in zip(together, alone, strict=True):
        assert losses == pytest.approx(wanted, rel=1e-4)
    plain = DataCollatorForSeq2Seq(tokenizer, label_pad_token_id=IGNORED)(texts)
    assert model(**AnswersAtTheEnd(tokenizer)(texts)).loss.item() == pytest.approx(model(**plain).loss.item(), rel=1e-5)
