"""The self-checks of exercise 4: a right answer passes, and each wrong one gets the message meant for it."""

import math
from types import SimpleNamespace

import nbformat
import pytest
import torch
from bitsandbytes.functional import dequantize_4bit
from transformers import AutoConfig, AutoModelForCausalLM, BitsAndBytesConfig

from grader.exercises import EXERCISES
from loralab import load_model, nf4, precision
from loralab.check import ex4 as check
from loralab.selfcheck import NotYet
from tests.conftest import CONFIGS


@pytest.fixture(scope="module")
def solved():
    """What the solution's tasks define."""
    scope = {"SEED": 0}
    for cell in nbformat.read(EXERCISES["ex4_qlora"].solution, as_version=4).cells:
        if cell.id == "imports" or cell.metadata.get("nbgrader", {}).get("solution"):
            exec(cell.source, scope)
    return SimpleNamespace(**scope)


@pytest.fixture(scope="module")
def four_bit(base):
    return load_model(base, quantization=nf4())


def refusal(function, *arguments) -> str:
    with pytest.raises(NotYet) as problem:
        function(*arguments)
    return str(problem.value)


ANYTHING = [None, 5, "text", [], {}, torch.ones(2), object(), math.nan]  # whatever it is, the check ends in a message


def test_the_solution_passes_every_check(solved, base, capsys):
    four_bit = check.load(solved.load_four_bit, base, precision())
    check.sizes(solved.bits_per_weight, solved.model_bytes, base, four_bit)
    check.merge(solved.merge_weight)
    told = capsys.readouterr().out
    assert "not yet" not in told and "Task 3 is done." in told


@pytest.mark.parametrize(
    ("settings", "why"),
    [
        (None, "the model is not in 4 bits"),
        ({"bnb_4bit_use_double_quant": True}, "the quantisation type is 'fp4'"),
        ({"bnb_4bit_quant_type": "nf4"}, "the scales are in 32 bits"),
        ({"bnb_4bit_compute_dtype": torch.float16}, "it computes in torch.float16, not torch.float32"),
    ],
)
def test_other_settings_than_qloras_are_named(base, settings, why):
    def load(base, hardware):
        quantization = settings and BitsAndBytesConfig(load_in_4bit=True, **settings)
        return AutoModelForCausalLM.from_pretrained(base.source, quantization_config=quantization)

    hardware = SimpleNamespace(dtype=torch.float32)
    assert why in refusal(check.load, load, base, hardware)


BITS = {
    "no scales": (lambda block, double=None: 4, "for one 32-bit scale per 64 weights you get 4 bits"),
    "always 32 bits": (lambda block, double=None: 4 + 32 / block, "that is without it"),
    "8 bits alone": (lambda block, double=None: 4 + (8 if double else 32) / block, "a scale of their own"),
    "a sum of parts": (lambda block, double=None: 4 + 32 / block + 8 / (double or math.inf), "per weight: its 4"),
}


@pytest.mark.parametrize("name", BITS)
def test_wrong_bits_get_the_hint_for_them(solved, base, four_bit, name):
    wrong, hint = BITS[name]
    assert hint in refusal(check.sizes, wrong, solved.model_bytes, base, four_bit)


def test_wrong_bytes_get_the_hint_for_them(solved, base, four_bit):
    def refused(change):
        return refusal(check.sizes, solved.bits_per_weight, change, base, four_bit)

    def tied(config, bits):
        return solved.model_bytes(AutoConfig.from_pretrained(CONFIGS / "llama-2-7b", tie_word_embeddings=True), bits)

    def as_many_values_as_queries(config, bits):
        config.num_key_value_heads = config.num_attention_heads
        return solved.model_bytes(config, bits)

    assert "those are bits" in refused(lambda config, bits: 8 * solved.model_bytes(config, bits))
    assert "tie_word_embeddings" in refused(tied)
    told = refused(as_many_values_as_queries)
    assert "right    Llama-2-7B has 13.48 GB" in told and "how many heads do k and v have" in told


def dequantised(linear):
    return dequantize_4bit(linear.weight.data, linear.weight.quant_state).float()


MERGED = {
    "no scale": (lambda linear, a, b, scale: dequantised(linear) + b @ a, "multiplied by alpha / r"),
    "the base alone": (lambda linear, a, b, scale: dequantised(linear), "the dequantised matrix alone"),
    "the change alone": (lambda linear, a, b, scale: scale * b @ a, "the adapter's change alone"),
    "subtracted": (lambda linear, a, b, scale: dequantised(linear) - scale * b @ a, "a merge adds"),
    "16 bits": (lambda linear, a, b, scale: (dequantised(linear) + scale * b @ a).bfloat16(), "in torch.bfloat16"),
    "transposed": (lambda linear, a, b, scale: (dequantised(linear) + scale * b @ a).T, "of shape (64, 96)"),
    "packed": (lambda linear, a, b, scale: linear.weight.data, "two values per byte"),
    "a times b": (lambda linear, a, b, scale: dequantised(linear) + scale * a @ b, "raised RuntimeError"),
}


@pytest.mark.parametrize("name", MERGED)
def test_a_wrong_merge_gets_the_hint_for_it(name):
    wrong, hint = MERGED[name]
    assert hint in refusal(check.merge, wrong)


def test_a_merge_that_changes_the_layer_itself_is_named(solved):
    def in_place(linear, a, b, scale):
        merged = solved.merge_weight(linear, a, b, scale)
        linear.weight.data.zero_()
        return merged

    assert "the 4-bit layer itself was changed" in refusal(check.merge, in_place)


@pytest.mark.parametrize("value", ANYTHING, ids=lambda value: type(value).__name__)
def test_whatever_a_function_returns_the_check_ends_in_a_message(solved, base, four_bit, value):
    def returned(*_):
        return value

    for function, arguments in (
        (check.load, (returned, base, precision())),
        (check.sizes, (returned, returned, base, four_bit)),
        (check.sizes, (solved.bits_per_weight, returned, base, four_bit)),
        (check.merge, (returned,)),
    ):
        assert "not yet" in refusal(function, *arguments)
