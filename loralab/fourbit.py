"""A base in 4 bits, by bitsandbytes: the settings that the course uses, and what a CPU needs on top."""

from __future__ import annotations

from transformers import BitsAndBytesConfig, PreTrainedModel

from .hardware import Precision, precision


def nf4(hardware: Precision | None = None) -> BitsAndBytesConfig:
    """QLoRA's settings (arXiv:2305.14314): NF4 with double quantisation, computing in the machine's number format."""
    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=(hardware or precision()).dtype,
    )


def keep_unpacked(model: PreTrainedModel) -> PreTrainedModel:
    """Forbid bitsandbytes to repack the 4-bit weights of `model` for fast CPU inference. Returns the model.

    On a CPU with AVX512-BF16, the first forward in eval mode repacks each weight for good. Its product is then
    taken by a kernel without a backward pass: measured after one `model.eval()` forward, the gradients of a later
    training step are wrong without an error (bitsandbytes 0.50). On other machines this changes nothing.
    """
    for module in model.modules():
        if hasattr(module, "support_avx512bf16_for_cpu"):
            module.support_avx512bf16_for_cpu = False  # type: ignore[assignment]  # torch types attributes as tensors or modules
    return model
