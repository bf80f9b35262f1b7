"""How the weights of a base are stored if they are quantised: from the `quantization_config` of its config.json."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError
from transformers import PreTrainedConfig
from transformers.quantizers.quantizers_utils import should_convert_module

from .errors import LoralabError, first_problem


def _is_pattern(text: str) -> str:
    try:
        re.compile(text.removeprefix("re:"))
    except re.error as error:
        raise ValueError(f"{text!r} is no regular expression ({error})") from None
    return text


Pattern = Annotated[str, AfterValidator(_is_pattern)]  # transformers takes names of modules for patterns
Bits = Annotated[int, Field(ge=1, le=16)]
Group = Annotated[int, Field(ge=-1)]
Side = Annotated[int, Field(ge=1)]
SHOWN = 4  # names in a message
KINDS = "bitsandbytes, GPTQ, AWQ, FP8 and compressed-tensors"


@dataclass(frozen=True)
class Quantization:
    """How linear layers are stored: `bits` per weight, and `scale` bits per `group` of weights (0: per row of a layer).

    `kept` has names and patterns of modules that stay in 16 bits, and `only` those that are quantised, if not all. The
    output layer is quantised where `head` says so, and never if it shares its weights with the embedding.
    """

    name: str
    bits: float
    scale: float
    group: int
    kept: tuple[str, ...] = ()
    only: tuple[str, ...] | None = None
    head: bool = False

    def __str__(self) -> str:
        size = f"{self.bits + (self.scale / self.group if self.group else 0):.3g} bits per weight"
        if self.only is not None:
            return f"{self.name}, {size}; quantised: only {_few(self.only)}"
        kept = [*self.kept] if self.head or "lm_head" in self.kept else ["the output layer", *self.kept]
        return f"{self.name}, {size}; in 16 bits: {_few(kept) or 'embeddings and norms'}"

    def converts(self, layer: str, is_head: bool) -> bool:
        """Tell whether the linear layer of this full name is quantised."""
        wanted = self.head if is_head else self.only is None or layer.endswith(self.only)
        return bool(wanted and should_convert_module(layer, list(self.kept)))

    def bytes(self, weights: int, row: int) -> float:
        """Return the bytes of a layer of so many weights, scales included, with `row` weights per row."""
        return weights * (self.bits + self.scale / (self.group or row)) / 8


def _few(names: Sequence[str]) -> str:
    more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return ", ".join(names[:SHOWN]) + more


# QLoRA's: a packed value, an 8-bit scale per block of 64, and a 32-bit scale per 256 such scales.
NF4_SCALE = 8 + 32 / 256
NF4_BITS = 4 + NF4_SCALE / 64
NF4 = Quantization("bitsandbytes 4-bit nf4 with double quantisation", 4, NF4_SCALE, 64)


class _Weights(BaseModel, frozen=True):
    num_bits: Bits
    group_size: Group | None = None
    symmetric: bool = True
    block_structure: tuple[Side, Side] | None = None


class _Group(BaseModel):
    weights: _Weights | None = None
    targets: list[str] = Field(default_factory=list)


class _Settings(BaseModel):
    """The fields of a `quantization_config` that decide the size of the weights."""

    model_config = ConfigDict(extra="ignore")

    quant_method: str = "bitsandbytes"  # earlier versions of it wrote none
    load_in_4bit: bool = False
    load_in_8bit: bool = False
    bnb_4bit_quant_type: str = "fp4"
    bnb_4bit_use_double_quant: bool = False
    llm_int8_skip_modules: list[Pattern] | None = None
    bits: Bits = 4
    group_size: Group = 128
    lm_head: bool = False
    modules_in_block_to_quantize: list[str] | list[list[str]] | None = None
    modules_to_not_convert: list[Pattern] | None = None
    weight_block_size: tuple[Side, Side] | None = None
    config_groups: dict[str, _Group] = Field(default_factory=dict)
    ignore: list[Pattern] = Field(default_factory=list)


def stored_quantization(config: PreTrainedConfig) -> Quantization | None:
    """Return how the base with this config stores its linear layers; None if its weights are not quantised.

    Raises `LoralabError`, in one line, for a kind that cannot be counted.
    """
    found = getattr(config, "quantization_config", None) or getattr(
        config.get_text_config(), "quantization_config", None
    )
    if not found:
        return None
    content: Mapping[str, Any] = found if isinstance(found, Mapping) else found.to_dict()
    try:
        settings = _Settings.model_validate({name: value for name, value in content.items() if value is not None})
    except ValidationError as error:
        raise LoralabError(
            f"the quantization_config of its config.json cannot be used: {first_problem(error)}"
        ) from None
    reader = READERS.get(settings.quant_method)
    known = reader(settings) if reader else None
    if known is None:
        raise LoralabError(
            f"its weights are quantised by {settings.quant_method} in a way that cannot be counted here ({KINDS} can): "
            "give the model that is not quantised"
        )
    return known


def _bitsandbytes(settings: _Settings) -> Quantization | None:
    modules = _without(settings.llm_int8_skip_modules)
    if settings.load_in_8bit:
        return Quantization("bitsandbytes 8-bit, a scale per row", 8, 32, 0, **modules)
    if not settings.load_in_4bit:
        return None
    name = f"bitsandbytes 4-bit {settings.bnb_4bit_quant_type}"
    if settings.bnb_4bit_use_double_quant:
        return Quantization(f"{name} with double quantisation", 4, NF4_SCALE, 64, **modules)
    return Quantization(name, 4, 32, 64, **modules)


def _without(kept: list[str] | None) -> dict[str, Any]:
    """Return what is kept in 16 bits: the output layer if there is no list, else what the list names."""
    return {"kept": tuple(kept or ()), "head": kept is not None}


def _gptq(settings: _Settings) -> Quantization:
    listed = settings.modules_in_block_to_quantize
    only = None if listed is None else tuple(n for one in listed for n in ([one] if isinstance(one, str) else one))
    return _in_groups("GPTQ", settings, only=only, head=settings.lm_head)


def _awq(settings: _Settings) -> Quantization:
    return _in_groups("AWQ", settings, kept=tuple(settings.modules_to_not_convert or ()))


def _in_groups(name: str, settings: _Settings, **modules: Any) -> Quantization:
    """Integers with a 16-bit scale and a zero point per group."""
    group = max(settings.group_size, 0)
    shown = f"{name} {settings.bits}-bit, " + (f"groups of {group}" if group else "a scale per row")
    return Quantization(shown, settings.bits, 16 + settings.bits, group, **modules)


def _fp8(settings: _Settings) -> Quantization:
    modules = _without(settings.modules_to_not_convert)
    if settings.weight_block_size is None:
        return Quantization("FP8, a scale per row", 8, 32, 0, **modules)
    rows, columns = settings.weight_block_size
    return Quantization(f"FP8, blocks of {rows} × {columns}", 8, 32, rows * columns, **modules)


def _compressed(settings: _Settings) -> Quantization | None:
    groups = [(group.weights, group.targets) for group in settings.config_groups.values() if group.weights]
    if len({weights for weights, _ in groups}) != 1:
        return None  # layers of different sizes
    weights, _ = groups[0]
    targets = [target for _, some in groups for target in some if target != "Linear"]
    if any(target.startswith("re:") for target in targets):
        return None
    rows, columns = weights.block_structure or (1, max(weights.group_size or 0, 0))
    return Quantization(
        f"compressed-tensors {weights.num_bits}-bit",
        weights.num_bits,
        16 + (0 if weights.symmetric else weights.num_bits),
        rows * columns,
        kept=tuple(name.removeprefix("re:") for name in settings.ignore),
        only=tuple(targets) or None,
        head=True,
    )


READERS = {
    "bitsandbytes": _bitsandbytes,
    "gptq": _gptq,
    "awq": _awq,
    "fp8": _fp8,
    "fbgemm_fp8": _fp8,
    "compressed-tensors": _compressed,
}
