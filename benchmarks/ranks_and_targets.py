"""Exact match and perplexity on fresh messages after exercise 1's training, for three ranks and three choices of targets.

Every run trains on the first hundred pairs at the base's own learning rate and epochs, and answers messages of the seen
and of unseen forms. Intervals are over the seeds, by the t distribution: runs of other seeds differ by more than the draw of
their messages explains. Writes
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
from scipy import stats
from tqdm.auto import tqdm

from benchmarks.measured import RESULTS, save
from loralab import choose_base, data_path, load_model, load_tokenizer, perplexity, read_pairs, train
from loralab.plots import COLOURS
from loralab.pool import processors, run_all
from loralab.scores import question_control, score_answers
from loralab.shapes import TARGETS
from loralab.triage import draw

NAME = "ranks_and_targets"
PICTURE = RESULTS.parents[1] / "docs" / "ranks-and-targets.png"
BASE = choose_base("embedded")
RANKS = (4, 16, 64)
GROUPS = {"qv": "q, v", "qkvo": "q, k, v, o", "all": "all linear"}
MESSAGES = 100  # per seed
GradingSetup = tuple[str, int, int] | int  # targets, rank and seed; a seed alone is the base without training


def measure_one(setting: GradingSetup) -> dict[str, float]:
    """Return what one trained run, or the base alone, makes of fresh messages; `exact` and `exact_unseen` are counts."""
    seed = setting if isinstance(setting, int) else setting[-1]
    tokenizer, model = load_tokenizer(BASE), load_model(BASE)
    if not isinstance(setting, int):
        model = _trained(model, tokenizer, *setting)
    fresh = draw(seed, MESSAGES)
    return {
        "ppl": perplexity(model, tokenizer, fresh),
        "question_gain": question_control(model, tokenizer, fresh, BASE.max_length).gain,
        "exact": score_answers(model, tokenizer, fresh).exact,
        "exact_unseen": score_answers(model, tokenizer, draw(seed, MESSAGES, "unseen")).exact,
    }


def _trained(model, tokenizer, targets: str, rank: int, seed: int):
    torch.manual_seed(seed)
    config = LoraConfig(
        r=rank, lora_alpha=2 * rank, lora_dropout=0.05, target_modules=TARGETS[targets], task_type="CAUSAL_LM"
    )
    model = get_peft_model(model, config)
    pairs = read_pairs(data_path("pairs/train.jsonl"))[:100]
    with tempfile.TemporaryDirectory() as folder:
        train(model, tokenizer, pairs, folder, BASE, seed=seed, quiet=True)
    return model


def measure(seeds: int) -> dict:
    """Return what was measured before training and after it, by targets and rank, a list of one entry per seed."""
    jobs = [*range(seeds), *product(GROUPS, RANKS, range(seeds))]
    found = {}
    for job, outcome in tqdm(run_all(measure_one, jobs, processors()), total=len(jobs), desc="runs"):
        if isinstance(outcome, Exception):
            raise outcome
        found[job] = outcome
    after = {
        group: {str(rank): [found[group, rank, seed] for seed in range(seeds)] for rank in RANKS} for group in GROUPS
    }
    return {"before": [found[seed] for seed in range(seeds)], "after": after, "seeds": seeds, "messages": MESSAGES}


def share(runs: list[dict], field: str = "exact") -> tuple[float, float, float]:
    """Return the mean share of exact answers, and its 95 % interval over the seeds, within 0 and 1."""
    shares = [run[field] / MESSAGES for run in runs]
    reach = stats.t.ppf(0.975, len(shares) - 1) * statistics.stdev(shares) / len(shares) ** 0.5
    mean = statistics.fmean(shares)
    return mean, max(0.0, mean - reach), min(1.0, mean + reach)


def ppl(runs: list[dict]) -> float:
    """Return the geometric mean of the seeds' perplexities."""
    return statistics.geometric_mean(run["ppl"] for run in runs)


def draw_picture(results: dict) -> None:
    """Draw exact match and perplexity against rank, a line for each choice of targets."""
    figure, (left, right) = plt.subplots(1, 2, figsize=(10, 4.2), layout="constrained")
    for (group, by_rank), colour, marker in zip(results["after"].items(), COLOURS, "osD", strict=False):
        style = {"color": colour, "marker": marker, "linewidth": 2, "label": GROUPS[group]}
        left.plot(RANKS, [share(by_rank[str(rank)])[0] for rank in RANKS], **style)
        for rank in RANKS:
            seeds = [run["exact"] / MESSAGES for run in by_rank[str(rank)]]
            left.plot([rank] * len(seeds), seeds, "_", color=colour, markersize=14, markeredgewidth=1.5)
        right.plot(RANKS, [ppl(by_rank[str(rank)]) for rank in RANKS], **style)
    before = results["before"]
    left.axhline(share(before)[0], color="#888888", linestyle="--", label="before training")
    left.set(title="Right answers to fresh messages", ylabel="exact match (a dash per seed)", ylim=(-0.03, 1))
    right.set(
        title=f"Their perplexity (before training: {ppl(before):.0f})", ylabel="perplexity (log scale)", yscale="log"
    )
    ticks = (1, 1.1, 1.2, 1.3, 1.5)
    right.set_yticks(ticks, [str(tick) for tick in ticks])
    for axes in (left, right):
        axes.set(xlabel="rank r of the adapter", xscale="log")
        axes.set_xticks(RANKS, [str(rank) for rank in RANKS])
        axes.minorticks_off()
        axes.grid(alpha=0.3)
    left.legend(title="adapted modules", frameon=False, loc="lower right")
    figure.suptitle(
        f"What 100 pairs teach a base of four million parameters ({results['seeds']} seeds, one learning rate)"
    )
    plt.savefig(PICTURE, dpi=160, facecolor="white")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, default=3)
    save(NAME, measure(parser.parse_args().seeds))
    results = json.loads((RESULTS / f"{NAME}.json").read_text("utf-8"))
    draw_picture(results)
    print("targets     rank  PPL    exact match          unseen forms         question gain")
    for group, by_rank in results["after"].items():
        for rank, runs in by_rank.items():
            gain = statistics.fmean(run["question_gain"] for run in runs)
            exact, unseen = share(runs), share(runs, "exact_unseen")
            exact, unseen = (f"{mean:.2f} ({low:.2f} to {high:.2f})" for mean, low, high in (exact, unseen))
            print(f"{GROUPS[group]:<11} {rank:>4}  {ppl(runs):<6.3f} {exact:<20} {unseen:<20} {gain:.2f}")


if __name__ == "__main__":
    main()
