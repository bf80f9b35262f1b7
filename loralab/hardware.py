"""Which number format a machine should train in."""

from __future__ import annotations

from dataclasses import dataclass

import torch

# Narrower models do not gain from bf16 matmuls on a CPU: measured on the embedded base (width 256), fp32 trains 1.07 times
# as fast with AMX, and 1.35 times as fast with AVX512-BF16 alone, whose matmuls reach half the rate of fp32 at any width.
WIDE = 512


@dataclass(frozen=True)
class Precision:
    """A device, the dtype of the frozen base on it, and the one it multiplies in while training.

    Adapter weights are fp32 everywhere.
    """

    device: str  # "cpu" or "cuda"
    dtype: torch.dtype
    compute: torch.dtype
    reason: str

    @property
    def autocast(self) -> dict[str, bool]:
        """The two switches of `transformers.TrainingArguments`."""
        return {"bf16": self.compute == torch.bfloat16, "fp16": self.compute == torch.float16}


def precision(capability: tuple[int, int] | None = None, width: int = 0) -> Precision:
    """Return fp32 for a CPU, bf16 for a GPU of compute capability 8.0 or more, fp16 for older ones such as the T4 (7.5).

    A CPU with AMX trains models of at least `WIDE` hidden units (`width`, 0 if unknown) with bf16 matmuls, by autocast.
    `capability` replaces the GPU's own in tests. `torch.cuda.is_bf16_supported()` is not asked: it is true on a T4, where
    bf16 is emulated and slow.
    """
    if capability is None:
        if not torch.cuda.is_available():
            return _of_this_cpu(width)
        capability = torch.cuda.get_device_capability()
    number = ".".join(map(str, capability))
    if capability >= (8, 0):
        reason = f"GPU with compute capability {number}: bf16"
        return Precision("cuda", torch.bfloat16, torch.bfloat16, reason)
    reason = f"GPU with compute capability {number}, no native bf16: fp16"
    return Precision("cuda", torch.float16, torch.float16, reason)


def precision_for(model: torch.nn.Module) -> Precision:
    """Return the precision in which this machine trains `model`."""
    return precision(width=getattr(model.config, "hidden_size", 0))


def _of_this_cpu(width: int) -> Precision:
    abilities: dict[str, object] = getattr(torch.cpu, "get_capabilities", dict)()  # older versions of torch lack it
    if width >= WIDE and abilities.get("amx_bf16"):
        reason = "no GPU: fp32 on the CPU, with bf16 matmuls while training (supported by this CPU)"
        return Precision("cpu", torch.float32, torch.bfloat16, reason)
    return Precision("cpu", torch.float32, torch.float32, "no GPU: fp32 on the CPU")
