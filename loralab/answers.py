"""Generate a model's answers in batches, greedily."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from .measure import evaluating

# A base's own generation_config may sample or penalise repeats, which would spoil values copied from the prompt.
GREEDY = {"do_sample": False, "num_beams": 1, "repetition_penalty": 1.0, "use_cache": True}


@dataclass(frozen=True)
class Answer:
    """A generated answer: its text without special tokens, and whether the model itself ended it.

    `ended` is false if `max_new_tokens` cut the answer off.
    """

    text: str
    ended: bool


def generate_answers(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    instructions: Sequence[str],
    max_new_tokens: int = 80,
    batch_size: int = 64,
) -> list[Answer]:
    """Return the model's greedy answer to each instruction, in the order given.

    Prompts of similar length share a batch, padded on the left; up to rounding, the answers do not depend on
    `batch_size`. `max_new_tokens` includes the end-of-answer token.
    """
    prompts = [_prompt(tokenizer, instruction) for instruction in instructions]
    order = sorted(range(len(prompts)), key=lambda i: len(prompts[i]))
    answers: dict[int, Answer] = {}
    with evaluating(model):
        for start in range(0, len(order), batch_size):
            rows = order[start : start + batch_size]
            generated = _generate(model, tokenizer, [prompts[i] for i in rows], max_new_tokens)
            answers |= dict(zip(rows, generated, strict=True))
    return [answers[i] for i in range(len(prompts))]


def answer(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, instruction: str, max_new_tokens: int = 80
) -> str:
    """Return the model's greedy answer to one instruction, as text without special tokens."""
    return generate_answers(model, tokenizer, [instruction], max_new_tokens)[0].text


def _prompt(tokenizer: PreTrainedTokenizerBase, instruction: str) -> list[int]:
    messages = [{"role": "user", "content": instruction}]
    return tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_dict=True)["input_ids"]


def _generate(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, prompts: list[list[int]], max_new_tokens: int
) -> list[Answer]:
    batch = tokenizer.pad({"input_ids": prompts}, padding_side="left", return_tensors="pt").to(model.device)
    output = model.generate(
        **batch,
        **GREEDY,
        max_new_tokens=max_new_tokens,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    new = output[:, batch["input_ids"].shape[1] :].tolist()  # [batch, new tokens]
    return [_read(tokenizer, tokens) for tokens in new]


def _read(tokenizer: PreTrainedTokenizerBase, tokens: list[int]) -> Answer:
    """Decode one row up to its end-of-answer token; the batch's padding follows that token."""
    ended = tokenizer.eos_token_id in tokens
    kept = tokens[: tokens.index(tokenizer.eos_token_id)] if ended else tokens
    return Answer(tokenizer.decode(kept, skip_special_tokens=True), ended)
