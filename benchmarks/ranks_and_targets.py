"""Held-out perplexity after exercise 1's training, for three ranks and three choices of target modules.

Every run trains on the first hundred pairs with the base's own settings and is measured on fresh held-out questions.
Writes `benchmarks/results/ranks_and_targets.json` and the picture of the README.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import tempfile
from pathlib import Path

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import matplotlib.pyplot as plt
import torch
from peft import LoraConfig, get_peft_model
from tqdm.auto import tqdm

from loralab import choose_base, data_path, load_model, load_tokenizer, perplexity, read_pairs, train
from loralab.desk import draw, first_facts
from loralab.plots import COLOURS
from loralab.record import hardware, now, versions

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "benchmarks" / "results" / "ranks_and_targets.json"
PICTURE = ROOT / "docs" / "ranks-and-targets.png"
RANKS = (4, 16, 64)
ATTENTION = ["q_proj", "k_proj", "v_proj", "o_proj"]
TARGETS = {
    "q, v": ["q_proj", "v_proj"],
    "q, k, v, o": ATTENTION,
    "all linear": [*ATTENTION, "gate_proj", "up_proj", "down_proj"],
}


def measure(seeds: int) -> dict:
    """Perplexity before training and after it, by targets and rank, one value a seed."""
    base = choose_base("embedded")
    tokenizer = load_tokenizer(base)
    pairs = read_pairs(data_path("pairs/train.jsonl"))[:100]
    after: dict[str, dict[int, list[float]]] = {name: {rank: [] for rank in RANKS} for name in TARGETS}
    before = []
    grid = [(seed, name, rank) for seed in range(seeds) for name in TARGETS for rank in RANKS]
    for seed, name, rank in tqdm(grid, desc="runs"):
        fresh = draw(seed, 100, among=first_facts())
        model = load_model(base)
        if len(before) <= seed:
            before.append(perplexity(model, tokenizer, fresh))
        torch.manual_seed(seed)
        config = LoraConfig(
            r=rank, lora_alpha=2 * rank, lora_dropout=0.05, target_modules=TARGETS[name], task_type="CAUSAL_LM"
        )
        model = get_peft_model(model, config)
        with tempfile.TemporaryDirectory() as folder:
            train(model, tokenizer, pairs, folder, base, seed=seed, quiet=True)
        after[name][rank].append(perplexity(model, tokenizer, fresh))
    return {
        "before": before,
        "after": after,
        "seeds": seeds,
        "hardware": hardware(),
        "versions": versions(),
        "measured": now(),
    }


def draw_picture(results: dict) -> None:
    """Perplexity against rank, a line for each choice of targets, with the range over the seeds."""
    axes = plt.subplots(figsize=(8, 4.2), layout="constrained")[1]
    for (name, by_rank), colour, marker in zip(results["after"].items(), COLOURS, "osD", strict=False):
        values = [by_rank[str(rank)] for rank in RANKS]
        means = [statistics.geometric_mean(v) for v in values]
        reach = [
            [m - min(v) for m, v in zip(means, values, strict=True)],
            [max(v) - m for m, v in zip(means, values, strict=True)],
        ]
        axes.errorbar(RANKS, means, yerr=reach, color=colour, marker=marker, capsize=4, linewidth=2, label=name)
    before = statistics.geometric_mean(results["before"])
    axes.axhline(before, color="#888888", linestyle="--")
    axes.annotate(f"the base, before training: {before:.0f}", (RANKS[0], before), (0, -14), textcoords="offset points")
    axes.set(
        title="What 100 pairs teach the embedded base",
        xlabel="rank r of the adapter",
        ylabel="perplexity on fresh questions (log scale)",
        xscale="log",
        yscale="log",
    )
    axes.set_xticks(RANKS, [str(rank) for rank in RANKS])
    axes.minorticks_off()
    axes.grid(alpha=0.3)
    axes.legend(title="adapted modules", frameon=False)
    PICTURE.parent.mkdir(exist_ok=True)
    plt.savefig(PICTURE, dpi=160, facecolor="white")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, default=3)
    arguments = parser.parse_args()
    RESULTS.parent.mkdir(exist_ok=True)
    RESULTS.write_text(json.dumps(measure(arguments.seeds), indent=1) + "\n")
    results = json.loads(RESULTS.read_text())
    draw_picture(results)
    print(f"before: {statistics.geometric_mean(results['before']):.1f}")
    for name, by_rank in results["after"].items():
        print(f"{name:>10}: " + ", ".join(f"r={r} {statistics.geometric_mean(by_rank[str(r)]):.2f}" for r in RANKS))


if __name__ == "__main__":
    main()
