"""LoRA Without Regret (Schulman et al., 2025) on the embedded base: learning rates, placement, batch size, and two myths.

Every condition is trained on 240 pairs in one epoch at learning rates in factors of two, and its grid grows until no seed
has its lowest loss at the edge; two rates half a power of two from the best one are added. Losses are in nats per
answer token on the first evaluation pairs. Runs of 100 pairs over eight epochs are long enough for exact match; their
losses are measured after every epoch. Finished runs are kept in `build/`, so that an interrupted measurement resumes. Writes `benchmarks/results/without_regret.json`.
"""

from __future__ import annotations

import argparse
import math
import os
import tempfile
from collections.abc import Iterable
from dataclasses import asdict, dataclass, replace
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import numpy as np
import torch
from peft import get_peft_model
from tqdm.auto import tqdm
from transformers import PreTrainedModel, TrainerCallback

from benchmarks.measured import kept, measure_all, save
from loralab import (
    choose_base,
    data_path,
    held_out,
    load_model,
    load_tokenizer,
    question_control,
    read_pairs,
    score_answers,
    train,
)
from loralab.plots import DIVERGED
from loralab.shapes import ATTENTION, LINEAR, lora_config
from loralab.tuning import ratio_interval

BASE = choose_base("embedded")
TARGETS = {"all": LINEAR, "attention": ATTENTION, "feed-forward": LINEAR[4:]}
SIZES = {"attention": 42, "feed-forward": 26}  # ranks with as many parameters as rank 16 on all
RATE = 1e-3  # the grids are this times powers of two
SEEDS = range(3)
HELD_OUT = 50  # pairs


@dataclass(frozen=True)
class Condition:
    """What is trained, apart from its learning rate and seed; rank 0 is full fine-tuning."""

    rank: int = 16
    alpha: int = 32
    targets: str = "all"
    batch: int = 4
    warmup: float = 0.0  # a share of the steps
    pairs: int = 240
    epochs: int = 1


@dataclass(frozen=True)
class Run:
    """One run to measure."""

    condition: Condition
    rate: float
    seed: int


FULL = Condition(rank=0, alpha=0)
# By part, the conditions and the powers of two that their grids begin with.
PARTS: dict[str, dict[Condition, range]] = {
    "rank": {FULL: range(-3, 3), Condition(): range(6)} | {Condition(rank=rank): range(1, 5) for rank in (1, 64, 4)},
    "placement": {Condition(rank=rank, targets=targets): range(1, 5) for targets, rank in SIZES.items()},
    "batch": {
        **{replace(FULL, batch=batch): range(-1, 3) for batch in (16, 48)},
        **{Condition(batch=batch): range(2, 6) for batch in (16, 48)},
    },
    "alpha": {Condition(rank=64, alpha=128): range(-1, 3)},
    "warm-up": {Condition(warmup=share): range(1, 5) for share in (0.05, 0.95)},
}
LONG = (Condition(rank=8), Condition(rank=128), FULL)


class _AfterEveryEpoch(TrainerCallback):
    """Measures the held-out loss before training and after every epoch."""

    def __init__(self, model: PreTrainedModel) -> None:
        self.model, self.losses = model, []

    def measure(self, *_: Any, **__: Any) -> None:
        self.losses.append(held_out(self.model, load_tokenizer(BASE), _held_out_pairs(), BASE.max_length).loss)

    on_train_begin = on_epoch_end = measure


@kept
def measure_one(run: Run) -> dict[str, Any]:
    """Return a run's held-out loss, its training loss and question gain; of a long run, losses by epoch and exact match."""
    condition, tokenizer = run.condition, load_tokenizer(BASE)
    torch.manual_seed(run.seed)
    model = _to_train(condition)
    watch = _AfterEveryEpoch(model) if condition.epochs > 1 else None
    with tempfile.TemporaryDirectory() as folder:
        record = train(
            model,
            tokenizer,
            read_pairs(data_path("pairs/train.jsonl"))[: condition.pairs],
            folder,
            BASE,
            epochs=condition.epochs,
            batch_size=condition.batch,
            learning_rate=run.rate,
            warmup_steps=condition.warmup,
            seed=run.seed,
            callbacks=[watch] if watch else [],
            quiet=True,
        )
    pairs = _held_out_pairs()
    own = held_out(model, tokenizer, pairs, BASE.max_length)
    found: dict[str, Any] = {
        "loss": _bounded(own.loss),
        "gain": question_control(model, tokenizer, pairs, BASE.max_length, own=own).gain,
        "seconds": record.seconds,
        "trainable": record.trainable,
    }
    if watch:
        by_epoch = np.reshape(record.losses, (condition.epochs, -1)).mean(1)
        found |= {"trained": by_epoch.tolist(), "held_out": watch.losses}
        found["exact"] = score_answers(model, tokenizer, pairs).exact / HELD_OUT
    return found


def _bounded(loss: float) -> float:
    """The loss, or that of a run that diverged."""
    return min(loss, math.log(DIVERGED)) if math.isfinite(loss) else math.log(DIVERGED)


def _held_out_pairs():
    return read_pairs(data_path("pairs/eval.jsonl"))[:HELD_OUT]


def _to_train(condition: Condition):
    model = load_model(BASE)
    if not condition.rank:
        return model
    config = lora_config(model, TARGETS[condition.targets], r=condition.rank, lora_alpha=condition.alpha)
    return get_peft_model(model, config)


def swept(condition: Condition, powers: Iterable[float], seeds: Iterable[int]) -> dict[Run, dict[str, Any]]:
    """Measure a condition at these powers, beyond them until no seed is best at an edge, and half a power from the best."""
    found: dict[Run, dict[str, Any]] = {}
    tried, new = set[float](), {*powers}
    while new:
        runs = [Run(condition, RATE * 2.0**power, seed) for power in sorted(new) for seed in seeds]
        found |= measure_all(measure_one, runs)
        tried |= new
        best = {math.log2(best_of(found, [seed]) / RATE) for seed in seeds}
        new = {min(tried) - 1 for _ in best & {min(tried)}} | {max(tried) + 1 for _ in best & {max(tried)}}
    best_rate = best_of(found, seeds)
    runs = [Run(condition, best_rate * 2.0**half, seed) for half in (-0.5, 0.5) for seed in seeds]
    return found | measure_all(measure_one, runs)


def best_of(runs: dict[Run, dict[str, Any]], seeds: Iterable[int]) -> float:
    """Return the learning rate with the lowest mean loss over these seeds."""
    losses: dict[float, list[float]] = {}
    for run, outcome in runs.items():
        if run.seed in seeds:
            losses.setdefault(run.rate, []).append(outcome["loss"])
    return min(losses, key=lambda rate: sum(losses[rate]))


def rows(runs: dict[Run, dict[str, Any]]) -> list[dict[str, Any]]:
    """Return the runs as flat rows for a table."""
    return [asdict(run.condition) | {"rate": run.rate, "seed": run.seed} | found for run, found in runs.items()]


def measure(parts: dict[str, dict[Condition, range]]) -> dict[Run, dict[str, Any]]:
    """Sweep every condition and report where it is best."""
    runs: dict[Run, dict[str, Any]] = {}
    for part, conditions in parts.items():
        for condition, powers in tqdm(conditions.items(), desc=part):
            found = swept(condition, powers, SEEDS)
            rate, seconds = best_of(found, SEEDS), sum(one["seconds"] for one in found.values())
            ppl = ratio_interval([math.exp(one["loss"]) for run, one in found.items() if run.rate == rate])
            tqdm.write(f"{condition}: {len(found)} runs, {seconds:.0f} s, best at {rate:.2g}, PPL {ppl:.3f}")
            runs |= found
    return runs


def long_runs(runs: dict[Run, dict[str, Any]]) -> list[Run]:
    """Return the runs that are long enough for exact match, at the best rates of the short ones."""
    best = {
        of: best_of({run: one for run, one in runs.items() if run.condition == of}, SEEDS) for of in (FULL, Condition())
    }
    rates = {of: best[FULL if of == FULL else Condition()] for of in LONG}
    return [Run(replace(of, pairs=100, epochs=8), rate, seed) for of, rate in rates.items() for seed in SEEDS]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.parse_args()
    runs = measure(PARTS)
    long = measure_all(measure_one, long_runs(runs))
    save("without_regret", {"base": BASE.name, "held_out": HELD_OUT, "runs": rows(runs), "long": rows(long)})


if __name__ == "__main__":
    main()
