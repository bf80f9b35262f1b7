"""Whether LoRA's dropout pays: exact match on fresh messages and seconds, with and without it, over paired seeds.

Every pair of runs is exercise 1's training from the same start on the same order of pairs. The interval of the difference is
over the seeds, by the t distribution. Writes `benchmarks/results/dropout.json`.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
from itertools import product

import torch
from peft import get_peft_model

from benchmarks.measured import measure_all, save
from loralab import choose_base, data_path, load_model, load_tokenizer, perplexity, read_pairs, train
from loralab.scores import paired_interval, score_answers
from loralab.shapes import ATTENTION, lora_config
from loralab.triage import draw

BASE = choose_base("embedded")
DROPOUTS = (0.0, 0.05)
MESSAGES = 200  # per seed


def measure_one(setting: tuple[float, int]) -> dict[str, float]:
    """Train with a dropout and a seed; return its scores on fresh messages, and its seconds."""
    dropout, seed = setting
    torch.manual_seed(seed)
    tokenizer = load_tokenizer(BASE)
    model = load_model(BASE)
    model = get_peft_model(model, lora_config(model, ATTENTION, r=16, lora_alpha=32, lora_dropout=dropout))
    pairs = read_pairs(data_path("pairs/train.jsonl"))[:100]
    with tempfile.TemporaryDirectory() as folder:
        record = train(model, tokenizer, pairs, folder, BASE, seed=seed, quiet=True)
    fresh = draw(seed, MESSAGES)
    return {
        "seconds": record.seconds,
        "ppl": perplexity(model, tokenizer, fresh),
        "exact": score_answers(model, tokenizer, fresh).exact / MESSAGES,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, default=8)
    seeds = range(parser.parse_args().seeds)
    found = measure_all(measure_one, list(product(DROPOUTS, seeds)))
    runs = {str(dropout): [found[dropout, seed] for seed in seeds] for dropout in DROPOUTS}
    exact = {dropout: [run["exact"] for run in of] for dropout, of in runs.items()}
    faster = statistics.median(found[0.05, seed]["seconds"] / found[0.0, seed]["seconds"] for seed in seeds)
    gain = paired_interval(exact["0.0"], exact["0.05"])
    save("dropout", {"runs": runs, "messages": MESSAGES, "exact_without_minus_with": gain, "faster_without_by": faster})
    for dropout, of in runs.items():
        ppl = statistics.geometric_mean(run["ppl"] for run in of)
        print(f"dropout {dropout}: exact match {statistics.fmean(exact[dropout]):.3f}, PPL {ppl:.4f}")
    print("exact match without minus with: {:+.3f} (95 % interval {:+.3f} to {:+.3f})".format(*gain))
    print(f"without dropout {faster:.2f} times as fast")


if __name__ == "__main__":
    main()
