"""Held-out perplexity after exercise 1's training, for three ranks and three choices of target modules.

Every run trains on the first hundred pairs for the base's own epochs and is measured on fresh held-out questions. A
rank and its targets are shown at the learning rate that suits them best, of three: chapter 4 says why. Writes
`benchmarks/results/ranks_and_targets.json` and the picture of the README.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import tempfile
from itertools import product

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import matplotlib.pyplot as plt
import torch
from peft import LoraConfig, get_peft_model
from tqdm.auto import tqdm

from benchmarks.measured import RESULTS, save
from loralab import choose_base, data_path, load_model, load_tokenizer, perplexity, read_pairs, train
from loralab.desk import draw, first_facts
from loralab.plots import COLOURS
from loralab.pool import processors, run_all
from loralab.shapes import TARGETS

NAME = "ranks_and_targets"
PICTURE = RESULTS.parents[1] / "docs" / "ranks-and-targets.png"
BASE = choose_base("embedded")
RANKS, RATES = (4, 16, 64), (1.0, 2.0, 4.0)  # rates as multiples of the base's own
GROUPS = {"qv": "q, v", "qkvo": "q, k, v, o", "all": "all linear"}
Setting = tuple[str, int, float, int]  # targets, rank, rate, seed


def perplexity_of(setting: Setting | int) -> float:
    """Perplexity on fresh questions after a training, or, of a seed alone, before any."""
    seed = setting if isinstance(setting, int) else setting[-1]
    tokenizer, model = load_tokenizer(BASE), load_model(BASE)
    if not isinstance(setting, int):
        targets, rank, rate, _ = setting
        torch.manual_seed(seed)
        config = LoraConfig(
            r=rank, lora_alpha=2 * rank, lora_dropout=0.05, target_modules=TARGETS[targets], task_type="CAUSAL_LM"
        )
        model = get_peft_model(model, config)
        pairs = read_pairs(data_path("pairs/train.jsonl"))[:100]
        with tempfile.TemporaryDirectory() as folder:
            train(model, tokenizer, pairs, folder, BASE, seed=seed, learning_rate=rate * BASE.learning_rate, quiet=True)
    return perplexity(model, tokenizer, draw(seed, 100, among=first_facts()))


def measure(seeds: int) -> dict:
    """Perplexity before training, and after it by targets, rank and rate, one value a seed."""
    jobs = [*range(seeds), *product(GROUPS, RANKS, RATES, range(seeds))]
    found = {}
    for job, outcome in tqdm(run_all(perplexity_of, jobs, processors()), total=len(jobs), desc="runs"):
        if isinstance(outcome, Exception):
            raise outcome
        found[job] = outcome
    after = {
        group: {
            rank: {rate: [found[group, rank, rate, seed] for seed in range(seeds)] for rate in RATES} for rank in RANKS
        }
        for group in GROUPS
    }
    return {"before": [found[seed] for seed in range(seeds)], "after": after, "seeds": seeds}


def best(by_rate: dict[str, list[float]]) -> tuple[str, list[float]]:
    """The rate whose mean over the seeds is lowest, and its perplexities."""
    return min(by_rate.items(), key=lambda entry: statistics.geometric_mean(entry[1]))


def draw_picture(results: dict) -> None:
    """Perplexity against rank, a line for each choice of targets, with the range over the seeds."""
    axes = plt.subplots(figsize=(8, 4.2), layout="constrained")[1]
    for (group, by_rank), colour, marker in zip(results["after"].items(), COLOURS, "osD", strict=False):
        values = [best(by_rank[str(rank)])[1] for rank in RANKS]
        means = [statistics.geometric_mean(v) for v in values]
        reach = [
            [m - min(v) for m, v in zip(means, values, strict=True)],
            [max(v) - m for m, v in zip(means, values, strict=True)],
        ]
        axes.errorbar(RANKS, means, reach, color=colour, marker=marker, capsize=4, linewidth=2, label=GROUPS[group])
    before = statistics.geometric_mean(results["before"])
    axes.axhline(before, color="#888888", linestyle="--")
    axes.annotate(f"the base, before training: {before:.0f}", (RANKS[0], before), (0, -14), textcoords="offset points")
    axes.set(
        title="What 100 pairs teach the embedded base, each at its best learning rate of three",
        xlabel="rank r of the adapter",
        ylabel="perplexity on fresh questions (log scale)",
        xscale="log",
        yscale="log",
    )
    axes.set_xticks(RANKS, [str(rank) for rank in RANKS])
    ticks = (2, 5, 10, 20, 50, 100, 200)
    axes.set_yticks(ticks, [str(tick) for tick in ticks])
    axes.minorticks_off()
    axes.grid(alpha=0.3)
    axes.legend(title="adapted modules", frameon=False, loc="upper right", bbox_to_anchor=(1, 0.92))
    plt.savefig(PICTURE, dpi=160, facecolor="white")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, default=2)
    save(NAME, measure(parser.parse_args().seeds))
    results = json.loads((RESULTS / f"{NAME}.json").read_text("utf-8"))
    draw_picture(results)
    for group, by_rank in results["after"].items():
        for rank, (rate, values) in ((rank, best(by_rate)) for rank, by_rate in by_rank.items()):
            print(f"{group}, rank {rank}: {statistics.geometric_mean(values):.2f} at {rate} times the base's rate")


if __name__ == "__main__":
    main()
