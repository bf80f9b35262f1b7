"""Write the committed pairs from the fact tables: `make pairs`.

The hand-written tables in `data/desk/` are the source; `data/pairs/general.jsonl` is hand-written too
and not touched here.
"""

from __future__ import annotations

import random
from pathlib import Path

from loralab.desk import EVAL, TRAIN, Fact, far_pair, first_facts, framed, new_facts, trained_facts
from loralab.pairs import Pair, write_pairs

PAIRS = Path(__file__).parents[1] / "pairs"
SEED = 5
TRAIN_PAIRS, NEW_PAIRS = 400, 60


def pair(fact: Fact, wording: str, rng: random.Random) -> Pair:
    return Pair(instruction=framed(wording, rng), output=fact.answer)


def train_pairs(rng: random.Random) -> list[Pair]:
    """First one pair for each of the first hundred facts (what exercise 1 trains on), then all the rest."""
    first = [pair(fact, fact.ask[TRAIN][0], rng) for fact in first_facts()]
    later = trained_facts()[len(first_facts()) :]
    rest = [(fact, wording) for fact in later for wording in fact.ask[TRAIN]]
    again = [(fact, wording) for fact in first_facts() for wording in fact.ask[TRAIN][1:]]
    chosen = rest + rng.sample(again, TRAIN_PAIRS - len(first) - len(rest))
    rng.shuffle(chosen)
    return first + [pair(fact, wording, rng) for fact, wording in chosen]


def main() -> None:
    rng = random.Random(SEED)
    train = train_pairs(rng)
    known = [pair(fact, fact.ask[EVAL][0], rng) for fact in first_facts()]
    new = [pair(fact, wording, rng) for fact in new_facts() for wording in fact.ask[EVAL] + fact.ask[TRAIN][:1]]
    write_pairs(PAIRS / "train.jsonl", train)
    write_pairs(PAIRS / "eval.jsonl", known)
    write_pairs(PAIRS / "eval_new.jsonl", new[:NEW_PAIRS])
    write_pairs(PAIRS / "far" / "train.jsonl", map(far_pair, train))
    write_pairs(PAIRS / "far" / "eval.jsonl", map(far_pair, known))
    print(f"{len(train)} training, {len(known)} evaluation and {NEW_PAIRS} new-fact pairs, and as many far ones")


if __name__ == "__main__":
    main()
