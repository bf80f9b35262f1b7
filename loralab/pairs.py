"""Instruction pairs: reading them from JSONL and encoding them for training on the answer alone."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationError, field_validator
from transformers import PreTrainedTokenizerBase

from .files import write_whole

IGNORED = -100  # the label that PyTorch's cross-entropy leaves out
SHOWN_PROBLEMS = 10


class PairsError(ValueError):
    """A file of pairs that cannot be used; the message names file, line and what to do."""


class Pair(BaseModel):
    """One instruction and the answer wanted for it."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    instruction: str
    output: str

    @field_validator("instruction", "output")
    @classmethod
    def _usable(cls, text: str) -> str:
        if not text.strip():
            raise ValueError("is empty; write it or delete the line")
        if not text.isascii() and any("\ud800" <= letter <= "\udfff" for letter in text):
            raise ValueError("holds half of a character (a lone surrogate, as in a cut emoji); write it anew")
        return text


def read_pairs(path: str | Path, tokenizer: PreTrainedTokenizerBase | None = None, max_length: int = 512) -> list[Pair]:
    """All pairs of a JSONL file: one `{"instruction": ..., "output": ...}` a line, UTF-8, blank lines allowed.

    With a `tokenizer`, also checks that each pair fits into `max_length` tokens. Raises `PairsError`
    naming every line that is wrong (the first ten); a file is loaded whole or not at all.
    """
    path = Path(path)
    pairs: list[Pair] = []
    problems: list[str] = []
    first_seen: dict[Pair, int] = {}
    for number, line in enumerate(_lines(path), start=1):
        if not line.strip():
            continue
        try:
            pair = _parse(line)
            if pair in first_seen:
                raise PairsError(f"the same pair as line {first_seen[pair]}; delete one of them")
            first_seen[pair] = number
            if tokenizer is not None:
                encode(pair, tokenizer, max_length)
            pairs.append(pair)
        except PairsError as error:
            problems.append(f"{path}:{number}: {error}")
    if problems:
        rest = len(problems) - SHOWN_PROBLEMS
        raise PairsError("\n".join(problems[:SHOWN_PROBLEMS] + ([f"... and {rest} more"] if rest > 0 else [])))
    if not pairs:
        raise PairsError(f'{path}: no pairs in it; write one {{"instruction": "...", "output": "..."}} a line')
    return pairs


def _lines(path: Path) -> list[str]:
    if not path.is_file():
        raise PairsError(f"{path}: no such file; give the path of a JSONL file with instruction pairs")
    raw = path.read_bytes()
    try:
        return raw.decode("utf-8-sig").split("\n")
    except UnicodeDecodeError as error:
        number = raw[: error.start].count(b"\n") + 1
        raise PairsError(f"{path}:{number}: not UTF-8 (byte {raw[error.start]:#04x}); save the file as UTF-8") from None


def _parse(line: str) -> Pair:
    try:
        fields = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise PairsError(f"not valid JSON ({error}); each line must be one whole JSON object") from None
    if not isinstance(fields, dict):
        raise PairsError(f"a JSON {type(fields).__name__}, not an object; write {{...}} with instruction and output")
    try:
        return Pair.model_validate(fields)
    except ValidationError as error:
        first = error.errors()[0]
        field = first["loc"][0]
        if first["type"] == "missing":
            found = ", ".join(map(repr, fields)) or "none"
            raise PairsError(f"the field {field!r} is missing (fields found: {found}); add it") from None
        what = first["ctx"]["error"] if first["type"] == "value_error" else "must be a text"
        raise PairsError(f"the field {field!r} {what}") from None


def write_pairs(path: str | Path, pairs: Iterable[Pair]) -> None:
    """Write pairs as JSONL; the file appears whole or not at all. Raises `OSError` if it cannot be written."""
    lines = [json.dumps(pair.model_dump(), ensure_ascii=False) for pair in pairs]
    write_whole(path, "\n".join(lines) + "\n")


def encode(pair: Pair, tokenizer: PreTrainedTokenizerBase, max_length: int = 512) -> dict[str, list[int]]:
    """One pair as `input_ids` and `labels`, both of length T <= max_length.

    The chat template frames the pair; the labels are -100 on the prompt, and the answer's tokens with the
    end-of-answer token on the rest, so that the loss is that of the answer and of stopping after it.
    Raises `PairsError` if the pair does not fit: a cut answer would lose its end.
    """
    user = {"role": "user", "content": pair.instruction}
    assistant = {"role": "assistant", "content": pair.output}
    prompt = _template(tokenizer, [user], add_generation_prompt=True)
    whole = _template(tokenizer, [user, assistant])
    if whole[: len(prompt)] != prompt or tokenizer.eos_token_id not in whole[len(prompt) :]:
        raise PairsError("the chat template does not continue its own prompt up to the end-of-answer token")
    end = len(whole) - whole[::-1].index(tokenizer.eos_token_id)  # what the template writes after it is not learned
    if end > max_length:
        raise PairsError(f"{end} tokens, but {max_length} fit; shorten the answer or raise max_length")
    labels = [IGNORED] * len(prompt) + whole[len(prompt) : end]
    return {"input_ids": whole[:end], "labels": labels}


def _template(tokenizer: PreTrainedTokenizerBase, messages: list[dict[str, str]], **options: Any) -> list[int]:
    return tokenizer.apply_chat_template(messages, return_dict=True, **options)["input_ids"]


def encode_all(
    pairs: Sequence[Pair], tokenizer: PreTrainedTokenizerBase, max_length: int = 512
) -> list[dict[str, list[int]]]:
    """Every pair encoded; the message of a `PairsError` names the pair's place in the list."""
    encoded = []
    for number, pair in enumerate(pairs, start=1):
        try:
            encoded.append(encode(pair, tokenizer, max_length))
        except PairsError as error:
            raise PairsError(f"pair {number} ({pair.instruction[:40]!r}): {error}") from None
    return encoded
