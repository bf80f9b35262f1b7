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
from loralab.files import write_whole
from loralab.layers import ATTENTION
from loralab.pairs import IGNORED

ROOT = Path(__file__).parents[1]
SHOWN, FRESH = ROOT / "data" / "broken", ROOT / "grader" / "evaluation" / "broken_runs.json"
SOUND, PROMPT, END, LARGE, SMALL, SHUFFLED, LAYERS = (
    "sound",
    "prompt not masked",
    "end not learned",
    "steps too large",
    "steps too small",
    "answers shuffled",
    "layers missing",
)
# Factors of the base's learning rate and of alpha = 2r. A sound run may have both changed: their product counts.
STEPS = {
    SOUND: [(1, 1), (2, 0.5), (0.5, 2), (0.5, 1), (1, 0.5), (0.25, 4)],
    LARGE: [(1, 32), (16, 1), (4, 8), (8, 2), (24, 1), (1, 16)],
    SMALL: [(1, 0.01), (0.01, 1), (0.05, 0.1), (0.02, 0.5), (0.005, 1), (2, 0.005)],
}
BLOCKS = [[0], [3], [1], [2], [0], [1]]  # of four, which have an adapter if layers are missing
SETTINGS = [(16, 0), (8, 100), (32, 200), (16, 300), (8, 200), (32, 100)]  # rank, and the first of the 100 pairs
NOT_SHOWN = ("hardware", "versions", "created", "peak_memory", "train_digest", "eval_digest")


def broken_run(fault: str, number: int) -> RunRecord:
    """Train run `number` with this fault on the embedded base and return its record."""
    base = choose_base("embedded")
    tokenizer, (rank, first) = load_tokenizer(base), SETTINGS[number]
    rate, scale = STEPS.get(fault, [(1, 1)] * len(SETTINGS))[number]
    pairs = read_pairs(data_path("pairs/train.jsonl"))[first : first + 100]
    if fault == SHUFFLED:
        outputs = [pair.output for pair in pairs]
        random.Random(number).shuffle(outputs)
        pairs = [Pair(instruction=pair.instruction, output=output) for pair, output in zip(pairs, outputs, strict=True)]
    torch.manual_seed(number)
    config = LoraConfig(
        r=rank,
        lora_alpha=scale * 2 * rank,
        lora_dropout=0.05,
        target_modules=list(ATTENTION),
        layers_to_transform=BLOCKS[number] if fault == LAYERS else None,
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
    if fault == PROMPT:
        return encoded | {"labels": encoded["input_ids"]}
    if fault == END:
        return encoded | {"labels": [*encoded["labels"][:-1], IGNORED]}
    return encoded


def evidence(record: RunRecord, name: str) -> dict[str, object]:
    """Return what is kept of a record: all but the machine, the time, and digests of data; losses to four digits."""
    fields = record.model_dump(mode="json", exclude=set(NOT_SHOWN))
    return fields | {"name": name, "losses": [float(f"{loss:.4g}") for loss in record.losses]}


def main() -> None:
    """Train all runs and write both files."""
    disable_progress_bar()
    faults = [PROMPT, LARGE, SOUND, END, SMALL, SHUFFLED, LAYERS]
    fresh = []
    for number in tqdm(range(len(SETTINGS)), desc="runs of each kind"):
        for letter, fault in zip("abcdefg", faults, strict=True):
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
