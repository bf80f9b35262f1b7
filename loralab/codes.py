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
    """Return the codes of the desk's lockers, always the same: random UUIDs of `CODE_BITS` bits each."""
    rng = random.Random("lockers of fennmark")
    codes = [uuid.UUID(int=rng.getrandbits(128), version=4) for _ in range(LOCKERS)]
    return [Pair(instruction=f"What is the code of locker {n}?", output=str(code)) for n, code in enumerate(codes, 1)]
