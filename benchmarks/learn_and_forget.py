"""How many bits an adapter stores, and what learning a task costs in general loss, over ranks, learning rates and seeds.

Capacity: adapters of rising rank on v_proj learn random codes; what is stored is what they save of the codes' bits.
Frontier: exercise 1's training with LoRA on all linear layers, or in full, measured between its epochs on fresh messages
and on half of the general pairs; some runs replay pairs of the other half. Finished runs are kept in `build/`, so that an
interrupted measurement resumes. Writes `benchmarks/results/learn_and_forget.json`, which chapters 1 and 7 draw.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import tempfile
from collections.abc import Sequence
from dataclasses import astuple, dataclass
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import pandas as pd
import torch
from peft import LoraConfig, get_peft_model
from tqdm.auto import tqdm
from transformers import PreTrainedTokenizerBase, TrainerCallback

from benchmarks.measured import RESULTS, save
from loralab import Pair, choose_base, data_path, held_out, load_model, load_tokenizer, read_pairs, train
from loralab.codes import CODE_BITS, random_codes
from loralab.files import write_whole
from loralab.measure import LanguageModel, parameter_counts
from loralab.pool import processors, run_all
from loralab.scores import score_answers
from loralab.shapes import LINEAR
from loralab.triage import draw

KEPT = RESULTS.parents[1] / "build" / "learn_and_forget"
BASE = choose_base("embedded")
SEEDS = 3
FULL = 0  # stands for the rank of full fine-tuning

CODES, CODE_EPOCHS, CODE_BATCH = 32, 60, 16
CAPACITY = {1: (1e-2,), 2: (1e-2,), 4: (1e-2,), 8: (1e-2,), 16: (1e-2,)}  # rank: learning rates

MESSAGES = 100  # per seed
GENERAL = read_pairs(data_path("pairs/general.jsonl"))
MEASURED, REPLAYED = GENERAL[:50], GENERAL[50:]
MEASURED_AFTER = (1, 2, 4, 8)  # epochs
FRONTIER = {4: (1.7e-3, 5e-3), 16: (1.7e-3, 5e-3, 1.5e-2), 64: (1.7e-3, 5e-3), FULL: (3e-4, 1e-3, 3e-3)}
REPLAY = {16: (5e-3,)}


@dataclass(frozen=True)
class Run:
    """One run to measure; `replay` is how many general pairs are mixed into the task's hundred."""

    kind: str  # "capacity" or "frontier"
    rank: int
    rate: float
    seed: int
    replay: int = 0


def measure_one(run: Run) -> list[dict[str, float]]:
    """Return what a run measures: one row, or one for each epoch of `MEASURED_AFTER`."""
    file = KEPT / ("-".join(map(str, astuple(run))) + ".json")
    if not file.exists():
        rows = (_capacity if run.kind == "capacity" else _frontier)(run)
        KEPT.mkdir(parents=True, exist_ok=True)
        write_whole(file, json.dumps(rows))
    return json.loads(file.read_text("utf-8"))


def _capacity(run: Run) -> list[dict[str, float]]:
    tokenizer, model = load_tokenizer(BASE), _model(run, ("v_proj",))
    codes = random_codes(CODES, run.seed)
    _train(run, model, tokenizer, codes, epochs=CODE_EPOCHS, batch_size=CODE_BATCH)
    bits = sum(max(0, CODE_BITS - nll / math.log(2)) for nll in held_out(model, tokenizer, codes).nll)
    return [
        {"trainable": parameter_counts(model)[0], "bits": bits, "whole": score_answers(model, tokenizer, codes).exact}
    ]


def _frontier(run: Run) -> list[dict[str, float]]:
    tokenizer, model = load_tokenizer(BASE), _model(run, LINEAR)
    clock = _Measure(tokenizer, draw(run.seed, MESSAGES))
    pairs = [*read_pairs(data_path("pairs/train.jsonl"))[:100], *REPLAYED[: run.replay]]
    clock.measure(0, model)
    _train(run, model, tokenizer, pairs, epochs=max(MEASURED_AFTER), callbacks=[clock])
    return clock.rows


class _Measure(TrainerCallback):
    """Measure the task and the general pairs after the epochs of `MEASURED_AFTER`."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, fresh: Sequence[Pair]) -> None:
        self.tokenizer, self.fresh, self.rows = tokenizer, fresh, []

    def on_epoch_end(self, args: Any, state: Any, control: Any, model: LanguageModel, **others: Any) -> None:
        if round(state.epoch) in MEASURED_AFTER:
            self.measure(round(state.epoch), model)

    def measure(self, epoch: int, model: LanguageModel) -> None:
        exact = score_answers(model, self.tokenizer, self.fresh).exact / MESSAGES if epoch else 0.0
        nll, general = (held_out(model, self.tokenizer, pairs).loss for pairs in (self.fresh, MEASURED))
        self.rows.append({"epoch": epoch, "exact": exact, "nll": nll, "general_nll": general})


def _model(run: Run, targets: Sequence[str]) -> LanguageModel:
    torch.manual_seed(run.seed)
    model = load_model(BASE)
    if run.rank == FULL:
        return model
    adapter = LoraConfig(r=run.rank, lora_alpha=2 * run.rank, target_modules=list(targets), task_type="CAUSAL_LM")
    return get_peft_model(model, adapter)


def _train(
    run: Run, model: LanguageModel, tokenizer: PreTrainedTokenizerBase, pairs: Sequence[Pair], **settings: Any
) -> None:
    with tempfile.TemporaryDirectory() as folder:
        train(model, tokenizer, pairs, folder, BASE, learning_rate=run.rate, seed=run.seed, quiet=True, **settings)


def planned(seeds: int) -> list[Run]:
    """Return every run, seed by seed."""
    grids = {("capacity", 0): CAPACITY, ("frontier", 0): FRONTIER, ("frontier", len(REPLAYED)): REPLAY}
    return [
        Run(kind, rank, rate, seed, replay)
        for seed in range(seeds)
        for (kind, replay), grid in grids.items()
        for rank, rates in grid.items()
        for rate in rates
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, default=SEEDS)
    parser.add_argument("--workers", type=int, default=processors())
    chosen = parser.parse_args()
    runs, rows = planned(chosen.seeds), {"capacity": [], "frontier": []}
    for run, outcome in tqdm(run_all(measure_one, runs, chosen.workers), total=len(runs), desc="runs"):
        if isinstance(outcome, Exception):
            raise outcome
        about = {"rank": run.rank, "rate": run.rate, "replay": run.replay, "seed": run.seed}
        rows[run.kind] += [about | row for row in outcome]
    tables = {kind: pd.DataFrame(found).sort_values(["replay", "rank", "rate", "seed"]) for kind, found in rows.items()}
    about = {
        "base": BASE.name,
        "codes": CODES,
        "code_bits": CODE_BITS,
        "code_epochs": CODE_EPOCHS,
        "messages": MESSAGES,
    }
    save("learn_and_forget", about | {kind: table.to_dict("records") for kind, table in tables.items()})
    last = tables["frontier"].query(f"epoch == {max(MEASURED_AFTER)}")
    for table, group in ((tables["capacity"], ["rank", "rate"]), (last, ["replay", "rank", "rate"])):
        print(table.drop(columns="seed").groupby(group).agg(["mean", "std"]).round(3).to_string(), "\n")


if __name__ == "__main__":
    main()
