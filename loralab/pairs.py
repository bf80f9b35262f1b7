"""Instruction pairs, and their encoding for training on the answer alone."""

from __future__ import annotations

import hashlib
import json
import unicodedata
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, cast

from jinja2 import TemplateError
from pydantic import BaseModel, ConfigDict, field_validator
from transformers import BatchEncoding, PreTrainedTokenizerBase

from .errors import LoralabError
from .files import write_whole

IGNORED = -100  # the label that PyTorch's cross-entropy leaves out
Role = Literal["system", "user", "assistant"]
BLANK = "\u115f\u1160\u2800\u3164\uffa0"  # fillers and the empty braille cell: letters and symbols without a mark


class PairsError(LoralabError):
    """Pairs that cannot be used; the message names the place and what to do."""


def _whole_letters(text: str) -> str:
    if not text.isascii() and any("\ud800" <= letter <= "\udfff" for letter in text):
        raise ValueError("holds half of a character (a lone surrogate, as in a cut emoji); write it again")
    return text


class Turn(BaseModel):
    """One message of a conversation."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    role: Role
    content: str

    _whole = field_validator("content")(_whole_letters)


class Pair(BaseModel):
    """One instruction and its right answer; `history` has the messages before them, if any."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    instruction: str
    output: str
    history: tuple[Turn, ...] = ()

    @field_validator("instruction", "output")
    @classmethod
    def _usable(cls, text: str) -> str:
        if not any(map(_visible, text)):
            raise ValueError("is empty; write it or delete the line")
        return _whole_letters(text)

    @property
    def question(self) -> list[dict[str, str]]:
        """The messages up to the answer, as chat templates take them."""
        return [*(turn.model_dump() for turn in self.history), {"role": "user", "content": self.instruction}]


def _visible(letter: str) -> bool:
    """Tell whether a character leaves a mark: not a space, a control or format character, or a blank symbol."""
    return (letter.isascii() and letter.isprintable() and letter != " ") or (
        unicodedata.category(letter) not in {"Cc", "Cf", "Zs", "Zl", "Zp"} and letter not in BLANK
    )


def write_pairs(path: str | Path, pairs: Iterable[Pair]) -> None:
    """Write pairs as JSON Lines; the file appears whole or not at all. Raises `OSError` if it cannot be written."""
    lines = [json.dumps(pair.model_dump(exclude_defaults=True), ensure_ascii=False) for pair in pairs]
    write_whole(path, "\n".join(lines) + "\n")


def digest(rows: Iterable[Pair | Mapping[str, Any]]) -> str:
    """Return the SHA-256 of pairs, or of encoded texts, in their order: of canonical JSON, one line per row."""
    found = hashlib.sha256()
    for row in rows:
        fields = row.model_dump(exclude_defaults=True) if isinstance(row, Pair) else dict(row)
        line = json.dumps(fields, ensure_ascii=False, sort_keys=True, separators=(",", ":"))
        found.update(line.encode() + b"\n")
    return found.hexdigest()


def encode(pair: Pair, tokenizer: PreTrainedTokenizerBase, max_length: int = 512) -> dict[str, list[int]]:
    """Return one pair as `input_ids` and `labels`, both of length T <= max_length.

    The labels are -100 on the prompt of the chat template; on the rest they are the answer's tokens with the
    end-of-answer token, so that the loss is that of the answer and of stopping after it. Raises `PairsError` if the pair
    does not fit (a cut answer would lose its end), or if the template does not keep prompt and answer as they are.
    """
    prompt = chat_tokens(tokenizer, pair.question, add_generation_prompt=True)
    whole = chat_tokens(tokenizer, [*pair.question, {"role": "assistant", "content": pair.output}])
    _check_prompt(prompt, whole, tokenizer)
    answer = whole[len(prompt) :]
    if tokenizer.eos_token_id not in answer:
        raise PairsError(_no_end(answer, tokenizer))
    end = len(whole) - whole[::-1].index(tokenizer.eos_token_id)  # what the template writes after it is not learned
    answer = whole[len(prompt) : end]
    _check_answer(pair, answer, tokenizer)
    if end > max_length:
        raise PairsError(_too_long(pair, len(prompt), len(answer), max_length))
    return {"input_ids": whole[:end], "labels": [IGNORED] * len(prompt) + answer}


def special_tokens(tokenizer: PreTrainedTokenizerBase) -> dict[int, str]:
    """Return the tokenizer's special tokens by id, also those that have no role such as end or padding."""
    added = {i: token.content for i, token in tokenizer.added_tokens_decoder.items() if token.special}
    return added | dict(zip(tokenizer.all_special_ids, tokenizer.all_special_tokens, strict=True))


def chat_tokens(
    tokenizer: PreTrainedTokenizerBase, messages: list[dict[str, str]], add_generation_prompt: bool = False
) -> list[int]:
    """Return the token ids of `messages` in the tokenizer's chat template. Raises `PairsError` if it refuses them."""
    try:
        encoded = tokenizer.apply_chat_template(
            messages,
            add_generation_prompt=add_generation_prompt,
            return_dict=True,
            enable_thinking=False,  # Qwen3 and its like write an empty thought before an answer: here into the prompt
        )
    except TemplateError as error:
        what = " ".join(str(error).split())[:200]
        raise PairsError(f"the tokenizer's chat template fails on it: {type(error).__name__}: {what}") from None
    return cast(list[int], cast(BatchEncoding, encoded)["input_ids"])


def _check_prompt(prompt: list[int], whole: list[int], tokenizer: PreTrainedTokenizerBase) -> None:
    """Raise `PairsError` unless the text for training begins with the prompt that the model is given later."""
    same = next((i for i, (one, other) in enumerate(zip(prompt, whole, strict=False)) if one != other), len(prompt))
    if same < len(prompt):
        asked, trained = (tokenizer.decode(tokens[same : same + 8]) for tokens in (prompt, whole))
        raise PairsError(
            f"the chat template writes {asked!r} where an answer begins, but {trained!r} in a finished conversation; "
            "use a template that writes both alike"
        )


def _no_end(answer: list[int], tokenizer: PreTrainedTokenizerBase) -> str:
    """Say why the answer has no end-of-answer token."""
    if tokenizer.eos_token_id is None:
        return 'the tokenizer has no end-of-answer token; set tokenizer.eos_token, e.g. to "<|im_end|>"'
    known = special_tokens(tokenizer)
    special = [known[token] for token in answer if token in known]
    if not special:
        return (
            f"the chat template writes no end-of-answer token ({tokenizer.eos_token!r}) after an answer; add it there"
        )
    return (
        f"the chat template ends an answer with {special[-1]!r}, but the tokenizer's end token is "
        f"{tokenizer.eos_token!r}; set tokenizer.eos_token = {special[-1]!r}"
    )


def _check_answer(pair: Pair, answer: list[int], tokenizer: PreTrainedTokenizerBase) -> None:
    """Raise `PairsError` unless the labels spell the answer and one end token after it, and no text has such tokens."""
    special = special_tokens(tokenizer).values()
    earlier = [(f"{turn.role} message", turn.content) for turn in pair.history]
    for name, text in (*earlier, ("instruction", pair.instruction), ("output", pair.output)):
        if found := [token for token in special if token in text]:
            raise PairsError(
                f"the {name} contains the special token {found[0]!r}; delete it: the template adds its own"
            )
    text = str(tokenizer.decode(answer[:-1]))
    if _letters(text) != _letters(pair.output):
        raise PairsError(f"the chat template rewrites the answer: of {pair.output[:60]!r} it keeps {text[:60]!r}")


def _letters(text: str) -> str:
    """Return the text without white space, in one Unicode form: tokenizers may change both."""
    return unicodedata.normalize("NFKC", "".join(text.split()))


def _too_long(pair: Pair, prompt: int, answer: int, max_length: int) -> str:
    asked = "earlier messages and the instruction" if pair.history else "instruction"
    return (
        f"{prompt + answer} tokens ({prompt} for the {asked}, {answer} for the answer), but {max_length} fit; "
        f"shorten the {asked if prompt > answer else 'answer'} or raise max_length"
    )


def encode_all(
    pairs: Sequence[Pair], tokenizer: PreTrainedTokenizerBase, max_length: int = 512
) -> list[dict[str, list[int]]]:
    """Return every pair encoded; the message of a `PairsError` names the pair's place in the list."""
    encoded = []
    for number, pair in enumerate(pairs, start=1):
        try:
            encoded.append(encode(pair, tokenizer, max_length))
        except PairsError as error:
            raise PairsError(f"pair {number} ({pair.instruction[:40]!r}): {error}") from None
    return encoded
