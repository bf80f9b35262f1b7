"""What the memory benchmarks do, as far as a machine without a GPU goes."""

import math
import sys

import bitsandbytes as bnb
import pytest
import torch
from rich.console import Console

from benchmarks import memory_cpu, memory_gpu
from benchmarks.shaped import random_base, train_steps
from loralab.fit import Settings, fit
from loralab.measure import parameter_counts

SMALL = Settings("qlora", 4, "qv", 2, 32)


@pytest.fixture(scope="module")
def source():
    return fit("embedded", length=32).source


@pytest.mark.parametrize("method", ["lora", "qlora", "full"])
def test_a_random_base_has_the_true_shape_and_trains(method, source):
    model = random_base(source, method, "cpu", torch.bfloat16)
    small = [m for m in model.modules() if isinstance(m, bnb.nn.Linear4bit)]
    assert len(small) == (7 * model.config.num_hidden_layers if method == "qlora" else 0)
    assert all(m.weight.bnb_quantized for m in small)
    assert parameter_counts(model)[1] == fit("embedded", "full", length=32).parameters
    assert model.get_output_embeddings().weight.dtype == (torch.float32 if method == "full" else torch.bfloat16)
    losses = train_steps(model, method, 4, "qv", 2, 32, True, torch.bfloat16)
    assert len(losses) == 3 and all(map(math.isfinite, losses))


def test_what_a_training_allocates_is_what_the_estimate_says(source):
    settings = Settings("lora", 16, "all", 2, 64, checkpointing=False)
    counted = memory_cpu.allocated(source, settings)
    assert fit("embedded", "lora", batch=2, length=64, checkpointing=False).memory.total == pytest.approx(
        counted, rel=0.03
    )


def test_a_row_of_the_gpu_benchmark_compares_what_fitted_and_names_what_failed():
    trained = memory_gpu.trained("embedded", SMALL, "cpu", torch.bfloat16)
    assert len(trained["losses"]) == sum(memory_gpu.ACCUMULATE) and trained["tokens_per_second"] > 0
    estimate = fit("embedded", "qlora", 4, "qv", 2, 32).memory.total
    peaks = {"allocated": estimate / 1.1, "reserved": estimate, "context": 0}
    fitted = memory_gpu.row("embedded", SMALL, {"fitted": True} | trained | peaks)
    assert fitted["deviation_percent"] == pytest.approx(10)
    full = memory_gpu.row("embedded", SMALL, {"fitted": False} | peaks)
    failed = memory_gpu.row("embedded", SMALL, {"fitted": None, "error": "ValueError: no"})
    assert full["deviation_percent"] is failed["deviation_percent"] is None
    console = Console(record=True, width=200)
    console.print(memory_gpu.table([fitted, full, failed]))
    text = console.export_text()
    assert "+10.0 %" in text and "failed" in text and "ValueError: no" in text


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_it_says_so_in_one_line(monkeypatch):
    monkeypatch.setattr(sys, "argv", ["memory_gpu"])
    with pytest.raises(SystemExit, match="^there is no GPU here; [^\n]*$"):
        memory_gpu.main()
