"""The self-checks of exercise 4: four bits."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from bitsandbytes.functional import dequantize_4bit
from bitsandbytes.nn.modules import Linear4bit
from transformers import AutoConfig, PreTrainedModel

from ..bases import Base
from ..data import data_path
from ..fourbit import keep_unpacked
from ..hardware import Precision
from ..quantized import NF4_BITS
from ..selfcheck import SelfCheck, brief, close, same_tensor

D_OUT, D_IN, RANK, SCALING = 96, 64, 4, 2.0  # of the layer that task 3 is tried on


def load(load_four_bit: Callable[..., Any], base: Base, hardware: Precision) -> Any:
    """Check task 1 and return the model that `load_four_bit` returned, ready to be trained on a CPU as well."""
    model: Any = None
    with SelfCheck("Task 1") as check:
        model = check.call(load_four_bit, base, hardware)
        is_model = isinstance(model, PreTrainedModel)
        check.need(is_model, f"load_four_bit returned {brief(model)}", "return what from_pretrained returns")
        settings: Any = getattr(model.config, "quantization_config", None)
        check.need(
            getattr(model, "is_loaded_in_4bit", False),
            "the model is not in 4 bits",
            "which argument of BitsAndBytesConfig asks for 4 bits, and does from_pretrained get the config?",
        )
        check(
            settings.bnb_4bit_quant_type == "nf4",
            "the model is in 4 bits, with the values of NF4",
            f"the quantisation type is {settings.bnb_4bit_quant_type!r}",
            "the default is fp4; which argument names the type?",
        )
        check(
            settings.bnb_4bit_use_double_quant,
            "the scales are quantised too",
            "the scales are in 32 bits",
            "help(BitsAndBytesConfig) has an argument for double quantisation",
        )
        check(
            settings.bnb_4bit_compute_dtype == hardware.dtype,
            f"it computes in {hardware.dtype}",
            f"it computes in {settings.bnb_4bit_compute_dtype}, not {hardware.dtype}",
            "the default is float32: give hardware.dtype to the config as well",
        )
        keep_unpacked(model)  # some CPUs repack 4-bit weights in a way that training cannot use: see chapter 3
    return model


def sizes(
    bits_per_weight: Callable[..., Any], model_bytes: Callable[..., Any], base: Base, four_bit: PreTrainedModel
) -> None:
    """Check task 2: the formulas on known block sizes and models, and against the bytes of the loaded model."""
    with SelfCheck("Task 2") as check:
        single, double = check.call(bits_per_weight, 64), check.call(bits_per_weight, 64, 256)
        check(
            close(single, 4.5),
            "one 32-bit scale per 64 weights: 4.5 bits per weight",
            f"for one 32-bit scale per 64 weights you get {brief(single)} bits, not 4.5",
            "the scale's bits are shared by the weights of its block",
        )
        check(
            close(double, NF4_BITS),
            f"with double quantisation: {NF4_BITS:.3f} bits per weight",
            f"with double quantisation you get {brief(double)} bits",
            _double_hint(double),
        )
        llama = AutoConfig.from_pretrained(data_path("configs/llama-2-7b"))
        found = check.call(model_bytes, llama, 16)
        check(
            close(found, 13.476e9, 1e-3),
            "Llama-2-7B has 13.48 GB in 16 bits",
            f"for Llama-2-7B in 16 bits you get {brief(found)} bytes, not 13.48 GB",
            _size_hint(found, 13.476e9),
        )
        config = AutoConfig.from_pretrained(base.source)
        found, wanted = check.call(model_bytes, config, NF4_BITS), _counted(four_bit)
        check(
            close(found, wanted, 0.02),
            f"the formula agrees with the {wanted / 1e6:,.1f} MB that were counted in the loaded model, to 2 %",
            f"for {base.name} you get {brief(found)} bytes, but the loaded model has {wanted:,}",
            "which layers stay in 16 bits, how many heads do k and v have, and does the output layer share its weights?",
        )


def _double_hint(found: object) -> str:
    if close(found, 4.5):
        return "that is without it: `double` is not None here"
    if close(found, 4 + 8 / 64):
        return "the 8-bit scales need a scale of their own: 32 bits per `double` of them"
    return "per weight: its 4 bits, its part of an 8-bit scale, and that scale's part of a 32-bit one"


def _size_hint(found: object, wanted: float) -> str:
    if close(found, wanted * 8, 1e-2):
        return "those are bits"
    if close(found, wanted - 2 * 32_000 * 4_096, 1e-3):
        return "an output layer that does not share the embedding's weights counts as well: tie_word_embeddings"
    return "count one block, then all blocks, then the embeddings"


def _counted(model: PreTrainedModel) -> int:
    """Return the bytes of a 4-bit model: packed weights with their scales, and 2 per parameter that is not packed."""
    total = 0
    for parameter in model.parameters():
        state = getattr(parameter, "quant_state", None)
        if state is None:
            total += 2 * parameter.numel()
        else:
            total += parameter.nbytes + state.absmax.nbytes + (state.state2.absmax.nbytes if state.nested else 0)
    return total


def merge(merge_weight: Callable[..., Any]) -> None:
    """Check task 3 on a small 4-bit layer: the merged matrix gives the outputs of layer and adapter."""
    with SelfCheck("Task 3") as check:
        generator = torch.Generator().manual_seed(0)
        layer: Any = small_layer(D_OUT, D_IN)  # torch types its weight without the quant_state
        a, b = (torch.randn(shape, generator=generator) / 8 for shape in ((RANK, D_IN), (D_OUT, RANK)))
        stored = layer.weight.data.clone()
        start = dequantize_4bit(layer.weight.data, layer.weight.quant_state).float()
        change = b @ a
        found = check.call(merge_weight, layer, a, b, SCALING)
        is_matrix = isinstance(found, torch.Tensor) and found.shape == (D_OUT, D_IN)
        check.need(
            is_matrix,
            f"merge_weight returned {brief(found)}, not a tensor of shape {(D_OUT, D_IN)}",
            "the packed weights hold two values per byte: their true shape is in quant_state",
        )
        check(
            found.dtype == torch.float32,
            "the merged matrix is in 32 bits",
            f"the merged matrix is in {found.dtype}",
            "in fewer bits the sum would be rounded: dequantise, go to float32, then add",
        )
        right = same_tensor(found, start + SCALING * change)
        check(
            right,
            "its outputs are those of the 4-bit layer and the adapter",
            "its outputs are not those of the 4-bit layer and the adapter",
            _merge_hint(found.float(), start, change),
        )
        check(
            torch.equal(layer.weight.data, stored),
            "the 4-bit layer is unchanged",
            "the 4-bit layer itself was changed",
            "return a new matrix: += changes the one that is there",
        )


def small_layer(d_out: int, d_in: int, seed: int = 0) -> Linear4bit:
    """Return a linear layer of random weights in NF4 with double quantisation, on the CPU, which reads back as bf16."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        layer = Linear4bit(d_in, d_out, bias=False, compress_statistics=True, quant_type="nf4")
    return layer.to(torch.bfloat16).to("cpu")


def _merge_hint(found: torch.Tensor, start: torch.Tensor, change: torch.Tensor) -> str:
    if same_tensor(found, start + change):
        return "the adapter's output is multiplied by alpha / r before it is added"
    if same_tensor(found, start):
        return "that is the dequantised matrix alone"
    if same_tensor(found, SCALING * change):
        return "that is the adapter's change alone"
    if same_tensor(found, start - SCALING * change):
        return "a merge adds the change"
    return "dequantize_4bit needs the packed weights and their quant_state; is the change B·A, of the same shape?"
