"""Turn rows of training data into pairs, whichever of the usual formats they are in."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from itertools import pairwise
from typing import Any

from pydantic import ValidationError

from .pairs import Pair, PairsError, Role, Turn

# Two columns of text, under the names that people use. Earlier names win.
COLUMNS = (
    ("instruction", "output"),
    ("instruction", "response"),
    ("prompt", "completion"),
    ("prompt", "response"),
    ("question", "answer"),
    ("query", "response"),
    ("input", "output"),
)
CONVERSATIONS = ("messages", "conversations")
# ShareGPT and OpenAI name the two sides of a conversation differently.
SIDES: dict[str, Role] = {
    "system": "system",
    "developer": "system",
    "user": "user",
    "human": "user",
    "assistant": "assistant",
    "gpt": "assistant",
    "chatgpt": "assistant",
    "bot": "assistant",
    "model": "assistant",
}
SPEAKERS: tuple[Role, Role] = ("user", "assistant")
KNOWN = "instruction and output, prompt and completion, question and answer, messages, or conversations"

Row = Mapping[str, Any]


def is_row(fields: Iterable[str]) -> bool:
    """Tell whether an object with these fields is itself a row, in one of the formats."""
    known = set(fields)
    return not known.isdisjoint(CONVERSATIONS) or any(known.issuperset(names) for names in COLUMNS)


def pairs_of(row: object) -> tuple[str, list[Pair]]:
    """Return the name of a row's format and its pairs: one, or one for each answer of a conversation.

    Raises `PairsError`, in one line, if the row fits none of the formats.
    """
    if not isinstance(row, Mapping):
        raise PairsError(f"a JSON {type(row).__name__}, not an object; write {{...}} with instruction and output")
    row = {name: value for name, value in row.items() if value is not None}  # tables fill gaps with None
    if "messages" in row:
        return "messages (OpenAI)", _conversation(_turns(row["messages"], "messages"))
    if "conversations" in row:
        turns = _turns(row["conversations"], "conversations")
        return "conversations (ShareGPT)", _conversation([*_system(row), *turns])
    question, answer = _column_names(row)
    more = [name for name in ("input", "system", "history") if row.get(name) and name != question]
    return " + ".join((question, answer, *more)), _columns(row, question, answer)


def _column_names(row: Row) -> tuple[str, str]:
    if "chosen" in row and "rejected" in row:
        raise PairsError("preference data; supervised training needs one answer: rename 'chosen' to 'completion'")
    found = ", ".join(map(repr, row)) or "none"
    for names in COLUMNS:
        if set(names) <= set(row):
            return names
    for question, answer in (("instruction", "output"), ("prompt", "completion"), ("question", "answer")):
        if question in row or answer in row:
            missing = answer if question in row else question
            raise PairsError(f"the field {missing!r} is missing (fields found: {found}); add it")
    raise PairsError(f"no known format (fields found: {found}); name the fields {KNOWN}")


def _columns(row: Row, question: str, answer: str) -> list[Pair]:
    asked, answered = row[question], row[answer]
    if isinstance(asked, Sequence) and not isinstance(asked, str):  # conversational prompts, as in TRL
        turns = [*_system(row), *_turns(asked, question), *_turns(answered, answer, side="assistant")]
        return _conversation(turns)[-1:]
    if question != "input" and isinstance(row.get("input"), str) and row["input"].strip() and isinstance(asked, str):
        asked = f"{asked}\n\n{row['input']}"
    history = [*_system(row), *_history(row.get("history") or ())]
    return [_pair(question, answer, instruction=asked, output=answered, history=tuple(history))]


def _pair(question: str, answer: str, **fields: Any) -> Pair:
    """Make a pair; raise `PairsError` in one line that names the user's own field if a value cannot be used."""
    try:
        return Pair(**fields)
    except ValidationError as error:
        first = error.errors()[0]
        name = {"instruction": question, "output": answer}.get(str(first["loc"][0]), str(first["loc"][0]))
        what = first["ctx"]["error"] if first["type"] == "value_error" else "must be a text"
        raise PairsError(f"the field {name!r} {what}") from None


def _system(row: Row) -> list[Turn]:
    text = row.get("system")
    return [Turn(role="system", content=text)] if isinstance(text, str) and text.strip() else []


def _history(exchanges: Any) -> list[Turn]:
    """Read Alpaca's `history`, a list of [question, answer], or that of a pair, a list of messages."""
    if isinstance(exchanges, Sequence) and all(isinstance(one, Mapping) for one in exchanges):
        return _turns(exchanges, "history") if exchanges else []
    try:
        pairs = [(question, answer) for question, answer in exchanges]
        return [Turn(role=role, content=text) for pair in pairs for role, text in zip(SPEAKERS, pair, strict=True)]
    except (TypeError, ValueError):
        raise PairsError("the field 'history' must be a list of [question, answer]") from None


def _turns(messages: Any, field: str, side: Role | None = None) -> list[Turn]:
    """Read a list of messages, with the keys of OpenAI (role, content) or of ShareGPT (from, value)."""
    if isinstance(messages, str) and side:
        return [Turn(role=side, content=messages)]
    if isinstance(messages, str) or not isinstance(messages, Sequence) or len(messages) == 0:
        raise PairsError(f"the field {field!r} must be a list of messages")
    return [_turn(message, f"message {number} of {field!r}") for number, message in enumerate(messages, start=1)]


def _turn(message: Any, where: str) -> Turn:
    if not isinstance(message, Mapping):
        raise PairsError(f"{where} is not an object with role and content")
    who, text = message.get("role", message.get("from")), message.get("content", message.get("value"))
    role = SIDES.get(str(who).lower())
    if role is None:
        raise PairsError(f"{where} has the role {who!r}; {', '.join(dict.fromkeys(SIDES.values()))} can be used")
    if isinstance(text, Sequence) and not isinstance(text, str):
        text = _joined(text, where)
    if not isinstance(text, str):
        raise PairsError(f"{where} has no text in it")
    return Turn(role=role, content=text)


def _joined(parts: Sequence[Any], where: str) -> str:
    """Join the text parts of a message; other parts (images, audio) cannot be used."""
    if not all(isinstance(part, Mapping) and isinstance(part.get("text"), str) for part in parts):
        raise PairsError(f"{where} has a part that is not text; only text can be used")
    return "\n".join(part["text"] for part in parts)


def _conversation(turns: Sequence[Turn]) -> list[Pair]:
    """Return one pair for each answer of the assistant, with the turns before it as its history.

    So the loss is taken on every answer, whatever the chat template does with earlier ones.
    """
    pairs = [
        _pair("content", "content", instruction=asked.content, output=reply.content, history=tuple(turns[:i]))
        for i, (asked, reply) in enumerate(pairwise(turns))
        if (asked.role, reply.role) == ("user", "assistant")
    ]
    if not pairs:
        raise PairsError("no answer of the assistant follows a message of the user")
    return pairs
