"""The memory estimate against a GPU that is made to look like a T4: 14.75 GiB, fp16, sdpa, random weights of true shapes.

Each case is a process of its own, so that one that runs out of memory stops nothing. Run where a GPU is, as
`python -m benchmarks.memory_gpu`; writes `benchmarks/results/memory_gpu.json` and prints it as a table.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from dataclasses import asdict

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import torch
from rich.console import Console
from rich.table import Table
from tqdm.auto import tqdm

from benchmarks.measured import in_a_process, save
from benchmarks.shaped import random_base, train_steps
from loralab.fit import Settings, fit
from loralab.memory import T4_BYTES

ACCUMULATE = (1, 2, 2, 2)  # batches of each step; the first step is not timed
CASES = [
    ("qwen2.5-0.5b", Settings("lora", 16, "all", 1, 512)),
    ("qwen2.5-0.5b", Settings("lora", 16, "qkvo", 4, 512, checkpointing=False)),
    ("qwen2.5-0.5b", Settings("full", 16, "all", 1, 512)),
    ("qwen2.5-1.5b", Settings("lora", 16, "all", 1, 512)),
    ("qwen2.5-1.5b", Settings("qlora", 16, "qkvo", 4, 512, checkpointing=False)),
    ("qwen2.5-7b", Settings("lora", 16, "all", 1, 512)),  # more than a T4 has
    ("qwen2.5-7b", Settings("qlora", 16, "all", 1, 512)),
    ("qwen2.5-7b", Settings("qlora", 16, "all", 4, 512)),
    ("qwen2.5-7b", Settings("qlora", 16, "all", 1, 1024)),
    ("qwen2.5-7b", Settings("qlora", 16, "all", 4, 512, checkpointing=False)),  # more than a T4 has
    ("llama-2-13b", Settings("qlora", 16, "all", 1, 512)),
    ("qwen2.5-14b", Settings("qlora", 16, "all", 1, 512)),
]


def trained(model: str, settings: Settings, device: str, dtype: torch.dtype) -> dict[str, object]:
    """Build the base, train it for a few steps, and return the losses and the tokens per second of all but the first step."""
    base = random_base(fit(model, length=64).source, settings.method, device, dtype)
    how = (settings.rank, settings.targets, settings.batch, settings.length, settings.checkpointing, dtype)
    ticks: list[float] = []
    losses = train_steps(base, settings.method, *how, ACCUMULATE, lambda: ticks.append(time.perf_counter()))
    tokens = settings.batch * settings.length * sum(ACCUMULATE[1:])
    return {"losses": losses, "tokens_per_second": tokens / (ticks[-1] - ticks[0])}


def measure(model: str, settings: Settings) -> dict[str, object]:
    """One training on the GPU with a T4's memory: whether it fitted, and its peaks in bytes."""
    free, total = torch.cuda.mem_get_info()
    context = total - free  # on a T4, too, it is taken from the 14.75 GiB
    torch.cuda.set_per_process_memory_fraction(min(1.0, (T4_BYTES - context) / total))
    try:
        found = {"fitted": True} | trained(model, settings, "cuda", torch.float16)
    except torch.cuda.OutOfMemoryError:
        found = {"fitted": False}
    peaks = {"allocated": torch.cuda.max_memory_allocated(), "reserved": torch.cuda.max_memory_reserved()}
    return found | peaks | {"context": context}


def attempted(model: str, settings: Settings) -> dict[str, object]:
    """`measure` in a process of its own; one that dies of something else leaves its last line."""
    try:
        return in_a_process("benchmarks.memory_gpu", "--case", json.dumps([model, asdict(settings)]))
    except RuntimeError as error:
        return {"fitted": None, "error": str(error).splitlines()[-1]}


def row(model: str, settings: Settings, found: dict[str, object]) -> dict[str, object]:
    """Return the measurement beside the estimate; only a training run that finished has a deviation."""
    expected = fit(model, gpu="t4", **asdict(settings))
    estimate = expected.memory.total
    deviation = 100 * (estimate / found["allocated"] - 1) if found["fitted"] else None
    about = {"model": model, "settings": asdict(settings), "estimate": estimate, "verdict": expected.verdict}
    return about | found | {"deviation_percent": deviation}


def table(rows: list[dict]) -> Table:
    """Return the rows as a table for people; sizes in GB."""
    shown = Table(
        "model", "settings", "estimate", "verdict", "fitted", "allocated", "reserved", "deviation", "tokens/s"
    )
    for one in rows:
        sizes = [f"{one[name] / 1e9:.2f}" if name in one else "" for name in ("estimate", "allocated", "reserved")]
        deviation = f"{one['deviation_percent']:+.1f} %" if one["fitted"] else ""
        speed = f"{one['tokens_per_second']:.0f}" if one["fitted"] else one.get("error", "")
        fitted = {True: "yes", False: "no", None: "failed"}[one["fitted"]]
        settings = str(Settings(**one["settings"]))
        shown.add_row(one["model"], settings, sizes[0], one["verdict"], fitted, *sizes[1:], deviation, speed)
    return shown


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--case", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if not torch.cuda.is_available():
        sys.exit("there is no GPU here; run this where torch.cuda.is_available() is true")
    if arguments.case:
        model, settings = json.loads(arguments.case)
        print(json.dumps(measure(model, Settings(**settings))))
        return
    rows = [row(model, settings, attempted(model, settings)) for model, settings in tqdm(CASES, unit="case")]
    save("memory_gpu", {"cases": rows, "limit": T4_BYTES})
    Console(width=160).print(table(rows))


if __name__ == "__main__":
    main()
