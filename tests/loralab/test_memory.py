from dataclasses import asdict

import pytest
from transformers import GPT2Config, Phi3Config, Qwen2Config

from loralab.memory import METHODS, Untraceable, _traced, estimate
from loralab.quantized import NF4_BITS
from loralab.shapes import ATTENTION
from tests.conftest import CONFIGS

# GB for LoRA, QLoRA and QLoRA after the up-cast at r = 16 on q, k, v, o, 512 tokens per text: traced independently
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


@pytest.mark.parametrize(("method", "checkpointing"), [("lora", False), ("full", True)])
def test_depth_is_added_in_proportion(method, checkpointing):
    source, lora = str(CONFIGS / "smollm2-135m"), (16, ATTENTION, True) if method == "lora" else None
    whole = max(sum(peak) for peak in _traced(source, 30, lora, 1, 256, checkpointing))
    memory = of("smollm2-135m", method, length=256, checkpointing=checkpointing)
    assert memory.activations + memory.logits == pytest.approx(whole, rel=0.01)


@pytest.mark.parametrize(
    ("config", "targets"), [(GPT2Config(), ("c_attn", "c_proj", "c_fc")), (Phi3Config(), ("qkv_proj", "o_proj"))]
)
def test_other_kinds_of_layers_are_counted(tmp_path, config, targets):
    config.save_pretrained(tmp_path)
    named, every = (estimate(str(tmp_path), "qlora", targets=t, length=64) for t in (targets, "all-linear"))
    assert every.adapter >= named.adapter > 0
    assert every.weights < estimate(str(tmp_path), targets=targets, length=64).weights


def test_sizes_that_do_not_go_together_are_one_line(tmp_path):
    Qwen2Config(hidden_size=64, num_attention_heads=6, num_key_value_heads=4).save_pretrained(tmp_path)
    with pytest.raises(Untraceable, match="cannot be traced without its weights: .+"):
        estimate(str(tmp_path), length=64)


def test_all_linear_is_what_peft_means_by_it():
    source = str(CONFIGS / "qwen2.5-0.5b")
    assert estimate(source, targets="all-linear") == estimate(source)


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
