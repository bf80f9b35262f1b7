"""Which number format a machine should train in."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache

import torch
from torch.nn.functional import linear

# Narrower models train in fp32 on every CPU, so that the embedded base (width 256) gives the same numbers on all of them.
WIDE = 512
TOKENS = 512  # of the matmul that is timed
# Below this, casting the activations costs more than the matmuls save. Instruction sets do not tell: with AVX512-BF16, one
# CPU multiplies in bf16 at half the rate of fp32, and another at four times that rate.
WORTHWHILE = 1.5


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

    def autocasting(self) -> torch.autocast:
        """Return a context in which a base held in `dtype` multiplies in `compute`; it changes perplexities by about 0.1 %."""
        return torch.autocast(self.device, self.compute, enabled=self.compute != self.dtype)


def precision(capability: tuple[int, int] | None = None, width: int = 0) -> Precision:
    """Return fp32 for a CPU, bf16 for a GPU of compute capability 8.0 or more, fp16 for older ones such as the T4 (7.5).

    A CPU trains models of at least `WIDE` hidden units (`width`, 0 if unknown) with bf16 matmuls, by autocast, if these are
    faster there by a factor of at least `WORTHWHILE`, which is measured once.
    `capability` replaces the GPU's own in tests. `torch.cuda.is_bf16_supported()` is not asked: it is true on a T4, where
    bf16 is emulated and slow.
    """
    if capability is None:
        if not torch.cuda.is_available():
            return _of_this_cpu(width)
        capability = torch.cuda.get_device_capability()
    number = ".".join(map(str, capability))
    dtype, what = (torch.bfloat16, ": bf16") if capability >= (8, 0) else (torch.float16, ", no native bf16: fp16")
    return Precision("cuda", dtype, dtype, f"GPU with compute capability {number}{what}")


def precision_for(model: torch.nn.Module) -> Precision:
    """Return the precision in which this machine trains `model`."""
    return precision(width=getattr(getattr(model, "config", None), "hidden_size", 0))


@contextmanager
def weights_cast_once(model: torch.nn.Module, *, frozen_only: bool = False) -> Iterator[None]:
    """Within it, linear layers hold the weights that autocast would cast in the dtype that it casts to; afterwards as before.

    The numbers are those of autocast, which casts a weight again in every forward pass: a third of the time in which
    SmolLM2-135M generates answers on a CPU with AMX. A GPU measures without autocast, so nothing is cast there. With
    `frozen_only` weights that are trained stay as they are. A layer gets a parameter of its own, so that an embedding that
    shares its weight with the output layer stays in fp32.
    """
    hardware = precision_for(model)
    linear = [module for module in model.modules() if type(module) is torch.nn.Linear]
    kept = {
        module: module.weight
        for module in linear
        if module.weight.dtype == hardware.dtype != hardware.compute
        and not (frozen_only and module.weight.requires_grad)
    }
    for module, weight in kept.items():
        module.weight = torch.nn.Parameter(weight.detach().to(hardware.compute), requires_grad=False)
    try:
        yield
    finally:
        for module, weight in kept.items():
            module.weight = weight


def _of_this_cpu(width: int) -> Precision:
    if width >= WIDE and bf16_speed_up() >= WORTHWHILE:
        reason = "no GPU: fp32 on the CPU, with bf16 matmuls while training (they are faster on this CPU)"
        return Precision("cpu", torch.float32, torch.bfloat16, reason)
    return Precision("cpu", torch.float32, torch.float32, "no GPU: fp32 on the CPU")


@cache
def bf16_speed_up() -> float:
    """Return how many times as fast as in fp32 this CPU multiplies [`TOKENS`, `WIDE`] by [`WIDE`, `WIDE`] in bf16.

    The casts of the activations count. It is measured on one thread and in processor time, so that other processes do not
    disturb it, and takes a few hundredths of a second.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        # A product can take twice as long with matrices at other addresses, so several are timed.
        seconds = {dtype: min(_seconds(dtype) for _ in range(6)) for dtype in (torch.float32, torch.bfloat16)}
    finally:
        torch.set_num_threads(threads)
    return seconds[torch.float32] / seconds[torch.bfloat16]


@torch.inference_mode()
def _seconds(dtype: torch.dtype) -> float:
    """Return the processor time of the fastest of some products of new fp32 values and weights of this dtype."""
    values, weights = torch.randn(TOKENS, WIDE), torch.randn(WIDE, WIDE).to(dtype)
    fastest = float("inf")
    for _ in range(6):
        started = time.thread_time()
        linear(values.to(dtype), weights).to(values.dtype)
        fastest = min(fastest, time.thread_time() - started)
    return fastest
