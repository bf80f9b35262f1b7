"""Pretrain the embedded base on docstrings: `make base`.

A small Qwen2 (same module names, ChatML, grouped-query attention, tied embeddings) is trained from
scratch: Muon for the weight matrices, AdamW for the rest, documents packed without cross-talk
(position ids restart at every document and no attention mask is passed). The run checkpoints itself
and resumes where it stopped; `bars.py` then measures what it learned and writes the model card.
"""

from __future__ import annotations

import argparse
import json
import random
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

import numpy as np
import torch
from corpus import Entry, chatml, collect, documents, fingerprint, plain_exchanges, split
from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from tqdm.auto import tqdm
from transformers import PreTrainedTokenizerFast, Qwen2Config, Qwen2ForCausalLM, Qwen2Tokenizer

from loralab.bases import CHATML

ROOT = Path(__file__).parents[2]
WORK = ROOT / "build" / "base"
TARGET = ROOT / "data" / "base"

SEED = 20261123
VOCABULARY = 4096
ROW = 256  # tokens in a training row
BATCH = 32  # rows in a step
WARMUP = 100  # steps
MUON_LR, ADAMW_LR = 6e-3, 3e-3
CHECKPOINT_EVERY = 100  # steps
TUNING = 0.08  # the last share of the tokens: short exchanges alone, so that it answers and stops
TUNING_LR = 0.1  # as a factor on the learning rates, falling to zero
TOKENS = {"cpu": 18_000_000, "cuda": 400_000_000}

SPECIAL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
# How Qwen2 splits a text into words: AutoTokenizer gives every Qwen2 model this splitter, so it must be the trained one.
WORDS = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)


def build_tokenizer(texts: list[str]) -> Qwen2Tokenizer:
    """A byte-level BPE trained on `texts`, digits one by one, with ChatML as its chat template."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(WORDS), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=SPECIAL,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    wrapped = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        eos_token="<|im_end|>",
        pad_token="<|endoftext|>",
        additional_special_tokens=["<|im_start|>"],
        chat_template=CHATML,
        model_max_length=1024,
        clean_up_tokenization_spaces=False,
    )
    wrapped.save_pretrained(WORK / "tokenizer")
    return Qwen2Tokenizer.from_pretrained(WORK / "tokenizer")


def build_model() -> Qwen2ForCausalLM:
    """The untrained base: 4.0 M parameters."""
    config = Qwen2Config(
        vocab_size=VOCABULARY,
        hidden_size=256,
        intermediate_size=704,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=1024,
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=2,
        pad_token_id=0,
    )
    return Qwen2ForCausalLM(config)


def pack(encoded: list[list[int]]) -> tuple[np.ndarray, np.ndarray]:
    """First-fit packing of token lists into rows. Returns (tokens, positions), each [rows, ROW] int16;
    the space left at the end of a row is filled with padding, each pad its own document (position 0)."""
    open_rows: list[list[list[int]]] = []
    closed: list[list[list[int]]] = []
    for document in encoded:
        for start in range(0, len(document), ROW):
            piece = document[start : start + ROW]
            room = next((row for row in open_rows if sum(map(len, row)) + len(piece) <= ROW), None)
            if room is None:
                room = []
                open_rows.append(room)
            room.append(piece)
            if len(open_rows) > 48:
                closed.append(open_rows.pop(max(range(49), key=lambda i: sum(map(len, open_rows[i])))))
    rows = closed + open_rows
    tokens = np.zeros((len(rows), ROW), np.int16)
    positions = np.zeros((len(rows), ROW), np.int16)
    for i, row in enumerate(rows):
        at = 0
        for piece in row:
            tokens[i, at : at + len(piece)] = piece
            positions[i, at : at + len(piece)] = np.arange(len(piece))
            at += len(piece)
    return tokens, positions


def tuning_texts(entries: list[Entry], seed: int) -> list[str]:
    """One epoch of short exchanges: the last thing to train on."""
    return [chatml(*pair) for pair in plain_exchanges(entries, seed)]


def rows_of(epoch: Callable[[int], list[str]], tokenizer: Qwen2Tokenizer, budget: int) -> tuple[np.ndarray, np.ndarray]:
    """Packed rows for `budget` tokens, a whole number of batches, epoch after epoch of `epoch(seed)`."""
    tokens, positions, seed = [], [], SEED
    while sum(map(len, tokens)) * ROW < budget:
        packed = pack(tokenizer(epoch(seed))["input_ids"])
        order = np.random.default_rng(seed).permutation(len(packed[0]))
        tokens.append(packed[0][order])
        positions.append(packed[1][order])
        seed += 1
    rows = budget // (ROW * BATCH) * BATCH
    return np.concatenate(tokens)[:rows], np.concatenate(positions)[:rows]


def prepare(budget: int) -> tuple[Qwen2Tokenizer, np.ndarray, np.ndarray, dict]:
    """Tokenizer, packed rows for `budget` tokens, and what is known of the corpus; cached in WORK."""
    cached = WORK / f"rows-{budget}.npz"
    if cached.exists():
        rows = np.load(cached)
        facts = json.loads((WORK / "corpus.json").read_text())
        return Qwen2Tokenizer.from_pretrained(WORK / "tokenizer"), rows["tokens"], rows["positions"], facts
    print("reading docstrings (about two minutes) ...", flush=True)
    WORK.mkdir(parents=True, exist_ok=True)
    everything = collect()
    train, held = split(everything)
    facts = {
        "docstrings": len(everything),
        "train": len(train),
        "held_out": len(held),
        "sha256": fingerprint(everything),
    }
    (WORK / "held_out.json").write_text(json.dumps([asdict(entry) for entry in held]))
    sample = random.Random(SEED).sample(documents(train, SEED), 60_000)
    tokenizer = build_tokenizer(sample)
    tokens, positions = rows_of(lambda seed: documents(train, seed), tokenizer, budget)
    facts["epoch_tokens"] = sum(map(len, tokenizer(documents(train, SEED))["input_ids"]))
    tuning = rows_of(lambda seed: tuning_texts(train, seed), tokenizer, int(TUNING * budget))
    facts["tuning_steps"] = len(tuning[0]) // BATCH
    tokens, positions = np.concatenate([tokens, tuning[0]]), np.concatenate([positions, tuning[1]])
    (WORK / "corpus.json").write_text(json.dumps(facts))
    np.savez(cached, tokens=tokens, positions=positions)
    return tokenizer, tokens, positions, facts


def optimizers(model: Qwen2ForCausalLM) -> list[torch.optim.Optimizer]:
    """Muon for the matrices inside the layers, AdamW for embeddings, biases and norms."""
    matrices = [p for n, p in model.named_parameters() if p.ndim == 2 and "embed" not in n]
    others = [p for n, p in model.named_parameters() if p.ndim != 2 or "embed" in n]
    return [
        torch.optim.Muon(matrices, lr=MUON_LR, weight_decay=0.01, adjust_lr_fn="match_rms_adamw"),
        torch.optim.AdamW(others, lr=ADAMW_LR, betas=(0.9, 0.95), weight_decay=0.0),
    ]


def schedule(step: int, steps: int, tuning: int) -> float:
    """The factor on the learning rate: linear warm-up, linear decay to zero, and for the last `tuning` of all
    `steps` another, lower decay to zero."""
    main = steps - tuning
    if step >= main:
        return TUNING_LR * (steps - step) / tuning
    return min((step + 1) / WARMUP, (main - step) / max(1, main - WARMUP))


def train(budget: int, device: str) -> None:
    """Train for `budget` tokens, resuming from the last checkpoint, and save the base into TARGET."""
    torch.manual_seed(SEED)
    tokenizer, tokens, positions, facts = prepare(budget)
    model = build_model().to(device)
    optimisers = optimizers(model)
    steps, step, seconds, losses = len(tokens) // BATCH, 0, 0.0, []
    checkpoint = WORK / f"checkpoint-{budget}.pt"
    if checkpoint.exists():
        state = torch.load(checkpoint, map_location=device, weights_only=True)
        model.load_state_dict(state["model"])
        for optimiser, saved in zip(optimisers, state["optimisers"], strict=True):
            optimiser.load_state_dict(saved)
        step, seconds, losses = state["step"], state["seconds"], state["losses"]
        print(f"resuming at step {step} of {steps}")
    forward = torch.compile(model)
    bar = tqdm(range(step, steps), initial=step, total=steps, desc="pretraining", mininterval=5)
    for step in bar:
        start = time.perf_counter()
        rows = slice(step * BATCH, (step + 1) * BATCH)
        batch = torch.from_numpy(tokens[rows].astype(np.int64)).to(device)
        place = torch.from_numpy(positions[rows].astype(np.int64)).to(device)
        labels = batch.masked_fill(place == 0, -100)  # no document predicts the next one's first token
        for optimiser, lr in zip(optimisers, (MUON_LR, ADAMW_LR), strict=True):
            optimiser.param_groups[0]["lr"] = lr * schedule(step, steps, facts["tuning_steps"])
        with torch.autocast(device, dtype=torch.bfloat16, enabled=device == "cuda"):
            loss = forward(input_ids=batch, position_ids=place, labels=labels).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for optimiser in optimisers:
            optimiser.step()
            optimiser.zero_grad()
        seconds += time.perf_counter() - start
        losses.append(loss.item())
        if step % 20 == 0:
            recent = sum(losses[-20:]) / len(losses[-20:])
            bar.set_postfix(loss=f"{recent:.3f}", tokens=f"{(step + 1) * BATCH * ROW / 1e6:.1f}M")
        if (step + 1) % CHECKPOINT_EVERY == 0:
            state = {"model": model.state_dict(), "optimisers": [o.state_dict() for o in optimisers],
                     "step": step + 1, "seconds": seconds, "losses": losses}  # fmt: skip
            torch.save(state, checkpoint.with_suffix(".tmp"))
            checkpoint.with_suffix(".tmp").replace(checkpoint)
    model.to(torch.bfloat16).save_pretrained(TARGET)
    tokenizer.save_pretrained(TARGET)
    facts |= {"tokens": steps * BATCH * ROW, "steps": steps, "seconds": round(seconds), "device": device,
              "seed": SEED, "losses": [round(x, 4) for x in losses]}  # fmt: skip
    (WORK / "training.json").write_text(json.dumps(facts))
    print(f"saved to {TARGET.relative_to(ROOT)} after {seconds / 60:.0f} minutes of training")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--tokens", type=int, help="token budget (default: 18 M on a CPU, 400 M on a GPU)")
    arguments = parser.parse_args()
    train(arguments.tokens or TOKENS[arguments.device], arguments.device)
