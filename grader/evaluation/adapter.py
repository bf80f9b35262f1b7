"""Reading an untrusted adapter: only JSON and safetensors, every setting and every tensor accounted for."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from peft import PeftModel, get_peft_model, set_peft_model_state_dict
from safetensors import safe_open
from transformers import PreTrainedModel

from loralab import Base
from loralab.record import ADAPTER_FILE, CONFIG_FILE
from loralab.shapes import Shape, adapter_shape

from ..errors import Refused
from ..text import display_line, listed
from .adapter_settings import LoraSettings, read_settings
from .delta_w import Factors, factors, narrowest

MAX_TOLD = 120  # letters of a tensor's name, or of an error, that a message repeats
# The weakest direction of a trained change over the strongest. Measured: 0.2 at rank 4, 0.05 at 16, 0.007 at 64, and
# 0.00002 at 256, as wide as the embedded base is; where columns of B are zeros or copies 1e-7 and less.
MIN_NARROWEST = 1e-6
# Honest runs leave entries of up to 0.4, diverged ones of hundreds. Products of far larger ones overflow or cancel.
MAX_ENTRY = 2.0**16
DTYPES = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}


@dataclass(frozen=True)
class Adapter:
    """A submitted adapter that passed every check of its form."""

    settings: LoraSettings
    weights: dict[str, torch.Tensor]
    dtype: torch.dtype
    file_bytes: int

    @property
    def parameters(self) -> int:
        """How many parameters the file holds."""
        return sum(tensor.numel() for tensor in self.weights.values())

    @property
    def largest_b(self) -> float:
        """The largest absolute entry of any lora_B; zero in an adapter that was never trained."""
        return max(tensor.abs().max().item() for name, tensor in self.weights.items() if ".lora_B." in name)

    @property
    def change(self) -> Factors:
        """What it adds to the base's matrices, in doubles: products of any floats stay finite in them."""
        exact = {name: tensor.double() for name, tensor in self.weights.items()}
        return factors(exact, self.settings.lora_alpha / self.settings.r)


def read_adapter(folder: Path, base: Base) -> Adapter:
    """Read the adapter in `folder`, trained on `base`. Raises `Refused` if anything is not as it should be."""
    settings = read_settings(folder, base)
    shape = adapter_shape(base.source, settings.r, settings.targets)
    weights, dtype = _read_weights(folder / ADAPTER_FILE, shape, settings)
    for name, tensor in weights.items():
        if not torch.isfinite(tensor).all():
            raise Refused(
                f"{ADAPTER_FILE}: {name} holds NaN or infinity; the training diverged, lower its learning rate"
            )
        if tensor.abs().max() > MAX_ENTRY:
            raise Refused(
                f"{ADAPTER_FILE}: {name} has an entry of {tensor.abs().max():.2g}, far beyond any training run of this course: "
                "submit the adapter as training saved it"
            )
    adapter = Adapter(settings, weights, dtype, (folder / ADAPTER_FILE).stat().st_size)
    if adapter.largest_b > 0 and narrowest(adapter.change) < MIN_NARROWEST:
        raise Refused(
            f"{ADAPTER_FILE}: it declares rank {settings.r}, but its change is of a lower rank: columns of lora_B are "
            "zeros or copies of others; train at the rank that you submit"
        )
    return adapter


def attach(model: PreTrainedModel, adapter: Adapter) -> PeftModel:
    """Return the base with the adapter attached; `.unload()` restores the base."""
    peft_model = get_peft_model(model, adapter.settings.config())
    set_peft_model_state_dict(peft_model, adapter.weights)
    return peft_model.eval()


def _read_weights(path: Path, shape: Shape, settings: LoraSettings) -> tuple[dict[str, torch.Tensor], torch.dtype]:
    if not path.is_file():
        pickles = [
            p.name for p in sorted(path.parent.glob("*")) if p.suffix in {".bin", ".pt", ".pth", ".pkl", ".ckpt"}
        ]
        if pickles:
            raise Refused(f"{pickles[0]} is a pickle, which can run code and is never opened: save as {path.name}")
        raise Refused(
            f"no {path.name} in {path.parent.name!r}: no adapter was saved; call model.save_pretrained(folder)"
        )
    try:
        with safe_open(path, framework="pt") as file:
            slices = {name: file.get_slice(name) for name in file.keys()}  # noqa: SIM118 (not a dict)
            kind = _kind({one.get_dtype() for one in slices.values()})
            # Before a weight is read: only what an adapter has room for may take memory.
            _same_tensors({name: tuple(one.get_shape()) for name, one in slices.items()}, shape, settings)
            return {name: file.get_tensor(name).float() for name in slices}, DTYPES[kind]
    except Refused:
        raise
    except Exception as error:  # the file can be anything, and so can what its reader makes of it
        what = display_line(str(error), MAX_TOLD)
        raise Refused(
            f"{path.name} cannot be read (truncated or not safetensors: {what}); save the adapter again"
        ) from None


def _kind(kinds: set[str]) -> str:
    if len(kinds) != 1 or not kinds <= DTYPES.keys():
        raise Refused(
            f"{ADAPTER_FILE}: tensors of type {listed(sorted(kinds)) or 'none'}; "
            f"an adapter has one of {', '.join(DTYPES)}"
        )
    return next(iter(kinds))


def _same_tensors(found: dict[str, tuple[int, ...]], shape: Shape, settings: LoraSettings) -> None:
    claim = f"rank {settings.r} on {', '.join(settings.targets)}"
    missing = sorted(shape.tensors.keys() - found.keys())
    extra = sorted(found.keys() - shape.tensors.keys())
    if missing or extra:
        what = f"{missing[0]} is missing" if missing else f"{display_line(extra[0], MAX_TOLD)} is not part of it"
        more = f" (and {len(missing) + len(extra) - 1} more)" if len(missing) + len(extra) > 1 else ""
        raise Refused(f"{ADAPTER_FILE} is not the adapter that {CONFIG_FILE} describes ({claim}): {what}{more}")
    for name, expected in shape.tensors.items():
        if found[name] != expected:
            raise Refused(
                f"{ADAPTER_FILE}: {name} has shape {found[name]}, but {claim} on this base makes it {expected}"
            )
