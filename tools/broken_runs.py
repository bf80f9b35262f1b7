"""Train the runs of exercise 5's repair task, each with one planted fault: those it shows, and those that grade it."""

from __future__ import annotations

import json
import random
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from peft import LoraConfig, get_peft_model
from tqdm.auto import tqdm
from transformers.utils.logging import disable_progress_bar

from loralab import Pair, RunRecord, choose_base, data_path, encode_all, load_model, load_tokenizer, read_pairs, train
from loralab.check.ex5 import FAULTS
from loralab.files import write_whole
from loralab.layers import ATTENTION
from loralab.pairs import IGNORED

ROOT = Path(__file__).parents[1]
SHOWN, FRESH = ROOT / "data" / "broken", ROOT / "grader" / "evaluation" / "broken_runs.json"
# Factors of the base's learning rate and of alpha = 2r. A sound run may have both changed: their product counts.
STEPS = {
    "sound": [(1, 1), (2, 0.5), (0.5, 2), (0.5, 1)],
    "steps too large": [(1, 32), (16, 1), (4, 8), (8, 2)],
    "steps too small": [(1, 0.01), (0.01, 1), (0.05, 0.1), (0.02, 0.5)],
}
BLOCKS = [[0], [3], [1], [2]]  # of four, the one with an adapter if layers are missing
SETTINGS = [(16, 0), (8, 100), (32, 200), (16, 300)]  # rank, and the first of the 100 pairs
# Left out of the records that grade.
MACHINE = ("hardware", "versions", "created", "peak_memory", "train_digest", "eval_digest")


def broken_run(fault: str, number: int) -> RunRecord:
    """Train run `number` with this fault on the embedded base and return its record."""
    base = choose_base("embedded")
    tokenizer, (rank, first) = load_tokenizer(base), SETTINGS[number]
    rate, scale = STEPS.get(fault, [(1, 1)] * len(SETTINGS))[number]
    pairs = read_pairs(data_path("pairs/train.jsonl"))[first : first + 100]
    if fault == "answers shuffled":
        outputs = [pair.output for pair in pairs]
        random.Random(number).shuffle(outputs)
        pairs = [Pair(instruction=pair.instruction, output=output) for pair, output in zip(pairs, outputs, strict=True)]
    torch.manual_seed(number)
    config = LoraConfig(
        r=rank,
        lora_alpha=scale * 2 * rank,
        lora_dropout=0.05,
        target_modules=list(ATTENTION),
        layers_to_transform=BLOCKS[number] if fault == "layers missing" else None,
        task_type="CAUSAL_LM",
    )
    with TemporaryDirectory() as folder:
        return train(
            get_peft_model(load_model(base), config),
            tokenizer,
            pairs,
            folder,
            base,
            eval_pairs=read_pairs(data_path("pairs/eval.jsonl")),
            learning_rate=rate * base.learning_rate,
            seed=number,
            encoded=[labelled(fault, one) for one in encode_all(pairs, tokenizer, base.max_length)],
            quiet=True,
        )


def labelled(fault: str, encoded: dict[str, list[int]]) -> dict[str, list[int]]:
    """Return an encoded pair with the labels that this fault gives it."""
    if fault == "prompt not masked":
        return encoded | {"labels": encoded["input_ids"]}
    if fault == "end not learned":
        return encoded | {"labels": [*encoded["labels"][:-1], IGNORED]}
    return encoded


def evidence(record: RunRecord, name: str) -> dict[str, object]:
    """Return what is kept of a record: all but the machine, the time, and digests of data; losses to four digits."""
    fields = record.model_dump(mode="json", exclude=set(MACHINE))
    return fields | {"name": name, "losses": [float(f"{loss:.4g}") for loss in record.losses]}


def main() -> None:
    """Train all runs and write both files."""
    disable_progress_bar()
    fresh = []
    for number in tqdm(range(len(SETTINGS)), desc="runs of each kind"):
        for letter, fault in FAULTS.items():
            record = broken_run(fault, number)
            if number:
                fresh.append({"fault": fault, "record": evidence(record, "a run")})
            else:
                shown = record.model_copy(update={"name": letter, "losses": evidence(record, letter)["losses"]})
                (SHOWN / letter).mkdir(parents=True, exist_ok=True)
                write_whole(SHOWN / letter / "run.json", shown.model_dump_json() + "\n")
    write_whole(FRESH, "[\n" + ",\n".join(map(json.dumps, fresh)) + "\n]\n")


if __name__ == "__main__":
    main()
