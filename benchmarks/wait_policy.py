"""What waiting threads cost: one training beside another, with OpenMP threads that spin and with threads that sleep.

Each process trains on the embedded base with a thread per processor. Two processes that shared the processors fairly would
take twice as long as one alone. Writes `benchmarks/results/wait_policy.json`.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import tempfile

from benchmarks.measured import save
from loralab.pool import processors

# The first is what libgomp does by default; loralab sets the second.
POLICIES = {"spin": {"GOMP_SPINCOUNT": "300000"}, "sleep": {"OMP_WAIT_POLICY": "PASSIVE"}}
STEPS = 20


def train_once() -> float:
    """Return the seconds of `STEPS` steps of exercise 1's training."""
    from peft import get_peft_model

    from loralab import choose_base, data_path, load_model, load_tokenizer, read_pairs, train
    from loralab.shapes import ATTENTION, lora_config

    base = choose_base("embedded")
    model = load_model(base)
    model = get_peft_model(model, lora_config(model, ATTENTION, r=16, lora_alpha=32))
    pairs = read_pairs(data_path("pairs/train.jsonl"))[:100]
    with tempfile.TemporaryDirectory() as folder:
        return train(model, load_tokenizer(base), pairs, folder, base, max_steps=STEPS, quiet=True).seconds


def at_once(processes: int, policy: str) -> float:
    """Return the mean seconds of as many trainings at the same time."""
    settings = {"OMP_NUM_THREADS": str(processors()), "HF_HUB_OFFLINE": "1"} | POLICIES[policy]
    command = [sys.executable, "-m", "benchmarks.wait_policy", "--only"]
    running = [
        subprocess.Popen(command, env=os.environ | settings, stdout=subprocess.PIPE, text=True)
        for _ in range(processes)
    ]
    return statistics.fmean(float(process.communicate()[0].splitlines()[-1]) for process in running)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--only", action="store_true", help="train once and print the seconds")
    chosen = parser.parse_args()
    if chosen.only:
        print(train_once())
        return
    rounds = []
    for _ in range(chosen.rounds):
        rounds.append(
            {f"{policy}, {processes}": at_once(processes, policy) for policy in POLICIES for processes in (1, 2)}
        )
        print("  ".join(f"{name}: {seconds:.1f} s" for name, seconds in rounds[-1].items()), flush=True)
    ratios = {
        policy: statistics.median(one[f"{policy}, 2"] / one[f"{policy}, 1"] for one in rounds) for policy in POLICIES
    }
    alone = statistics.median(one["sleep, 1"] / one["spin, 1"] for one in rounds)
    save("wait_policy", {"rounds": rounds, "two_against_alone": ratios, "sleep_against_spin_alone": alone})
    print(f"two against one alone: {ratios}; sleeping against spinning, alone: {alone:.2f}")


if __name__ == "__main__":
    main()
