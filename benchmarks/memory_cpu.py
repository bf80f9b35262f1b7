"""The memory estimate against trainings that really run, on a CPU: random weights of true shapes, bf16 as on a GPU.

Two measures, each in a process of its own: what torch's allocator had handed out at the peak, counted by torch's
profiler, is what the estimate estimates; by how much the process grew includes what libraries take for themselves. Run
as `python -m benchmarks.memory_cpu`; writes `benchmarks/results/memory_cpu.json`.
"""

from __future__ import annotations

import argparse
import json
import os
from dataclasses import asdict, replace

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import psutil
import torch
from tqdm.auto import tqdm

from benchmarks.measured import in_a_process, peak_allocated, save
from benchmarks.shaped import random_base, train_steps
from loralab.fit import Settings, fit
from loralab.measure import peak_memory, reset_peak_memory

CASES = [
    ("smollm2-135m", Settings("lora", 16, "all", 1, 256)),
    ("smollm2-135m", Settings("lora", 64, "qkvo", 2, 128, checkpointing=False)),
    ("smollm2-135m", Settings("qlora", 16, "all", 1, 256)),
    ("smollm2-135m", Settings("qlora", 16, "all", 1, 128, checkpointing=False)),
    ("smollm2-135m", Settings("full", 16, "all", 1, 128)),
    ("qwen2.5-0.5b", Settings("lora", 16, "all", 1, 128)),
    ("qwen2.5-0.5b", Settings("qlora", 16, "qkvo", 1, 128, checkpointing=False)),
]


def allocated(source: str, settings: Settings) -> int:
    """Return the peak of the bytes allocated by torch during a training run."""
    return peak_allocated(lambda: train(source, settings))


def resident(source: str, settings: Settings) -> int:
    """Return by how many bytes this process grew, at its peak, during a training run."""
    train(fit("embedded", length=64).source, replace(settings, length=64))  # what libraries take once
    before = psutil.Process().memory_info().rss
    reset_peak_memory()
    train(source, settings)
    return peak_memory() - before


def train(source: str, settings: Settings) -> None:
    model = random_base(source, settings.method, "cpu", torch.bfloat16)
    how = (settings.rank, settings.targets, settings.batch, settings.length, settings.checkpointing)
    train_steps(model, settings.method, *how, torch.bfloat16)


MEASURES = {"allocated": allocated, "resident": resident}
# Freed tensors go back to the system at once: otherwise resident memory would show what malloc keeps.
RETURN_FREED = {"MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_ARENA_MAX": "1"}


def measured(measure: str, model: str, settings: Settings) -> int:
    case = json.dumps([measure, model, asdict(settings)])
    return in_a_process("benchmarks.memory_cpu", "--case", case, **RETURN_FREED)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--case", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.case:
        # Gradients of random weights come near 0, where a CPU is many times as slow. The switch is the whole process's.
        torch.set_flush_denormal(True)
        measure, model, settings = json.loads(arguments.case)
        print(MEASURES[measure](fit(model, length=64).source, Settings(**settings)))
        return
    rows = []
    for model, settings in tqdm(CASES, unit="case"):
        estimate = fit(model, gpu=24, **asdict(settings)).memory.total
        found = {measure: measured(measure, model, settings) for measure in MEASURES}
        deviation = {f"{name}_percent": 100 * (estimate / value - 1) for name, value in found.items()}
        rows.append({"model": model, **asdict(settings), "estimate": estimate, **found, **deviation})
        tqdm.write(
            f"{model}, {settings}: estimate {estimate / 1e9:.3f} GB, allocated {found['allocated'] / 1e9:.3f} "
            f"({deviation['allocated_percent']:+.1f} %), resident {found['resident'] / 1e9:.3f} "
            f"({deviation['resident_percent']:+.1f} %)"
        )
        save("memory_cpu", {"cases": rows})


if __name__ == "__main__":
    main()
