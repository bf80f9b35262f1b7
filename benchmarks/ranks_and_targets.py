"""Exact match, perplexity and forgetting after exercise 1's training, by rank, targets, base, and LoRA or QLoRA.

Every run trains on the first hundred pairs at the base's own learning rate and epochs, and answers fresh messages of the seen
and of unseen forms. Intervals are over the seeds, by the t distribution: runs of other seeds differ by more than the draw of
their messages explains. Finished runs are kept in `build/`, so that an interrupted measurement resumes. Writes
`benchmarks/results/ranks_and_targets.json` and the picture of the README (embedded base), or
`ranks_and_targets-<base>.json`.
"""

from __future__ import annotations

import argparse
import os
import statistics
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import matplotlib.pyplot as plt
import torch
from peft import get_peft_model
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from benchmarks.measured import ROOT, kept, measure_all, save
from loralab import Base, choose_base, data_path, load_model, load_tokenizer, nf4, perplexity, read_pairs, train
from loralab.plots import COLOURS
from loralab.scores import question_control, score_answers
from loralab.shapes import TARGETS, lora_config
from loralab.triage import draw
from loralab.tuning import interval

PICTURE = ROOT / "docs" / "ranks-and-targets.png"
RANKS = (4, 16, 64)
GROUPS = {"qv": "q, v", "qkvo": "q, k, v, o", "all": "all linear"}
MESSAGES = 100  # per seed


@dataclass(frozen=True)
class Run:
    """One run to measure; with rank 0 the base without training."""

    base: str
    seed: int
    method: str = "lora"
    targets: str = "qkvo"
    rank: int = 0


@kept
def measure_one(run: Run) -> dict[str, float]:
    """Return a run's scores on fresh messages and general pairs; `exact` and `exact_unseen` are counts."""
    base = choose_base(run.base)
    tokenizer = load_tokenizer(base)
    model = load_model(base, quantization=nf4() if run.method == "qlora" else None)
    found = {}
    if run.rank:
        model, record = _trained(model, tokenizer, base, run)
        found = {"seconds": record.seconds, "adapter_bytes": record.adapter_bytes, "trainable": record.trainable}
    fresh = draw(run.seed, MESSAGES)
    return found | {
        "ppl": perplexity(model, tokenizer, fresh),
        "general_ppl": perplexity(model, tokenizer, read_pairs(data_path("pairs/general.jsonl"))),
        "question_gain": question_control(model, tokenizer, fresh, base.max_length).gain,
        "exact": score_answers(model, tokenizer, fresh).exact,
        "exact_unseen": score_answers(model, tokenizer, draw(run.seed, MESSAGES, "unseen")).exact,
    }


def _trained(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, base: Base, run: Run):
    torch.manual_seed(run.seed)
    config = lora_config(model, TARGETS[run.targets], r=run.rank, lora_alpha=2 * run.rank, lora_dropout=0.05)
    model = get_peft_model(model, config)
    pairs = read_pairs(data_path("pairs/train.jsonl"))[:100]
    with tempfile.TemporaryDirectory() as folder:
        record = train(model, tokenizer, pairs, folder, base, seed=run.seed, quiet=True)
    return model, record


def measure(base: str, method: str, groups: Sequence[str], ranks: Sequence[int], seeds: int) -> dict[str, Any]:
    """Return what was measured before training and after it, by targets and rank, a list of one entry per seed."""
    before = [Run(base, seed, method) for seed in range(seeds)]
    after = [Run(base, seed, method, *of) for seed, *of in product(range(seeds), groups, ranks)]
    found = measure_all(measure_one, [*before, *after])
    by_rank = {
        group: {str(rank): [found[Run(base, seed, method, group, rank)] for seed in range(seeds)] for rank in ranks}
        for group in groups
    }
    about = {"base": base, "method": method, "seeds": seeds, "messages": MESSAGES}
    return {"before": [found[run] for run in before], "after": by_rank} | about


def share(runs: list[dict], field: str = "exact") -> tuple[float, float, float]:
    """Return the mean share of exact answers, and its 95 % interval over the seeds, within 0 and 1."""
    mean, low, high = interval(run[field] / MESSAGES for run in runs)
    return mean, max(0.0, low), min(1.0, high)


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
    parser.add_argument("--base", default="embedded")
    parser.add_argument("--method", choices=("lora", "qlora"), default="lora")
    parser.add_argument("--targets", nargs="+", choices=GROUPS, default=list(GROUPS))
    parser.add_argument("--ranks", nargs="+", type=int, default=RANKS)
    chosen = parser.parse_args()
    results = measure(chosen.base, chosen.method, chosen.targets, chosen.ranks, chosen.seeds)
    parts = [part for part, usual in ((chosen.base, "embedded"), (chosen.method, "lora")) if part != usual]
    save("-".join(["ranks_and_targets", *parts]), results)
    if not parts and (tuple(chosen.targets), tuple(chosen.ranks)) == (tuple(GROUPS), RANKS):
        draw_picture(results)
    print("targets     rank  PPL    exact match          unseen forms         question gain  general PPL")
    for group, by_rank in results["after"].items():
        for rank, runs in by_rank.items():
            gain = statistics.fmean(run["question_gain"] for run in runs)
            general = statistics.geometric_mean(run["general_ppl"] for run in runs)
            exact, unseen = share(runs), share(runs, "exact_unseen")
            exact, unseen = (f"{mean:.2f} ({low:.2f} to {high:.2f})" for mean, low, high in (exact, unseen))
            line = (
                f"{GROUPS[group]:<11} {rank:>4}  {ppl(runs):<6.3f} {exact:<20} {unseen:<20} {gain:<14.2f} {general:.1f}"
            )
            print(line)


if __name__ == "__main__":
    main()
