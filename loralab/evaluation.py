"""What a training run is measured by: perplexity and answers on held-out pairs, before and after."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Any

import torch
from peft.tuners.lora import LoraLayer
from transformers import PreTrainedTokenizerBase

from .measure import HeldOut, LanguageModel, held_out
from .pairs import Pair, digest, encode_all
from .scores import question_control, score_answers

_before: dict[tuple[str, str, int], dict[str, Any]] = {}  # by the model, the texts and the number of answers


def measure_before(
    model: LanguageModel, tokenizer: PreTrainedTokenizerBase, pairs: Sequence[Pair], answers: int, max_length: int
) -> dict[str, Any]:
    """Measure an untrained model on `pairs`, with answers to the first `answers`; return the fields of the record.

    A notebook trains the same base many times: in one process, it is measured once.
    """
    if not pairs:
        return {}
    key = fingerprint(model), digest(encode_all(pairs, tokenizer, max_length)), answers
    if key not in _before:
        fields: dict[str, Any] = {"ppl_before": held_out(model, tokenizer, pairs, max_length).ppl}
        if answers:
            fields["scores_before"] = score_answers(model, tokenizer, pairs[:answers])
        _before[key] = fields  # whole, or not at all: a learner may interrupt the answers
    return _before[key]


def measure_after(
    model: LanguageModel, tokenizer: PreTrainedTokenizerBase, pairs: Sequence[Pair], answers: int, max_length: int
) -> dict[str, Any]:
    """Measure a trained model like `measure_before`, and whether its answers depend on the questions."""
    if not pairs:
        return {}
    losses, asked = held_out(model, tokenizer, pairs, max_length), pairs[:answers]
    fields: dict[str, Any] = {"ppl_after": losses.ppl}
    if asked:
        fields["scores_after"] = score_answers(model, tokenizer, asked)
    if len({pair.output for pair in asked}) > 1:
        own = HeldOut(losses.nll[:answers], losses.tokens[:answers])
        fields["question_gain"] = question_control(model, tokenizer, asked, max_length, own=own).gain
    return fields


def fingerprint(model: LanguageModel) -> str:
    """Return a SHA-256 of what decides the model's output: its configuration, its tensors and how its adapters count.

    Left out are the A and B of a LoRA layer whose B is zero: until it is trained, they add nothing.
    """
    layers = {name: module for name, module in model.named_modules() if isinstance(module, LoraLayer)}
    grown = {name: [*layer.lora_B.parameters(), *layer.lora_embedding_B.values()] for name, layer in layers.items()}
    idle = {name for name, bs in grown.items() if not any(b.any() for b in bs)}
    counting = {name: (layers[name].scaling, layers[name].active_adapters) for name in layers.keys() - idle}
    found = hashlib.sha256(f"{model.config.to_json_string()} {sorted(counting.items())}".encode())
    left_out = tuple(f"{name}.lora_{part}." for name in idle for part in "AB")
    for name, tensor in model.state_dict().items():
        if not name.startswith(left_out):
            found.update(name.removeprefix("base_model.model.").replace(".base_layer.", ".").encode())
            found.update(tensor.detach().cpu().flatten().view(torch.uint8).numpy())
    return found.hexdigest()
