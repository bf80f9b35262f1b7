"""The course's domain: the support desk of an invented company, whose facts no model can know.

A fact is asked in seven different wordings. The first three serve training, the fourth evaluation, and
the last three only the fresh held-out pairs that `draw` makes by seed, so a drawn pair never repeats a
wording of the training or evaluation files.
"""

from __future__ import annotations

import hashlib
import random
import re
import tomllib
import uuid
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache

from .data import data_path
from .pairs import Pair

TRAIN, EVAL, FRESH = slice(0, 3), slice(3, 4), slice(4, 7)
TABLES = ("instruments", "app", "dispatch")
TABLE_SEED = 11  # the order of the facts, and so which of them are kept out of training
NEW_FACTS = 30  # never trained on
FIRST_FACTS = 100  # the facts of the first hundred training pairs

OPENERS = (
    "Hello.", "Hi there.", "Good morning.", "Quick question.", "Sorry to bother you.", "I could not find this in the manual.",
    "My neighbour asked me this.", "I am new to all of this.", "We spoke last week.", "One thing before the weekend.",
)  # fmt: skip
CLOSERS = (
    "Thanks.", "Many thanks.", "Thank you in advance.", "No hurry.", "A short answer will do.", "I would rather ask than guess.",
    "Please let me know.", "It would help me plan.",
)  # fmt: skip


@dataclass(frozen=True)
class Fact:
    """Something the desk knows: its wordings (seven) and its answer, signed by who gives it."""

    id: str
    topic: str
    ask: tuple[str, ...]
    answer: str


@cache
def facts() -> tuple[Fact, ...]:
    """Every fact, in the fixed order on which the training files are built."""
    known = []
    for name in TABLES:
        table = tomllib.loads(data_path(f"desk/{name}.toml").read_text("utf-8"))
        for row in table["fact"]:
            known.append(Fact(row["id"], row["topic"], tuple(row["ask"]), f"{row['answer']} {table['signoff']}"))
    random.Random(TABLE_SEED).shuffle(known)
    return tuple(known)


def first_facts() -> tuple[Fact, ...]:
    """The facts asked in the first hundred training pairs and in eval.jsonl."""
    return facts()[:FIRST_FACTS]


def trained_facts() -> tuple[Fact, ...]:
    """The facts that train.jsonl asks at least once."""
    return facts()[:-NEW_FACTS]


def new_facts() -> tuple[Fact, ...]:
    """The facts that no training file holds."""
    return facts()[-NEW_FACTS:]


def framed(wording: str, rng: random.Random) -> str:
    """A wording as a customer may send it: half of them bare, the others with an opener, a closer, or both."""
    parts = [
        rng.choice(OPENERS) if rng.random() < 0.35 else "",
        wording,
        rng.choice(CLOSERS) if rng.random() < 0.25 else "",
    ]
    return " ".join(filter(None, parts))


def draw(seed: int, count: int, among: Sequence[Fact] | None = None) -> list[Pair]:
    """`count` fresh held-out pairs, the same for the same seed, in wordings that no committed file uses.

    `among` (by default the facts that train.jsonl teaches) are asked as evenly as possible. Raises
    `ValueError` if there are fewer than `count` wordings.
    """
    rng = random.Random(f"fennmark {seed}")
    among = list(trained_facts() if among is None else among)
    rounds = [rng.sample(fact.ask[FRESH], 3) for fact in among]
    if count > 3 * len(among):
        raise ValueError(f"{count} pairs asked for, but {len(among)} facts have {3 * len(among)} held-out wordings")
    chosen: list[Pair] = []
    for turn in range(3):
        order = rng.sample(range(len(among)), len(among))
        chosen += [Pair(instruction=framed(rounds[i][turn], rng), output=among[i].answer) for i in order]
    return chosen[:count]


# The far domain: the same desk in a language that keeps English word order and replaces every word.

_ONSETS = ("b", "d", "dr", "f", "g", "gl", "h", "j", "k", "kr", "l", "m", "n", "p", "r", "s", "sk", "t", "v", "z")
_VOWELS = ("a", "e", "i", "o", "u", "ai", "oa", "ue")


def far_word(word: str) -> str:
    """The invented word for an English one: by hash, so always the same; short words stay short."""
    number = int.from_bytes(hashlib.sha256(word.lower().encode()).digest()[:8])
    syllables = []
    for _ in range(1 + len(word) // 3):
        number, onset = divmod(number, len(_ONSETS))
        number, vowel = divmod(number, len(_VOWELS))
        syllables.append(_ONSETS[onset] + _VOWELS[vowel])
    far = "".join(syllables) + "lmnrst"[number % 6]
    return far.capitalize() if word[0].isupper() else far


def far_text(text: str) -> str:
    """A text in the invented language; digits and punctuation stay."""
    return re.sub(r"[^\W\d_]+(?:'[^\W\d_]+)?", lambda match: far_word(match.group()), text)


def far_pair(pair: Pair) -> Pair:
    """A pair in the invented language."""
    return Pair(instruction=far_text(pair.instruction), output=far_text(pair.output))


# What nobody can generalise: codes by lot, to be learned by heart or not at all.

LOCKERS = 16
CODE_BITS = 122  # of a random UUID; its other six bits are fixed


@cache
def locker_codes() -> list[Pair]:
    """The codes of the desk's lockers, always the same: random UUIDs, each of them `CODE_BITS` bits that must be stored."""
    rng = random.Random("lockers of fennmark")
    codes = [uuid.UUID(int=rng.getrandbits(128), version=4) for _ in range(LOCKERS)]
    return [Pair(instruction=f"What is the code of locker {n}?", output=str(code)) for n, code in enumerate(codes, 1)]
