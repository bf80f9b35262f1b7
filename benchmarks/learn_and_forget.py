"""How many bits an adapter stores, and what learning a task costs in general loss, over ranks, learning rates and seeds.

All adapters are on all linear layers. Capacity: random codes are learned; what is stored is what a model saves of their
bits. Frontier: exercise 1's training with LoRA or in full, measured between its epochs on fresh messages and on half of the
general pairs; some runs replay pairs of the other half. Finished runs are kept in `build/`, so that an
interrupted measurement resumes. Writes `benchmarks/results/learn_and_forget.json`, which chapters 1 and 7 draw.
"""

from __future__ import annotations

import argparse
import math
import os
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import pandas as pd
import torch
from peft import get_peft_model
from transformers import PreTrainedTokenizerBase, TrainerCallback

from benchmarks.measured import kept, measure_all, save
from loralab import Pair, choose_base, data_path, held_out, load_model, load_tokenizer, read_pairs, train
from loralab.codes import CODE_BITS, random_codes
from loralab.measure import LanguageModel, parameter_counts
from loralab.scores import score_answers
from loralab.shapes import LINEAR, lora_config
from loralab.triage import draw

BASE = choose_base("embedded")
SEEDS = {"capacity": 3, "frontier": 3}
FULL = 0  # stands for the rank of full fine-tuning

CODES, CODE_BATCH, CODES_AFTER = 32, 4, (10, 20, 40)  # measured after these epochs
CAPACITY = {1: (1e-2,), 4: (1e-2,), 16: (5e-3,)}  # rank: learning rates

MESSAGES = 100  # per seed
GENERAL = read_pairs(data_path("pairs/general.jsonl"))
MEASURED, REPLAYED = GENERAL[:50], GENERAL[50:]
MEASURED_AFTER = (1, 2, 4, 8)  # epochs
FRONTIER = {4: (5e-3,), 16: (1.7e-3, 5e-3, 1.5e-2), FULL: (3e-4, 1e-3, 3e-3, 1e-2)}
REPLAY = {16: (5e-3,)}
TOO_HIGH = {(16, 1.5e-2), (FULL, 1e-2)}  # (rank, rate): nothing is learned, so one seed is enough


@dataclass(frozen=True)
class Run:
    """One run to measure; `replay` is how many general pairs are mixed into the task's hundred."""

    kind: str  # "capacity" or "frontier"
    rank: int
    rate: float
    seed: int
    replay: int = 0


@kept
def measure_one(run: Run) -> list[dict[str, float]]:
    """Return what a run measures, a row for each of the epochs after which it is measured."""
    return (_capacity if run.kind == "capacity" else _frontier)(run)


def _capacity(run: Run) -> list[dict[str, float]]:
    tokenizer, model = load_tokenizer(BASE), _model(run)
    codes = random_codes(CODES, run.seed)

    def measure(model: LanguageModel) -> dict[str, float]:
        needed = [nll / math.log(2) for nll in held_out(model, tokenizer, codes).nll]
        return {"trainable": parameter_counts(model)[0], "bits": sum(max(0, CODE_BITS - bits) for bits in needed)}

    watch = _Watch(CODES_AFTER, measure)
    _train(run, model, tokenizer, codes, epochs=max(CODES_AFTER), batch_size=CODE_BATCH, callbacks=[watch])
    return watch.rows


def _frontier(run: Run) -> list[dict[str, float]]:
    tokenizer, model = load_tokenizer(BASE), _model(run)
    fresh = draw(run.seed, MESSAGES)

    def measure(model: LanguageModel) -> dict[str, float]:
        nll, general_nll = (held_out(model, tokenizer, pairs).loss for pairs in (fresh, MEASURED))
        exact = score_answers(model, tokenizer, fresh).exact / MESSAGES
        return {"exact": exact, "nll": nll, "general_nll": general_nll}

    watch = _Watch(MEASURED_AFTER, measure)
    watch.rows.append({"epoch": 0, **measure(model)})
    pairs = [*read_pairs(data_path("pairs/train.jsonl"))[:100], *REPLAYED[: run.replay]]
    _train(run, model, tokenizer, pairs, epochs=max(MEASURED_AFTER), callbacks=[watch])
    return watch.rows


class _Watch(TrainerCallback):
    """Measure the model after the given epochs."""

    def __init__(self, after: Sequence[int], measure: Callable[[LanguageModel], dict[str, float]]) -> None:
        self.after, self.measure, self.rows = after, measure, []

    def on_epoch_end(self, args: Any, state: Any, control: Any, model: LanguageModel, **others: Any) -> None:
        if (epoch := round(state.epoch)) in self.after:
            self.rows.append({"epoch": epoch, **self.measure(model)})


def _model(run: Run) -> LanguageModel:
    torch.manual_seed(run.seed)
    model = load_model(BASE)
    if run.rank == FULL:
        return model
    return get_peft_model(model, lora_config(model, LINEAR, r=run.rank, lora_alpha=2 * run.rank))


def _train(
    run: Run, model: LanguageModel, tokenizer: PreTrainedTokenizerBase, pairs: Sequence[Pair], **settings: Any
) -> None:
    with tempfile.TemporaryDirectory() as folder:
        train(model, tokenizer, pairs, folder, BASE, learning_rate=run.rate, seed=run.seed, quiet=True, **settings)


def planned(seeds: Mapping[str, int] = SEEDS) -> list[Run]:
    """Return every run, seed by seed; `seeds` has their number for each kind."""
    grids = {("capacity", 0): CAPACITY, ("frontier", 0): FRONTIER, ("frontier", len(REPLAYED)): REPLAY}
    return [
        Run(kind, rank, rate, seed, replay)
        for seed in range(max(seeds.values()))
        for (kind, replay), grid in grids.items()
        if seed < seeds[kind]
        for rank, rates in grid.items()
        for rate in rates
        if seed == 0 or (rank, rate) not in TOO_HIGH
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, help="of each kind (default: as committed)")
    parser.add_argument("--workers", type=int)
    chosen = parser.parse_args()
    runs = planned(dict.fromkeys(SEEDS, chosen.seeds) if chosen.seeds else SEEDS)
    rows = {"capacity": [], "frontier": []}
    for run, outcome in measure_all(measure_one, runs, chosen.workers).items():
        about = {"rank": run.rank, "rate": run.rate, "replay": run.replay, "seed": run.seed}
        rows[run.kind] += [about | row for row in outcome]
    tables = {kind: pd.DataFrame(found).sort_values(["replay", "rank", "rate", "seed"]) for kind, found in rows.items()}
    about = {"base": BASE.name, "codes": CODES, "code_bits": CODE_BITS, "messages": MESSAGES}
    save("learn_and_forget", about | {kind: table.to_dict("records") for kind, table in tables.items()})
    for table in tables.values():
        last = table[table["epoch"] == table["epoch"].max()].drop(columns=["seed", "epoch"])
        print(last.groupby(["replay", "rank", "rate"]).agg(["mean", "std"]).round(3).to_string(), "\n")


if __name__ == "__main__":
    main()
