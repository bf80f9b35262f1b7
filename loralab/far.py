"""The far domain: the course's task in a language that keeps English word order and replaces every word."""

from __future__ import annotations

import hashlib
import re

from .pairs import Pair

_ONSETS = ("b", "d", "dr", "f", "g", "gl", "h", "j", "k", "kr", "l", "m", "n", "p", "r", "s", "sk", "t", "v", "z")
_VOWELS = ("a", "e", "i", "o", "u", "ai", "oa", "ue")


def far_word(word: str) -> str:
    """Return the invented word for an English one: by hash, so always the same; short words stay short."""
    number = int.from_bytes(hashlib.sha256(word.lower().encode()).digest()[:8])
    syllables = []
    for _ in range(1 + len(word) // 3):
        number, onset = divmod(number, len(_ONSETS))
        number, vowel = divmod(number, len(_VOWELS))
        syllables.append(_ONSETS[onset] + _VOWELS[vowel])
    far = "".join(syllables) + "lmnrst"[number % 6]
    return far.capitalize() if word[0].isupper() else far


def far_text(text: str) -> str:
    """Return a text in the invented language; digits and punctuation stay."""
    return re.sub(r"[^\W\d_]+(?:'[^\W\d_]+)?", lambda match: far_word(match.group()), text)


def far_pair(pair: Pair) -> Pair:
    """Return a pair in the invented language."""
    return Pair(instruction=far_text(pair.instruction), output=far_text(pair.output))
