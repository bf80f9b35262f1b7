"""A base in 4 bits, by bitsandbytes: the settings that the course uses, and what a CPU needs on top."""

from __future__ import annotations

from collections.abc import Mapping
from enum import Enum
from typing import TYPE_CHECKING, Any

import torch
from transformers import BitsAndBytesConfig, PreTrainedModel

from .hardware import Precision, precision

if TYPE_CHECKING:
    from .record import RunRecord

# What the weights become.
FORMATS = ("load_in_4bit", "load_in_8bit", "bnb_4bit_quant_type", "bnb_4bit_use_double_quant")


def nf4(hardware: Precision | None = None) -> BitsAndBytesConfig:
    """Return QLoRA's settings (arXiv:2305.14314): NF4, double quantisation, computing in the machine's number format."""
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


def quantization_settings(model: torch.nn.Module) -> dict[str, Any]:
    """Return the quantisation of a model's weights as plain values, for the record; {} if they are not quantised."""
    found = getattr(model.config, "quantization_config", None)
    if found is None:
        return {}
    settings = dict(found) if isinstance(found, Mapping) else found.to_dict()
    settings = {name: value.value if isinstance(value, Enum) else value for name, value in settings.items()}
    plain = {name: value for name, value in settings.items() if isinstance(value, bool | int | float | str)}
    if plain.get("load_in_8bit"):  # the settings of 4 bits mean nothing there
        plain = {name: value for name, value in plain.items() if "4bit" not in name}
    return {name: value for name, value in sorted(plain.items()) if not name.startswith("_")}


def same_quantization(one: Mapping[str, Any], other: Mapping[str, Any]) -> bool:
    """Tell whether two recorded settings give the same weights; the format of the arithmetic does not count."""
    return all(one.get(name, False) == other.get(name, False) for name in FORMATS)


def recorded_quantization(record: RunRecord, hardware: Precision | None = None) -> BitsAndBytesConfig | None:
    """Return the bitsandbytes settings that a run's base was loaded with; None if it was not quantised by them.

    The arithmetic takes the number format of `hardware` (default: this machine's). Older records only say "qlora", which
    was NF4.
    """
    hardware = hardware or precision()
    settings = record.quantization
    if settings is None:
        return nf4(hardware) if record.method == "qlora" else None
    if not (settings.get("load_in_4bit") or settings.get("load_in_8bit")):
        return None
    kept = {name: settings[name] for name in FORMATS if name in settings}
    return BitsAndBytesConfig(**kept, bnb_4bit_compute_dtype=hardware.dtype)
