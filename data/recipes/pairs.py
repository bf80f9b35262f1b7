"""Write the committed pairs from the tables in `data/desk/`: `make generate`.

`data/pairs/general.jsonl` is written by hand and not touched here.
"""

from __future__ import annotations

import random
import re
import tomllib
from pathlib import Path

from loralab import choose_base, data_path, encode_all, load_tokenizer, read_pairs
from loralab.far import far_pair
from loralab.pairs import Pair, write_pairs
from loralab.triage import compose

PAIRS = Path(__file__).parents[1] / "pairs"
SEED = 5
TRAIN_PAIRS, EVAL_PAIRS, FORMS_PAIRS = 400, 200, 200


def triage_pairs() -> dict[str, list[Pair]]:
    """Compose the task's files together, so that no serial number, and so no record, occurs twice."""
    rng = random.Random(SEED)
    seen = compose(rng, TRAIN_PAIRS + EVAL_PAIRS, "seen", fresh=False)
    used = {_serial(pair) for pair in seen}
    unseen = [pair for pair in compose(rng, 2 * FORMS_PAIRS, "unseen", fresh=False) if _serial(pair) not in used]
    return {"train": seen[:TRAIN_PAIRS], "eval": seen[TRAIN_PAIRS:], "eval_forms": unseen[:FORMS_PAIRS]}


def _serial(pair: Pair) -> str:
    return re.search(r"serial: (\S+)", pair.output)[1]


def fact_pairs() -> dict[str, list[Pair]]:
    """Return the same hundred facts twice: as they are asked in training, and in other words."""
    facts = tomllib.loads(data_path("desk/facts.toml").read_text("utf-8"))["fact"]
    return {
        f"facts/{wording}": [Pair(instruction=fact[wording], output=fact["answer"]) for fact in facts]
        for wording in ("train", "eval")
    }


def main() -> None:
    triage = triage_pairs()
    far = {f"far/{name}": [far_pair(pair) for pair in triage[name]] for name in ("train", "eval")}
    for name, pairs in {**triage, **far, **fact_pairs()}.items():
        write_pairs(PAIRS / f"{name}.jsonl", pairs)
        print(f"{name}.jsonl: {len(pairs)} pairs")


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
