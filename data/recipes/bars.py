"""Measure the embedded base on text that it never trained on, and write its model card.

Exits with status 1 if a bar is missed.
"""

from __future__ import annotations

import json
import math
import platform
import sys
import time
from importlib.metadata import version

import torch
from corpus import Entry, chatml, plain_exchanges
from pretrain import ADAMW_LR, BATCH, MUON_LR, ROW, SEED, TARGET, WORK
from tqdm.auto import tqdm
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

MAX_PPL = {"cpu": 25.0, "cuda": 12.0}
QUESTIONS, MIN_ENDED, MAX_ANSWER_TOKENS = 100, 95, 64
MAX_BYTES = 12_000_000
MAX_LOAD_SECONDS = 1.0


def perplexity(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, held: list[Entry]) -> tuple[float, int]:
    """(token-weighted perplexity, number of predicted tokens), each docstring on its own, in rows of ROW tokens."""
    rows = []
    for entry in held:
        ids = tokenizer(f"{entry.text}<|endoftext|>")["input_ids"]
        rows += [ids[start : start + ROW] for start in range(0, len(ids), ROW)]
    rows = sorted((row for row in rows if len(row) > 1), key=len)
    nll, count = 0.0, 0
    for start in tqdm(range(0, len(rows), 32), desc="held-out perplexity"):
        batch = tokenizer.pad({"input_ids": rows[start : start + 32]}, padding_side="right", return_tensors="pt")
        labels = batch["input_ids"].masked_fill(batch["attention_mask"] == 0, -100)[:, 1:]
        with torch.inference_mode():
            logits = model(**batch).logits[:, :-1].float()
        nll += torch.nn.functional.cross_entropy(logits.transpose(1, 2), labels, reduction="sum").item()
        count += int((labels != -100).sum())
    return math.exp(nll / count), count


def greedy_answers(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, questions: list[str]
) -> list[tuple[str, bool]]:
    """(answer, whether it ended by itself within MAX_ANSWER_TOKENS) for each question."""
    answers = []
    for question in tqdm(questions, desc="greedy answers"):
        prompt = tokenizer(chatml(question), return_tensors="pt")
        with torch.inference_mode():
            output = model.generate(**prompt, max_new_tokens=MAX_ANSWER_TOKENS, do_sample=False)
        new = output[0, prompt["input_ids"].shape[1] :]
        ended = tokenizer.eos_token_id in new
        answers.append((tokenizer.decode(new, skip_special_tokens=True).strip(), ended))
    return answers


def load() -> tuple[PreTrainedModel, PreTrainedTokenizerBase, float]:
    """The saved base in fp32, its tokenizer, and the seconds both took to load."""
    AutoTokenizer.from_pretrained(TARGET)  # the first call imports what it needs, which is not loading
    started = time.perf_counter()
    tokenizer = AutoTokenizer.from_pretrained(TARGET)
    model = AutoModelForCausalLM.from_pretrained(TARGET, dtype=torch.float32)
    return model.eval(), tokenizer, time.perf_counter() - started


def main() -> None:
    training = json.loads((WORK / "training.json").read_text())
    model, tokenizer, load_seconds = load()
    held = [Entry(**fields) for fields in json.loads((WORK / "held_out.json").read_text())]
    ppl, predicted = perplexity(model, tokenizer, held)
    asked = plain_exchanges(held, SEED)[:QUESTIONS]
    answers = greedy_answers(model, tokenizer, [question for question, _ in asked])
    ended = sum(done for _, done in answers)
    size = sum(file.stat().st_size for file in TARGET.iterdir() if file.name != "README.md")
    limit = MAX_PPL[training["device"]]
    bars = {
        f"held-out docstring perplexity at most {limit:g}": (f"{ppl:.2f}", ppl <= limit),
        f"of {QUESTIONS} held-out questions at least {MIN_ENDED} end within {MAX_ANSWER_TOKENS} tokens": (
            f"{ended}",
            ended >= MIN_ENDED,
        ),
        f"folder at most {MAX_BYTES / 1e6:g} MB": (f"{size / 1e6:.1f} MB", size <= MAX_BYTES),
        f"loads in under {MAX_LOAD_SECONDS:g} s": (f"{load_seconds:.2f} s", load_seconds < MAX_LOAD_SECONDS),
    }
    for bar, (found, met) in bars.items():
        print(f"{'met ' if met else 'MISSED'}  {bar}: {found}")
    samples = "\n".join(
        f"> **{question}**\n>\n> {answer}\n"
        for (question, _), (answer, _) in list(zip(asked, answers, strict=True))[:6]
    )
    (TARGET / "README.md").write_text(card(training, bars, predicted, model.num_parameters(), samples), "utf-8")
    sys.exit(0 if all(met for _, met in bars.values()) else 1)


def card(training: dict, bars: dict[str, tuple[str, bool]], predicted: int, parameters: int, samples: str) -> str:
    """The model card, every figure from this run."""
    rows = "\n".join(f"| {bar} | {found} | {'yes' if met else 'no'} |" for bar, (found, met) in bars.items())
    packages = ", ".join(f"{name} {version(name)}" for name in ("torch", "transformers", "tokenizers"))
    return f"""---
license: apache-2.0
language: en
library_name: transformers
pipeline_tag: text-generation
---

# The embedded base

A causal language model of {parameters:,} parameters in the Qwen2 architecture (4 layers, hidden size 256, 4 query and
2 key/value heads, MLP 704, tied embeddings, byte-level BPE of 4,096 tokens, ChatML). It exists so that a course on LoRA runs
anywhere: it has really learned a little English, from Python docstrings, and it answers in one sentence and stops.
It is far too small to be useful for anything else, and what it says about Python is often wrong.

This card is written by `data/recipes/bars.py`; `make base` repeats the whole of it.

## Measured

| bar | found | met |
|---|---|---|
{rows}

The perplexity is token-weighted over {predicted:,} tokens of {training["held_out"]:,} held-out docstrings, each on its own. Whole
source files are held out, and a held-out docstring most of whose lines also stand in the training part is left out.

The questions are exchanges derived from held-out docstrings whose answers are plain sentences. Where an answer does not end, it
repeats itself. The first six of the greedy answers:

{samples}
## Trained

| | |
|---|---|
| text | {training["docstrings"]:,} unique docstrings of the standard library and of the installed packages ({training["train"]:,} for training), plain and as question/answer pairs derived by rule |
| corpus SHA-256 | `{training["sha256"]}` |
| tokens | {training["tokens"]:,} in {training["steps"]:,} steps of {BATCH} rows of {ROW}; one pass over the text has {training["epoch_tokens"]:,} |
| phases | all of the text, then {training["tuning_steps"]} steps of short exchanges alone, so that it answers and stops |
| optimiser | Muon (learning rate {MUON_LR:g}) for matrices, AdamW ({ADAMW_LR:g}) for the rest, decaying linearly to zero; a tenth of that, again to zero, in the second phase |
| seconds | {training["seconds"]:,} on {training["device"].upper()} ({torch.get_num_threads()} threads, {platform.machine()}) |
| seed | {training["seed"]} |
| versions | Python {platform.python_version()}, {packages} |

## Licence and provenance

Apache-2.0, like the course. The weights were trained from scratch by the recipe in `data/recipes/`; no other model and no
downloaded data set took part. The docstrings belong to their projects and stay in their packages: none is in the repository.
Training text is English technical prose; context beyond {ROW} tokens was not trained.
"""


if __name__ == "__main__":
    main()
