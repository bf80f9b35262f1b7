"""Which number format a machine should train in."""

from __future__ import annotations

from dataclasses import dataclass

import torch


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


def precision(capability: tuple[int, int] | None = None) -> Precision:
    """CPU: an fp32 base. GPU of compute capability 8.0 or more: bf16. Older GPUs, such as the T4 (7.5): fp16.

    A CPU that multiplies in bf16 (AVX512-BF16, AMX) trains in it, by autocast as on a GPU, and measures in fp32.
    `capability` stands in for the GPU's own (used by tests). `torch.cuda.is_bf16_supported()` is not
    asked: it is true on a T4, where bf16 is emulated and slow.
    """
    if capability is None:
        if not torch.cuda.is_available():
            return _of_this_cpu()
        capability = torch.cuda.get_device_capability()
    number = ".".join(map(str, capability))
    if capability >= (8, 0):
        reason = f"GPU with compute capability {number}: bf16"
        return Precision("cuda", torch.bfloat16, torch.bfloat16, reason)
    reason = f"GPU with compute capability {number}, no native bf16: fp16"
    return Precision("cuda", torch.float16, torch.float16, reason)


def _of_this_cpu() -> Precision:
    abilities = getattr(torch.cpu, "get_capabilities", dict)()  # an older torch does not tell
    if abilities.get("avx512_bf16") or abilities.get("amx_bf16"):
        reason = "no GPU: fp32 on the CPU, with products in bf16 while training, which this CPU has instructions for"
        return Precision("cpu", torch.float32, torch.bfloat16, reason)
    return Precision("cpu", torch.float32, torch.float32, "no GPU: fp32 on the CPU")
