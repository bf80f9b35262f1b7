"""How the cost of a training run grows with the number of pairs, their length and the rank, with the fitted exponents.

`loralab.train` on the embedded base, on random tokens of which the last two thirds are learned. Time is that of a
training, the median of the rounds; memory is what torch's allocator had handed out at the peak, counted by its
profiler, weights included. Writes `benchmarks/results/cost.json`.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
from typing import Any

import numpy as np
import torch
from peft import get_peft_model
from tqdm.auto import tqdm
from transformers.utils.logging import disable_progress_bar

from benchmarks.measured import peak_allocated, save
from loralab import RunRecord, choose_base, load_model, load_tokenizer, train
from loralab.pairs import IGNORED
from loralab.shapes import ATTENTION, lora_config

USUAL = {"pairs": 96, "length": 96, "rank": 16}
GRID = {"pairs": (24, 48, 96, 192, 384), "length": (32, 64, 128, 256, 512), "rank": (1, 4, 16, 64, 256)}
BATCH = 8
BASE = choose_base("embedded")


def run(pairs: int, length: int, rank: int) -> RunRecord:
    """One epoch over so many texts of that length, with an adapter of that rank on q, k, v, o."""
    model = load_model(BASE)
    config = lora_config(model, ATTENTION, r=rank, lora_alpha=2 * rank)
    generator = torch.Generator().manual_seed(0)
    tokens = torch.randint(5, model.config.vocab_size, (pairs, length), generator=generator).tolist()
    prompt = length // 3
    texts = [{"input_ids": text, "labels": [IGNORED] * prompt + text[prompt:]} for text in tokens]
    with tempfile.TemporaryDirectory() as folder:
        return train(
            get_peft_model(model, config),
            load_tokenizer(BASE),
            (),
            folder,
            BASE,
            encoded=texts,
            epochs=1,
            batch_size=BATCH,
            quiet=True,
        )


def exponent(sizes: tuple[int, ...], values: list[float]) -> float:
    """Return the b of value = a size^b, by least squares on logarithms: 0 does not grow, 1 grows in proportion."""
    return float(np.polyfit(np.log(sizes), np.log(values), 1)[0])


def measure(rounds: int) -> dict[str, Any]:
    """For each of pairs, length and rank: seconds and bytes at each size, the others as usual, and their exponents."""
    disable_progress_bar()  # of every model that is loaded
    run(**USUAL)  # the first training of a process is slower
    found = {}
    with tqdm(total=sum(map(len, GRID.values())), unit="size") as bar:
        for what, sizes in GRID.items():
            seconds, spread, memory = [], [], []
            for size in sizes:
                times = [run(**USUAL | {what: size}).seconds for _ in range(rounds)]
                seconds.append(statistics.median(times))
                spread.append([min(times), max(times)])
                memory.append(peak_allocated(lambda size=size, what=what: run(**USUAL | {what: size})))
                bar.update()
            found[what] = {
                "sizes": sizes,
                "seconds": seconds,
                "range": spread,
                "bytes": memory,
                "time_exponent": exponent(sizes, seconds),
                "memory_exponent": exponent(sizes, memory),
            }
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=3)
    found = measure(parser.parse_args().rounds)
    save("cost", {"grown": found, "usual": USUAL, "batch": BATCH})
    for what, of in found.items():
        print(f"{what}: time grows with its power {of['time_exponent']:.2f}, memory {of['memory_exponent']:.2f}")


if __name__ == "__main__":
    main()
