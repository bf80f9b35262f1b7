"""The course's task: a customer's message becomes the record that the support desk keeps of it.

The record follows from the message alone: two values are copied (`serial`, `name`), `item` is named or described, `fault`
is hidden behind paraphrases, and `next` follows from fault and item by a rule that no message states.
"""

from __future__ import annotations

import random
import re
import tomllib
from dataclasses import asdict, dataclass
from functools import cache
from typing import Any, Literal

from .data import data_path
from .errors import LoralabError
from .pairs import Pair

Forms = Literal["seen", "unseen"]

NOT_SAID = "not said"  # the value of a field that the message does not mention
WORDS = range(15, 61)  # words per message
MAX_DRAW = 2000
# How often a message has an opener, a closer, an extra sentence, a corrected serial number, a name, a typing error.
OPENER, CLOSER, EXTRA, CORRECTION, NAMED, TYPO = 0.3, 0.3, 0.4, 0.06, 0.85, 0.1


@dataclass(frozen=True)
class Record:
    """What the desk writes down of one message."""

    fault: str
    item: str
    next: str
    serial: str
    name: str

    def __str__(self) -> str:
        """One `field: value` per line: fewer tokens than JSON, and learned better by a small base."""
        return "\n".join(f"{field}: {value}" for field, value in asdict(self).items())


@cache
def tables() -> dict[str, Any]:
    """Return the hand-written tables of `desk/triage.toml`."""
    return tomllib.loads(data_path("desk/triage.toml").read_text("utf-8"))


def draw(seed: int, count: int, forms: Forms = "seen") -> list[Pair]:
    """Draw `count` fresh pairs, the same for the same seed; none of their records or messages is in a committed file.

    `forms` chooses between the message forms of the training pairs and those that no training pair has. Serial numbers
    come from a quarter that the committed files never use, so a draw cannot repeat them. Raises `LoralabError` if
    `count` is not in 1 to `MAX_DRAW`.
    """
    if not 1 <= count <= MAX_DRAW:
        raise LoralabError(f"{count} pairs cannot be drawn: ask for 1 to {MAX_DRAW:,}")
    return compose(random.Random(f"triage {seed} {forms}"), count, forms, fresh=True)


def compose(rng: random.Random, count: int, forms: Forms, fresh: bool) -> list[Pair]:
    """Compose `count` pairs with `count` different serial numbers; `fresh` takes the numbers reserved for draws."""
    pairs: dict[str, Pair] = {}
    while len(pairs) < count:
        record, message = _message(rng, rng.choice(tables()["forms"][forms]), fresh)
        if len(message.split()) in WORDS:
            pairs.setdefault(record.serial, Pair(instruction=message, output=str(record)))
    return list(pairs.values())


def _message(rng: random.Random, form: str, fresh: bool) -> tuple[Record, str]:
    item, fault = rng.choice(tables()["item"]), rng.choice(tables()["fault"])
    record = Record(
        fault=fault["name"],
        item=item["name"],
        next=fault["next"]["fixed" if item["fixed"] else "portable"],
        serial=_serial(rng, item["name"], fresh),
        name=rng.choice(tables()["names"]) if rng.random() < NAMED else NOT_SAID,
    )
    wrong = _serial(rng, item["name"], fresh)
    talk, contrast = tables()["talk"], "{extra} But" in form
    filled = re.sub(r"\[(.*?)\]", "" if record.name == NOT_SAID else r"\1", form).format(
        opener=_sometimes(rng, OPENER, talk["openers"]),
        item=item["name"],
        kind=item["kind"],
        serial=_sometimes(rng, CORRECTION, talk["corrections"]).format(wrong=wrong, serial=record.serial)
        or record.serial,
        fault=rng.choice(fault["says"]),
        extra=_extra(rng, item, contrast),
        closer=_sometimes(rng, CLOSER, talk["closers"]),
        name=record.name,
    )
    text = " ".join(filled.split())
    return record, _mistyped(text, rng) if rng.random() < TYPO else text


def _sometimes(rng: random.Random, share: float, texts: list[str]) -> str:
    return rng.choice(texts) if rng.random() < share else ""


def _serial(rng: random.Random, item: str, fresh: bool) -> str:
    """Return a serial number of this item; those whose digits sum to a multiple of four are reserved for draws."""
    while True:
        number = rng.randint(1000, 9999)
        if (sum(map(int, str(number))) % 4 == 0) == fresh:
            return f"{item[0]}-{number}"


def _extra(rng: random.Random, item: dict[str, Any], contrast: bool) -> str:
    """Return a sentence that must not enter the record: another device, or a number that is no serial number."""
    if not contrast and rng.random() >= EXTRA:
        return ""
    talk: dict[str, list[str]] = tables()["talk"]
    if contrast or rng.random() < 0.5:
        other = rng.choice([one for one in tables()["item"] if one is not item])
        return rng.choice(talk["others"]).format(other=rng.choice([other["name"], other["kind"]]))
    return rng.choice(talk["numbers"]).format(number=rng.randint(10000, 99999))


def _mistyped(text: str, rng: random.Random) -> str:
    """Swap two inner letters of one lower-case word; names, items and serial numbers stay readable."""
    word = rng.choice(list(re.finditer(r"\b[a-z]{4,}\b", text)))
    swap = word.start() + rng.randint(1, len(word.group()) - 3)
    return text[:swap] + text[swap + 1] + text[swap] + text[swap + 2 :]
