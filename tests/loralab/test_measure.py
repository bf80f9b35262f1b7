"""Perplexity and the other measurements."""

import math
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from loralab import adapter_bytes, encode, held_out, parameter_counts, peak_memory, reset_peak_memory
from loralab.measure import HeldOut, same_ppl
from tests.conftest import with_adapter


def test_perplexity_is_the_exponential_of_summed_loss_over_answer_tokens():
    assert HeldOut(nll=(10.0, 60.0), tokens=(10, 20)).ppl == pytest.approx(math.exp(70 / 30))


def test_held_out_equals_one_pair_at_a_time_and_does_not_depend_on_the_batch(model, tokenizer, eval_pairs):
    pairs = eval_pairs[:7]
    measured = held_out(model, tokenizer, pairs, batch_size=3)
    for pair, nll, tokens in zip(pairs, measured.nll, measured.tokens, strict=True):
        encoded = encode(pair, tokenizer)
        labels = torch.tensor(encoded["labels"])
        with torch.no_grad():
            logits = model(input_ids=torch.tensor([encoded["input_ids"]])).logits[0]
        chosen = logits.log_softmax(-1)[:-1].gather(1, labels[1:].clamp(min=0)[:, None])[:, 0]
        assert nll == pytest.approx(-chosen[labels[1:] != -100].sum().item(), rel=1e-4)
        assert tokens == (labels != -100).sum()


def test_measuring_leaves_the_mode_of_the_model_alone(model, tokenizer, eval_pairs):
    model.train()
    held_out(model, tokenizer, eval_pairs[:2])
    assert model.training


def test_parameter_counts_agree_with_peft(model):
    adapted = with_adapter(model)
    assert parameter_counts(adapted) == adapted.get_nb_trainable_parameters()


def test_adapter_bytes_is_the_size_of_the_file(model, tmp_path):
    with_adapter(model).save_pretrained(tmp_path)
    assert adapter_bytes(tmp_path) == (tmp_path / "adapter_model.safetensors").stat().st_size


def test_peak_memory_sees_an_allocation():
    reset_peak_memory()
    before = peak_memory()
    block = torch.ones(50_000_000)  # 200 MB
    assert peak_memory() - before > 0.9 * block.nbytes


def test_peak_memory_on_macos_is_the_peak_that_the_system_knows(monkeypatch):
    resource = pytest.importorskip("resource")  # Windows has none

    def no_such_file(*args):
        raise FileNotFoundError

    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(Path, "read_text", no_such_file)
    monkeypatch.setattr(sys, "platform", "darwin")
    monkeypatch.setattr(resource, "getrusage", lambda who: SimpleNamespace(ru_maxrss=2**40))
    assert peak_memory() == 2**40


@pytest.mark.parametrize(
    ("reported", "recomputed", "same"),
    [(103.0, 100.0, True), (106.0, 100.0, False), (1.041, 1.04, True), (1.0, 1.04, False), (1.09, 1.04, False)],
)
def test_perplexities_are_compared_by_their_losses(reported, recomputed, same):
    assert same_ppl(reported, recomputed) is same


@pytest.mark.parametrize("broken", [math.nan, math.inf, 0.0, -1.0])
def test_a_broken_perplexity_equals_none(broken):
    assert not same_ppl(broken, 2.0)
    assert not same_ppl(2.0, broken)
    assert not same_ppl(broken, broken)
