"""Which number format a machine should train in."""

from __future__ import annotations

from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class Precision:
    """A device and the dtype of the frozen base on it. Adapter weights are fp32 everywhere."""

    device: str  # "cpu" or "cuda"
    dtype: torch.dtype
    reason: str

    @property
    def autocast(self) -> dict[str, bool]:
        """The two switches of `transformers.TrainingArguments`."""
        return {"bf16": self.dtype == torch.bfloat16, "fp16": self.dtype == torch.float16}


def precision(capability: tuple[int, int] | None = None) -> Precision:
    """CPU: fp32. GPU of compute capability 8.0 or more: bf16. Older GPUs, such as the T4 (7.5): fp16.

    `capability` stands in for the GPU's own (used by tests). `torch.cuda.is_bf16_supported()` is not
    asked: it is true on a T4, where bf16 is emulated and slow.
    """
    if capability is None:
        if not torch.cuda.is_available():
            return Precision("cpu", torch.float32, "no GPU: fp32 on the CPU")
        capability = torch.cuda.get_device_capability()
    number = ".".join(map(str, capability))
    if capability >= (8, 0):
        return Precision("cuda", torch.bfloat16, f"GPU with compute capability {number}: bf16")
    return Precision("cuda", torch.float16, f"GPU with compute capability {number}, no native bf16: fp16")
