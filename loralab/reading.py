"""Read pairs from a file, a folder or the Hub, in any of the usual formats, or say what is wrong with them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from transformers import PreTrainedTokenizerBase

from .formats import pairs_of
from .pairs import Pair, PairsError, encode
from .rows import read_rows

SHOWN_PROBLEMS = 10


@dataclass(frozen=True)
class Loaded:
    """The pairs of a file, and the formats in which they were found, in order of appearance."""

    pairs: list[Pair]
    formats: tuple[str, ...]


def read_pairs(path: str | Path, tokenizer: PreTrainedTokenizerBase | None = None, max_length: int = 512) -> list[Pair]:
    """Return all pairs of a file, of a folder, or of a dataset on the Hub; see `load_pairs`."""
    return load_pairs(path, tokenizer, max_length).pairs


def load_pairs(source: str | Path, tokenizer: PreTrainedTokenizerBase | None = None, max_length: int = 512) -> Loaded:
    """Read pairs from JSON Lines, JSON, CSV, Parquet (compressed or not), a folder of `datasets`, or a Hub id.

    The usual formats are recognised by their fields (`loralab.formats`); a conversation gives one pair for each answer.
    With a `tokenizer`, each pair must fit into `max_length` tokens of its chat template. Raises `PairsError` that names
    the first ten rows that are wrong: data is loaded whole or not at all.
    """
    places: dict[Pair, str] = {}  # in the order of the data
    formats: dict[str, None] = {}
    problems: list[str] = []
    for place, row in read_rows(source):
        try:
            if isinstance(row, PairsError):
                raise row
            name, pairs = pairs_of(row)
            new = [pair for pair in pairs if pair not in places]
            if not new:  # conversations may begin alike, and differ later
                raise PairsError(f"the same pair as {_number(places[pairs[-1]])}; delete one of them")
            for pair in new:
                if tokenizer is not None:
                    encode(pair, tokenizer, max_length)
            formats[name] = None
            places |= dict.fromkeys(new, place)
        except PairsError as error:
            problems.append(f"{place}: {error}")
    if problems:
        rest = len(problems) - SHOWN_PROBLEMS
        raise PairsError("\n".join(problems[:SHOWN_PROBLEMS] + ([f"... and {rest} more"] if rest > 0 else [])))
    if not places:
        raise PairsError(f'{source}: no pairs in it; write one {{"instruction": "...", "output": "..."}} per line')
    return Loaded(list(places), tuple(formats))


def _number(place: str) -> str:
    """Return a place without its file: `line 1`, `row 3`."""
    number = place.rpartition(":")[2].strip()
    return number if number.startswith("row") else f"line {number}"


def as_pairs(rows: Iterable[Pair | Mapping[str, Any]]) -> list[Pair]:
    """Return pairs as they are, and convert rows (dicts, a `datasets.Dataset`) as `load_pairs` does."""
    pairs: list[Pair] = []
    for number, row in enumerate(rows, start=1):
        try:
            pairs += [row] if isinstance(row, Pair) else pairs_of(row)[1]
        except PairsError as error:
            raise PairsError(f"pair {number}: {error}") from None
    return pairs
