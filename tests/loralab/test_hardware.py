"""Which number format a machine trains in, and weights that are cast to it once."""

from __future__ import annotations

from contextlib import nullcontext

import pytest
import torch

from loralab import Precision, load_model, perplexity, precision, train
from loralab.hardware import bf16_speed_up, weights_cast_once
from tests.conftest import with_adapter


@pytest.mark.parametrize(
    ("capability", "dtype"),
    [((7, 5), torch.float16), ((7, 0), torch.float16), ((8, 0), torch.bfloat16), ((9, 0), torch.bfloat16)],
)
def test_precision_follows_the_compute_capability_alone(monkeypatch, capability, dtype):
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda *_: True)  # as it says on a T4, where it is emulated
    assert precision(capability).dtype == dtype


@pytest.mark.parametrize(
    ("speed_up", "width", "bf16"), [(4.0, 576, True), (4.0, 256, False), (4.0, 0, False), (0.5, 576, False)]
)
def test_a_cpu_holds_fp32_and_trains_wide_models_in_bf16_if_that_is_faster(monkeypatch, speed_up, width, bf16):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr("loralab.hardware.bf16_speed_up", lambda: speed_up)
    assert precision(width=width).dtype == torch.float32
    assert precision(width=width).autocast == {"bf16": bf16, "fp16": False}


def test_the_rate_of_bf16_is_measured_on_one_thread_and_leaves_the_threads_as_they_were(monkeypatch):
    threads, used = torch.get_num_threads(), set()
    seconds = {torch.float32: [9.0, 3.0], torch.bfloat16: [2.0, 8.0]}  # by turns

    def measured(dtype):
        used.add(torch.get_num_threads())
        seconds[dtype].reverse()
        return seconds[dtype][0]

    monkeypatch.setattr("loralab.hardware._seconds", measured)
    assert bf16_speed_up.__wrapped__() == 1.5
    assert used == {1}
    assert torch.get_num_threads() == threads


@pytest.fixture
def bf16(monkeypatch):
    """A CPU on which bf16 pays for models of any width."""
    monkeypatch.setattr("loralab.hardware.bf16_speed_up", lambda: 4.0)
    monkeypatch.setattr("loralab.hardware.WIDE", 0)


def weights(model):
    return {name: (id(one), one.dtype, one.requires_grad) for name, one in model.named_parameters()}


@pytest.mark.parametrize("frozen_only", [True, False])
def test_frozen_weights_are_cast_within_and_are_the_same_objects_afterwards(model, bf16, frozen_only):
    model = with_adapter(model)
    before = weights(model)
    with pytest.raises(KeyboardInterrupt), weights_cast_once(model, frozen_only=frozen_only):
        layer = model.base_model.model.model.layers[0].self_attn.q_proj
        assert layer.base_layer.weight.dtype == torch.bfloat16
        assert (layer.lora_A["default"].weight.dtype == torch.float32) == frozen_only
        assert model.get_output_embeddings().weight.dtype == torch.bfloat16
        assert model.get_input_embeddings().weight.dtype == torch.float32  # shared with it otherwise
        raise KeyboardInterrupt
    assert weights(model) == before


def test_where_fp32_is_faster_nothing_is_cast(model, monkeypatch):
    monkeypatch.setattr("loralab.hardware.bf16_speed_up", lambda: 0.5)
    before = weights(model)
    with weights_cast_once(model):
        assert weights(model) == before


def test_a_model_in_fp32_is_measured_in_fp32_where_others_are_in_bf16(model, tokenizer, eval_pairs, monkeypatch):
    """Chapter 1 loads its base in fp32, on a GPU, too."""
    wanted = perplexity(model, tokenizer, eval_pairs[:2])
    gpu = Precision("cpu", torch.bfloat16, torch.bfloat16, "as a GPU")
    monkeypatch.setattr("loralab.hardware.precision", lambda **_: gpu)
    assert perplexity(model, tokenizer, eval_pairs[:2]) == wanted


def test_training_and_measuring_give_the_numbers_of_autocast(
    base, tokenizer, train_pairs, eval_pairs, bf16, tmp_path, monkeypatch
):
    def run(name):
        torch.manual_seed(0)
        model = with_adapter(load_model(base))
        settings = {"epochs": 1, "eval_pairs": eval_pairs[:8], "eval_answers": 2, "quiet": True}
        record = train(model, tokenizer, train_pairs[:16], tmp_path / name, base, **settings)
        return record.losses, record.ppl_before, record.ppl_after, record.scores_after

    cast = run("cast")
    for room in ("measure", "training"):
        monkeypatch.setattr(f"loralab.{room}.weights_cast_once", lambda *_, **__: nullcontext())
    assert run("autocast") == cast


def test_a_model_that_is_trained_twice_multiplies_in_bf16_both_times(
    model, base, tokenizer, train_pairs, bf16, tmp_path, monkeypatch
):
    model, seen = with_adapter(model), []
    head = model.get_output_embeddings()
    head.register_forward_hook(lambda module, inputs, output: seen.append(output.dtype))
    for name in ("first", "second"):
        train(model, tokenizer, train_pairs[:8], tmp_path / name, base, epochs=1, quiet=True)
    assert seen == [torch.bfloat16] * 4
