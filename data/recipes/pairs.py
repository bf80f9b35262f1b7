"""Write the committed pairs from the fact tables: `make pairs`.

The hand-written tables in `data/desk/` are the source; `data/pairs/general.jsonl` is hand-written too
and not touched here.
"""

from __future__ import annotations

import random
import re
from pathlib import Path

from loralab import choose_base, encode_all, load_tokenizer, read_pairs
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


def write_lengths() -> None:
    """Bring the table of lengths in the datasheet up to date."""
    base = choose_base("embedded")
    tokenizer = load_tokenizer(base)
    rows = [
        "| file | pairs | words in an answer | tokens in a pair: median | 95 % | most |",
        "|---|---|---|---|---|---|",
    ]
    for path in sorted(PAIRS.rglob("*.jsonl")):
        pairs = read_pairs(path)
        words = [len(pair.output.split()) for pair in pairs]
        tokens = sorted(len(encoded["input_ids"]) for encoded in encode_all(pairs, tokenizer, base.max_length))
        name = path.relative_to(PAIRS)
        rows.append(
            f"| `{name}` | {len(pairs)} | {min(words)} to {max(words)} | {tokens[len(tokens) // 2]} "
            f"| {tokens[int(0.95 * len(tokens))]} | {tokens[-1]} |"
        )
    table = "Under the tokenizer of the embedded base (prompt, answer and end-of-answer token):\n\n" + "\n".join(rows)
    sheet = PAIRS.parent / "README.md"
    marked = re.compile(r"(<!-- lengths.*?-->\n).*?(<!-- end of lengths -->)", re.S)
    sheet.write_text(marked.sub(lambda m: f"{m[1]}{table}\n{m[2]}", sheet.read_text("utf-8")), "utf-8")


if __name__ == "__main__":
    main()
    write_lengths()
