"""Read data of your own, and split it into pairs for training and held-out pairs."""

from __future__ import annotations

import random
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from transformers import PreTrainedTokenizerBase

from .errors import LoralabError
from .leaks import find_leaks
from .pairs import Pair, digest, write_pairs
from .reading import load_pairs
from .record import EVAL_FILE

SHARE = "0.1"  # what `--eval` is by default
FEWEST = 8  # held-out pairs, if there are twice as many


@dataclass(frozen=True)
class Split:
    """Pairs to train on, and held-out pairs to measure on.

    `formats` are those of `load_pairs`; `held_out` is true if the evaluation pairs were taken from the data.
    """

    pairs: tuple[Pair, ...]
    eval_pairs: tuple[Pair, ...]
    formats: tuple[str, ...] = ()
    held_out: bool = False

    def __str__(self) -> str:
        """Describe the data: its format, how many pairs are for what, and leaks, a line each."""
        asked = len(self.eval_pairs)
        measured = f"{asked} held out" if self.held_out else f"{asked} for evaluation"
        lines = [
            f"format: {', '.join(self.formats)}",
            f"pairs: {len(self.pairs)} for training, {measured if asked else 'none for evaluation'}",
        ]
        if asked:
            lines.append(f"leaks: {find_leaks(self.pairs, self.eval_pairs)}")
        return "\n".join(lines)

    @cached_property
    def train_digest(self) -> str:
        return digest(self.pairs)

    @cached_property
    def eval_digest(self) -> str:
        return digest(self.eval_pairs)

    def keep_held_out(self, folder: Path) -> None:
        """Write the pairs that were held out beside a run, or above the runs of a sweep, where the gate looks for them."""
        if self.held_out:
            write_pairs(folder / EVAL_FILE, self.eval_pairs)


def read_split(data: str, evaluation: str, tokenizer: PreTrainedTokenizerBase, max_length: int, seed: int = 0) -> Split:
    """Read the pairs of `data`, and those of `evaluation`: what `load_pairs` reads, or the share of `data` to hold out.

    With a share of 0 there are no evaluation pairs. Raises `PairsError`, with one line per problem, for data that cannot
    be used, and `LoralabError`, in one line, for a share that cannot be held out.
    """
    share = share_of(evaluation)
    found = load_pairs(data, tokenizer, max_length)
    if share is None:
        asked = load_pairs(evaluation, tokenizer, max_length).pairs
        return Split(tuple(found.pairs), tuple(asked), found.formats)
    if share == 0:
        return Split(tuple(found.pairs), (), found.formats)
    pairs, asked = hold_out(found.pairs, share, seed)
    return Split(tuple(pairs), tuple(asked), found.formats, held_out=True)


def share_of(evaluation: str) -> float | None:
    """Return the share of the pairs to hold out; None if `evaluation` names a file or a dataset."""
    try:
        share = float(evaluation)
    except ValueError:
        return None
    if Path(evaluation).exists():
        return None
    if not 0 <= share <= 0.5:
        raise LoralabError(f"--eval {evaluation}: give the share of pairs to hold out (0 to 0.5), or a file")
    return share


def hold_out(pairs: Sequence[Pair], share: float, seed: int = 0) -> tuple[list[Pair], list[Pair]]:
    """Split pairs into those for training and a random `share` for evaluation, both in their order.

    At least 8 pairs are held out, but never more than half. Pairs that begin with the same question, such as the answers
    of one conversation, stay together. Raises `LoralabError` if the pairs cannot be split.
    """
    most = len(pairs) // 2
    wanted = min(max(FEWEST, round(share * len(pairs))), most)
    together = defaultdict(list)
    for i, pair in enumerate(pairs):
        first = next(turn["content"] for turn in pair.question if turn["role"] == "user")
        together[first].append(i)
    groups = list(together.values())
    random.Random(seed).shuffle(groups)
    chosen: set[int] = set()
    for group in groups:
        if len(chosen) < wanted and len(chosen) + len(group) <= most:
            chosen.update(group)
    if not chosen:
        raise LoralabError("too few different pairs to hold some out: add pairs, or give --eval FILE or --eval 0")
    rest = [pair for i, pair in enumerate(pairs) if i not in chosen]
    return rest, [pairs[i] for i in sorted(chosen)]
