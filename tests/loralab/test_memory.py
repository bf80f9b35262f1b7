from dataclasses import asdict

import pytest

from loralab.memory import METHODS, NF4_BITS, _traced, estimate
from loralab.shapes import ATTENTION
from tests.conftest import CONFIGS

# GB for LoRA, QLoRA and QLoRA after the up-cast at r = 16 on q, k, v, o, 512 tokens a text: traced independently
# with torch's memory tracker at full depth or from 2 and 4 layers.
TRACED = {
    ("smollm2-135m", 4, False): (3.54, 3.39, 3.44),
    ("smollm2-135m", 1, True): (0.61, 0.46, 0.51),
    ("qwen2.5-0.5b", 4, False): (7.99, 7.46, 7.74),
    ("qwen2.5-0.5b", 4, True): (4.84, 4.32, 4.59),
    ("qwen2.5-0.5b", 1, True): (1.97, 1.45, 1.72),
    ("qwen2.5-7b", 4, False): (33.83, 24.28, 26.47),
    ("qwen2.5-7b", 1, True): (16.40, 6.85, 9.03),
    ("llama-2-13b", 1, True): (26.76, 8.07, 8.73),
    ("qwen2.5-14b", 1, True): (31.04, 11.57, 14.69),
}


def of(name, method="lora", **settings):
    return estimate(str(CONFIGS / name), method, targets=ATTENTION, **settings)


@pytest.mark.parametrize(("setting", "wanted"), TRACED.items(), ids=lambda value: "-".join(map(str, value)))
def test_estimates_agree_with_an_independent_trace(setting, wanted):
    name, batch, checkpointing = setting
    options = {"batch": batch, "checkpointing": checkpointing}
    found = [of(name, m, upcast=u, **options).total / 1e9 for m, u in [("lora", 0), ("qlora", 0), ("qlora", 1)]]
    assert found == pytest.approx(wanted, rel=0.04)


def test_depth_is_added_in_proportion():
    source = str(CONFIGS / "smollm2-135m")
    lora = (16, ATTENTION, True)
    whole = sum(_traced(source, 30, lora, 2, 128, False))
    memory = of("smollm2-135m", batch=2, length=128, checkpointing=False)
    assert memory.activations + memory.logits == pytest.approx(whole, rel=0.01)


def test_parts_that_are_exact():
    lora, qlora, full = (of("qwen2.5-0.5b", method) for method in METHODS)
    assert lora.weights == 2 * 494_032_768
    assert lora.adapter == lora.gradients == lora.optimizer / 2 == 4 * 2_162_688
    assert qlora.weights == 357_826_560 * NF4_BITS / 8 + 2 * 136_206_208
    assert full.weights + full.gradients + full.optimizer == 16 * 494_032_768
    assert sum(asdict(qlora).values()) == qlora.total


def test_what_costs_and_what_saves():
    usual = of("qwen2.5-0.5b").total
    assert of("qwen2.5-0.5b", batch=2).total > usual
    assert of("qwen2.5-0.5b", length=1024).total > usual
    assert of("qwen2.5-0.5b", rank=64).total > usual
    assert of("qwen2.5-0.5b", checkpointing=False).total > usual
    deep = {"batch": 4, "checkpointing": False}
    assert of("llama-2-7b", dropout=0.0, **deep).total < of("llama-2-7b", **deep).total


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"rank": 0}, "rank is 0"),
        ({"batch": 0}, "batch is 0"),
        ({"length": 40_000}, "reads 32768 tokens at most"),
        ({"method": "prefix"}, "unknown method 'prefix'"),
        ({"targets": ("query",)}, "no layer query; it has down_proj"),
    ],
)
def test_impossible_settings_are_one_clear_line(settings, message):
    with pytest.raises(ValueError, match=message):
        estimate(str(CONFIGS / "qwen2.5-0.5b"), **settings)
