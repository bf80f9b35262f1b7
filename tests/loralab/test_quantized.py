"""Bases whose weights are stored quantised: their bytes, and what is not quantised."""

import json

import pytest
from safetensors.torch import load_file
from transformers import BitsAndBytesConfig, Qwen2Config

from loralab import load_model
from loralab.errors import LoralabError
from loralab.fit import fit
from loralab.quantized import stored_quantization
from tests.conftest import CONFIGS

QWEN = CONFIGS / "qwen2.5-7b"


@pytest.fixture
def stored(tmp_path_factory):
    """The memory of a course's model if its weights are stored so."""

    def make(quantization, source=QWEN, **settings):
        folder = tmp_path_factory.mktemp("stored")
        content = json.loads((source / "config.json").read_text()) | {"quantization_config": quantization}
        (folder / "config.json").write_text(json.dumps(content))
        return fit(str(folder), length=64, **settings)

    return make


@pytest.mark.parametrize(
    "settings",
    [
        {"load_in_4bit": True, "bnb_4bit_quant_type": "nf4", "bnb_4bit_use_double_quant": True},
        {"load_in_4bit": True, "bnb_4bit_quant_type": "fp4"},
        {"load_in_8bit": True},
    ],
    ids=["double", "single", "8-bit"],
)
def test_the_bytes_are_those_that_bitsandbytes_writes(settings, base, tmp_path):
    load_model(base, quantization=BitsAndBytesConfig(**settings)).save_pretrained(tmp_path)
    written = load_file(tmp_path / "model.safetensors")
    scales = {name for name in written if "absmax" in name or "SCB" in name}
    packed = {name for name, tensor in written.items() if not tensor.dtype.is_floating_point} | scales
    rest = sum(t.numel() for name, t in written.items() if name not in packed and "quant_map" not in name)
    exact = sum(written[name].nbytes for name in packed)
    assert fit(str(tmp_path), length=64).memory.weights - 2 * rest == pytest.approx(exact, rel=0.005)


def linear_of_qwen():
    """Inputs and outputs of the linear layers of a block: 28 of them, 3584 wide, 512 in k and v."""
    return [(3584, 3584), (3584, 512), (3584, 512), (3584, 3584), (3584, 18944), (3584, 18944), (18944, 3584)]


@pytest.mark.parametrize("method", ["gptq", "awq"])
def test_integers_in_groups_have_a_scale_and_a_zero_point_per_group(method, stored):
    found = stored({"quant_method": method, "bits": 4, "group_size": 128})
    layers = 28 * sum(
        4 * (rows * columns // 8)
        + 4 * (rows // 128) * (columns // 8)
        + 2 * (rows // 128) * columns  # int32, int32, fp16
        for rows, columns in linear_of_qwen()
    )
    rest = 7_615_616_512 - 28 * sum(rows * columns for rows, columns in linear_of_qwen())
    assert found.memory.weights == layers + 2 * rest
    assert (
        str(found.stored)
        == f"{method.upper()} 4-bit, groups of 128, 4.16 bits per weight; in 16 bits: the output layer"
    )


def test_a_quantised_base_is_trained_as_it_is_stored_with_either_method(stored):
    nf4 = {"load_in_4bit": True, "bnb_4bit_quant_type": "nf4", "bnb_4bit_use_double_quant": True}
    lora, qlora = (stored(nf4, method=method).memory for method in ("lora", "qlora"))
    assert lora == qlora == fit("qwen2.5-7b", "qlora", length=64).memory
    assert stored(nf4, gpu=6).leanest.settings.method == "lora"
    assert stored(nf4, upcast=True).memory.weights > lora.weights
    with pytest.raises(LoralabError, match="its weights are quantised .* cannot be trained: give --method lora"):
        stored(nf4, method="full")


@pytest.mark.parametrize(
    ("quantization", "layers", "words"),
    [
        (
            {"load_in_4bit": True, "llm_int8_skip_modules": ["lm_head", "model.layers.3.mlp"]},
            {"q_proj", "k_proj", "v_proj", "o_proj"},
            "lm_head, model.layers.3.mlp",
        ),
        (
            {"quant_method": "awq", "modules_to_not_convert": ["down_proj"]},
            "all but down_proj",
            "output layer, down_proj",
        ),
        (
            {"quant_method": "gptq", "modules_in_block_to_quantize": [["self_attn.q_proj"], ["mlp.up_proj"]]},
            {"q_proj", "up_proj"},
            "only self_attn.q_proj",
        ),
        (
            {"quant_method": "fp8", "weight_block_size": [128, 128]},
            "all",
            "FP8, blocks of 128 × 128, 8 bits per weight",
        ),
        (
            {"quant_method": "gptq", "bits": 8, "lm_head": True, "group_size": -1},
            "all and lm_head",
            "GPTQ 8-bit, a scale per row",
        ),
        (
            {
                "quant_method": "compressed-tensors",
                "config_groups": {
                    "group_0": {"targets": ["Linear"], "weights": {"num_bits": 8, "strategy": "channel"}}
                },
                "ignore": ["lm_head", "re:.*gate_proj"],
            },
            "all but gate_proj",
            "compressed-tensors 8-bit",
        ),
    ],
    ids=["bitsandbytes", "awq", "gptq", "fp8", "gptq with its output layer", "compressed-tensors"],
)
def test_modules_that_are_not_converted_stay_in_16_bits(quantization, layers, words):
    found = stored_quantization(Qwen2Config(quantization_config=quantization))
    names = [
        "self_attn.q_proj",
        "self_attn.k_proj",
        "self_attn.v_proj",
        "self_attn.o_proj",
        "mlp.gate_proj",
        "mlp.up_proj",
        "mlp.down_proj",
    ]
    every = {name.partition(".")[2] for name in names}
    if isinstance(layers, str):
        layers = every - {layers.removeprefix("all but ")} | {name for name in ("lm_head",) if name in layers}
    converted = {name.partition(".")[2] for name in names if found.converts(f"model.layers.3.{name}", False)}
    assert converted | ({"lm_head"} if found.converts("lm_head", True) else set()) == layers
    assert words in str(found)


def test_a_tied_output_layer_is_never_quantised(stored):
    small = CONFIGS / "smollm2-135m"
    named = {"load_in_8bit": True, "llm_int8_skip_modules": ["nothing"]}
    assert stored(named, small).memory.weights == stored({"load_in_8bit": True}, small).memory.weights
    untied = stored(named).memory.weights
    assert untied < stored({"load_in_8bit": True}).memory.weights


@pytest.mark.parametrize(
    ("quantization", "message"),
    [
        ({"quant_method": "vptq"}, "quantised by vptq in a way that cannot be counted here"),
        ({"quant_method": "bitsandbytes"}, "quantised by bitsandbytes in a way"),
        ({"quant_method": "compressed-tensors"}, "quantised by compressed-tensors in a way"),
        ({"quant_method": "gptq", "bits": "four"}, "the quantization_config of its config.json cannot be used: bits: "),
        ({"quant_method": "awq", "bits": 0}, "cannot be used: bits: "),
        ({"quant_method": "awq", "modules_to_not_convert": ["*"]}, "is no regular expression"),
    ],
)
def test_what_cannot_be_counted_is_one_line(quantization, message, stored):
    with pytest.raises(LoralabError, match=message) as caught:
        stored(quantization)
    assert "\n" not in str(caught.value)


def test_a_config_without_quantisation_stores_none():
    assert stored_quantization(Qwen2Config()) is None
