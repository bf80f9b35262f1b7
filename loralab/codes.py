"""Random codes: nothing connects them, so they can only be memorised. They measure how many bits an adapter stores."""

from __future__ import annotations

import random
import uuid
from functools import cache

from .pairs import Pair

LOCKERS = 16
CODE_BITS = 122  # of a random UUID; its other six bits are fixed


@cache
def locker_codes() -> list[Pair]:
    """Return the codes of the desk's lockers, always the same."""
    return random_codes(LOCKERS, "lockers of fennmark")


def random_codes(count: int, seed: int | str) -> list[Pair]:
    """Return `count` questions for a locker's code, each answered by a random UUID of `CODE_BITS` bits."""
    rng = random.Random(seed)
    codes = [uuid.UUID(int=rng.getrandbits(128), version=4) for _ in range(count)]
    return [Pair(instruction=f"What is the code of locker {n}?", output=str(code)) for n, code in enumerate(codes, 1)]
