"""Generate a model's answers in batches, greedily."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from transformers import PreTrainedTokenizerBase

from .measure import LanguageModel, evaluating
from .pairs import Pair, chat_tokens

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
    model: LanguageModel,
    tokenizer: PreTrainedTokenizerBase,
    questions: Sequence[str | Pair],
    max_new_tokens: int = 80,
    batch_size: int = 64,
) -> list[Answer]:
    """Return the model's greedy answer to each question, in the order given.

    A question is an instruction, or a pair, whose earlier messages then come before its instruction.
    Prompts of similar length share a batch, padded on the left; up to rounding, the answers do not depend on
    `batch_size`. `max_new_tokens` includes the end-of-answer token.
    """
    prompts = [_prompt(tokenizer, question) for question in questions]
    order = sorted(range(len(prompts)), key=lambda i: len(prompts[i]))
    answers: dict[int, Answer] = {}
    with evaluating(model):
        for start in range(0, len(order), batch_size):
            rows = order[start : start + batch_size]
            generated = _generate(model, tokenizer, [prompts[i] for i in rows], max_new_tokens)
            answers |= dict(zip(rows, generated, strict=True))
    return [answers[i] for i in range(len(prompts))]


def answer(model: LanguageModel, tokenizer: PreTrainedTokenizerBase, instruction: str, max_new_tokens: int = 80) -> str:
    """Return the model's greedy answer to one instruction, as text without special tokens."""
    return generate_answers(model, tokenizer, [instruction], max_new_tokens)[0].text


def _prompt(tokenizer: PreTrainedTokenizerBase, question: str | Pair) -> list[int]:
    messages = question.question if isinstance(question, Pair) else [{"role": "user", "content": question}]
    return chat_tokens(tokenizer, messages, add_generation_prompt=True)


def _generate(
    model: LanguageModel, tokenizer: PreTrainedTokenizerBase, prompts: list[list[int]], max_new_tokens: int
) -> list[Answer]:
    batch = tokenizer.pad({"input_ids": prompts}, padding_side="left", return_tensors="pt").to(model.device)
    output = model.generate(  # type: ignore[operator]  # from a mixin that PreTrainedModel lacks
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
    return Answer(str(tokenizer.decode(kept, skip_special_tokens=True)), ended)
