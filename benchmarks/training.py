"""What training costs: the source's recipe, TRL, a plain Trainer and loralab, and what each setting in between saves.

Every recipe trains the same adapter (r = 16 on q, k, v, o) on the same pairs, 16 pairs per step, each in a process of its
own; the recipes alternate, and a figure is the median over the rounds. Each process also measures the rate of this
machine's matmuls on the model's own shapes, and what share of it the training reaches. Writes
`benchmarks/results/training.json` (the embedded base) or `training-<base>.json`.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import tempfile
import time
import timeit
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from torch.nn.functional import linear
from transformers import (
    AutoConfig,
    DataCollatorForSeq2Seq,
    DataCollatorWithFlattening,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    Trainer,
    TrainingArguments,
)

from benchmarks.measured import in_a_process, save
from loralab import (
    Base,
    Pair,
    choose_base,
    data_path,
    encode_all,
    load_model,
    load_tokenizer,
    peak_memory,
    perplexity,
    precision,
    read_pairs,
    reset_peak_memory,
    train,
)
from loralab.collate import AnswersAtTheEnd
from loralab.hardware import weights_cast_once
from loralab.shapes import ATTENTION, lora_config

PAIRS = {"embedded": (300, 2), "smollm2-135m": (64, 1)}  # and epochs


@dataclass(frozen=True)
class Recipe:
    """Settings of a plain `transformers.Trainer`; `arguments` are further ones of `TrainingArguments`."""

    note: str
    batch: int = 16
    accumulation: int = 1
    collator: str = "padded"
    attention: str = "sdpa"
    dropout: float = 0.05
    cast_once: bool = False
    compiled: bool = False
    arguments: dict[str, Any] = field(default_factory=dict)


SOURCE = {"batch": 4, "accumulation": 4}
BF16 = {"bf16": True}
FASTEST = {"collator": "answers", "attention": "eager", "arguments": BF16}  # where bf16 pays
PLAIN = {
    "source": Recipe("every text padded to 512 tokens, 4 x 4 pairs per step, fp32", **SOURCE, collator="to 512"),
    "dynamic padding": Recipe("padded to the longest text of its batch", **SOURCE),
    "one batch": Recipe("16 pairs at once instead of 4 x 4"),
    "answers' logits": Recipe("no logits for prompts", collator="answers"),
}
IN_BF16 = {
    "bf16 matmuls": Recipe("autocast", collator="answers", arguments=BF16),
    "written-out attention": Recipe('attn_implementation="eager"', **FASTEST),
    "weights cast once": Recipe(
        "frozen weights cast before the first step, not in every one", **FASTEST, cast_once=True
    ),
}
ASIDE = {
    "source, bf16": Recipe("the source's recipe with its bf16=True", **SOURCE, collator="to 512", arguments=BF16),
    "packed": Recipe(
        "a batch as one long text, position ids instead of a mask; tried, not used", collator="flat", arguments=BF16
    ),
    "length grouping": Recipe(
        "batches of texts of similar length; tried, not used",
        **FASTEST | {"arguments": BF16 | {"train_sampling_strategy": "group_by_length"}},
    ),
    "compiled": Recipe(
        "each decoder layer by torch.compile; tried, not used", **FASTEST, cast_once=True, compiled=True
    ),
    "no dropout": Recipe("lora_dropout=0", **FASTEST, cast_once=True, dropout=0.0),
}
TRL = {
    "TRL": ("SFTTrainer with its defaults, 4 x 4 pairs per step", {}),
    "TRL, packing": ("SFTTrainer with packing=True; fewer and longer steps", {"packing": True}),
}
OURS = "loralab"
NOTES = (
    {name: recipe.note for name, recipe in (PLAIN | IN_BF16 | ASIDE).items()}
    | {name: note for name, (note, _) in TRL.items()}
    | {OURS: "loralab.train with batch_size=16"}
)


def ladder(base: str) -> list[str]:
    """Return the way from the source's recipe to loralab's on this machine, one setting at a time."""
    width = AutoConfig.from_pretrained(choose_base(base).source).hidden_size
    return [*PLAIN, *(IN_BF16 if precision(width=width).compute == torch.bfloat16 else {})]


@dataclass(frozen=True)
class Task:
    """What every recipe is given: a base and the adapter it is to train, the pairs, a folder to write to, the seed."""

    base: Base
    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    adapter: LoraConfig
    pairs: list[Pair]
    folder: str
    seed: int

    @classmethod
    def new(cls, name: str, folder: str, seed: int, dropout: float) -> Task:
        base = choose_base(name)
        pairs = read_pairs(data_path("pairs/train.jsonl"))[: PAIRS[name][0]]
        torch.manual_seed(seed)
        model = load_model(base)
        adapter = lora_config(model, ATTENTION, r=16, lora_alpha=32, lora_dropout=dropout)
        return cls(base, model, load_tokenizer(base), adapter, pairs, folder, seed)

    def encoded(self) -> list[dict[str, list[int]]]:
        return encode_all(self.pairs, self.tokenizer, self.base.max_length)

    def arguments(self, batch: int, accumulation: int) -> dict[str, Any]:
        """Return what `TrainingArguments` are for every recipe."""
        return {
            "output_dir": self.folder,
            "per_device_train_batch_size": batch,
            "gradient_accumulation_steps": accumulation,
            "num_train_epochs": PAIRS[self.base.name][1],
            "learning_rate": self.base.learning_rate,
            "lr_scheduler_type": "cosine",
            "warmup_steps": 2,
            "logging_steps": 1,
            "save_strategy": "no",
            "report_to": "none",
            "use_cpu": precision().device == "cpu",
            "dataloader_pin_memory": precision().device == "cuda",
            "disable_tqdm": True,
            "seed": self.seed,
        }


def measure(name: str, base: str, seed: int) -> dict[str, float]:
    """Train by the recipe called `name`: seconds, useful (not padding) tokens per second, held-out perplexity, memory.

    `matmul_share` is the share of this machine's matmul rate that the training reaches: 4 FLOPs per parameter and token
    are useful, since frozen weights need no gradient.
    """
    recipe = (PLAIN | IN_BF16 | ASIDE).get(name)
    with tempfile.TemporaryDirectory() as folder:
        task = Task.new(base, folder, seed, recipe.dropout if recipe else 0.05)
        tokens = PAIRS[base][1] * sum(len(one["input_ids"]) for one in task.encoded())
        parameters = task.model.num_parameters()
        rate = max(matmul_rate(task.model, dtype) for dtype in (torch.float32, torch.bfloat16))
        reset_peak_memory()
        trained, start = _prepared(name, task)
        started = time.perf_counter()
        start()
        seconds, memory = time.perf_counter() - started, peak_memory()
    evaluation = read_pairs(data_path("pairs/eval.jsonl"))
    return {
        "seconds": seconds,
        "tokens_per_second": tokens / seconds,
        "ppl": perplexity(trained.float(), task.tokenizer, evaluation, task.base.max_length),
        "peak_memory": memory,
        "matmul_rate": rate,
        "matmul_share": 4 * parameters * tokens / seconds / rate,
    }


@torch.inference_mode()
def matmul_rate(model: PreTrainedModel, dtype: torch.dtype) -> float:
    """Return the FLOPs per second of products with the model's linear layers, each shape as often as it occurs."""
    shapes = Counter(tuple(module.weight.shape) for module in model.modules() if isinstance(module, torch.nn.Linear))
    tokens, seconds = 1024, 0.0
    for (out, into), number in shapes.items():
        values, weights = torch.randn(tokens, into, dtype=dtype), torch.randn(out, into, dtype=dtype)
        seconds += number * min(timeit.repeat(lambda v=values, w=weights: linear(v, w), number=1, repeat=5))
    return 2 * tokens * sum(math.prod(shape) * number for shape, number in shapes.items()) / seconds


def _prepared(name: str, task: Task) -> tuple[PeftModel, Callable[[], object]]:
    """Return the model to be trained, and what trains it."""
    if name == OURS:
        return _with_loralab(task)
    return _with_trl(task, TRL[name][1]) if name in TRL else _with_trainer(task, (PLAIN | IN_BF16 | ASIDE)[name])


def _with_trainer(task: Task, recipe: Recipe) -> tuple[PeftModel, Callable[[], object]]:
    collator = {
        "to 512": lambda: DataCollatorForSeq2Seq(task.tokenizer, padding="max_length", max_length=512),
        "padded": lambda: DataCollatorForSeq2Seq(task.tokenizer),
        "answers": lambda: AnswersAtTheEnd(task.tokenizer),
        "flat": lambda: DataCollatorWithFlattening(),
    }[recipe.collator]()
    adapted = get_peft_model(task.model, task.adapter)
    task.model.set_attn_implementation(recipe.attention)
    if recipe.compiled:
        for layer in task.model.model.layers:
            layer.compile()
    settings = TrainingArguments(**task.arguments(recipe.batch, recipe.accumulation) | recipe.arguments)
    trainer = Trainer(adapted, settings, train_dataset=task.encoded(), data_collator=collator)
    start = weights_cast_once(adapted, frozen_only=True)(trainer.train) if recipe.cast_once else trainer.train
    return adapted, start


def _with_trl(task: Task, further: dict[str, Any]) -> tuple[PeftModel, Callable[[], object]]:
    from datasets import Dataset  # slow to import, as is TRL
    from trl import SFTConfig, SFTTrainer

    rows = [
        {
            "prompt": [{"role": "user", "content": pair.instruction}],
            "completion": [{"role": "assistant", "content": pair.output}],
        }
        for pair in task.pairs
    ]
    settings = SFTConfig(**task.arguments(**SOURCE), max_length=512, **further)
    given = {"processing_class": task.tokenizer, "peft_config": task.adapter}
    trainer = SFTTrainer(task.model, settings, train_dataset=Dataset.from_list(rows), **given)
    return trainer.model, trainer.train


def _with_loralab(task: Task) -> tuple[PeftModel, Callable[[], object]]:
    adapted = get_peft_model(task.model, task.adapter)
    settings = {"batch_size": 16, "warmup_steps": 2, "seed": task.seed, "quiet": True}
    epochs = PAIRS[task.base.name][1]
    given = (adapted, task.tokenizer, task.pairs, task.folder, task.base)
    return adapted, lambda: train(*given, epochs=epochs, **settings)


def summarise(rounds: list[dict[str, dict[str, float]]], way: list[str]) -> dict[str, Any]:
    """Per recipe the medians and the range over the rounds; per ratio the median of the rounds' own ratios."""
    recipes = {}
    for name in rounds[0]:
        speeds = [one[name]["tokens_per_second"] for one in rounds]
        recipes[name] = {
            "note": NOTES[name],
            "tokens_per_second": statistics.median(speeds),
            "lowest": min(speeds),
            "highest": max(speeds),
            "ppl": statistics.median(one[name]["ppl"] for one in rounds),
            "peak_memory": statistics.median(one[name]["peak_memory"] for one in rounds),
            "matmul_share": statistics.median(one[name]["matmul_share"] for one in rounds),
            "loralab_is_faster_by": statistics.median(
                one[OURS]["tokens_per_second"] / one[name]["tokens_per_second"] for one in rounds
            ),
        }
    steps = {}
    for before, after in pairwise(way):
        if before in recipes and after in recipes:
            ratios = [one[after]["tokens_per_second"] / one[before]["tokens_per_second"] for one in rounds]
            steps[after] = statistics.median(ratios)
    return {"recipes": recipes, "each_step_is_faster_by": steps}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--base", choices=PAIRS, default="embedded")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--only", choices=NOTES, help="train once by this recipe and print what was measured")
    parser.add_argument("--seed", type=int, default=0)
    chosen = parser.parse_args()
    if chosen.only:
        print(json.dumps(measure(chosen.only, chosen.base, chosen.seed)))
        return
    pairs, epochs = PAIRS[chosen.base]
    rounds: list[dict[str, dict[str, float]]] = []
    for seed in range(chosen.rounds):
        rounds.append({})
        for name in NOTES:
            how = ("--only", name, "--base", chosen.base, "--seed", str(seed))
            rounds[-1][name] = found = in_a_process("benchmarks.training", *how)
            print(f"{seed} {name:24} " + "  ".join(f"{k} {v:,.2f}" for k, v in found.items()), flush=True)
        about = {"base": chosen.base, "pairs": pairs, "epochs": epochs, "rounds": rounds}
        result = about | summarise(rounds, ladder(chosen.base))
        save("training" if chosen.base == "embedded" else f"training-{chosen.base}", result)
    print(json.dumps({name: result[name] for name in ("recipes", "each_step_is_faster_by")}, indent=1))


if __name__ == "__main__":
    main()
