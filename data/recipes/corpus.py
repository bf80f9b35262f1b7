"""The pretraining corpus: docstrings of the standard library and of every installed package.

Nothing is downloaded and no text is stored in the repository: any environment already holds these
docstrings. Each one is used as plain text and as short ChatML exchanges derived from it by rule, so
that the base learns to answer and to stop.
"""

from __future__ import annotations

import hashlib
import random
import sys
import sysconfig
from pathlib import Path

from loralab.docstrings import PLAIN, Entry, docstrings, exchanges

HELD_OUT_SHARE = 0.04  # of source files, whole files at a time


def source_files() -> list[tuple[str, Path]]:
    """Every Python source file of the standard library and of site-packages, as (relative name, path)."""
    paths = sysconfig.get_paths()
    files = []
    for root in dict.fromkeys((paths["stdlib"], paths["purelib"], paths["platlib"])):
        for path in Path(root).rglob("*.py"):
            name = path.relative_to(root).as_posix()
            if root == paths["stdlib"] and name.startswith("site-packages/"):
                continue
            files.append((name, path))
    return sorted(set(files))


def collect() -> list[Entry]:
    """All docstrings, each text once (the first by file name keeps it), in a fixed order."""
    unique: dict[str, Entry] = {}
    for name, path in source_files():
        for entry in docstrings(name, path):
            unique.setdefault(" ".join(entry.text.split()), entry)
    return list(unique.values())


def fingerprint(entries: list[Entry]) -> str:
    """SHA-256 over all texts: two environments with the same hash train on the same corpus."""
    digest = hashlib.sha256()
    for entry in entries:
        digest.update(entry.text.encode() + b"\0")
    return digest.hexdigest()


def split(entries: list[Entry]) -> tuple[list[Entry], list[Entry]]:
    """(train, held-out). Whole files are held out, and a held-out docstring most of whose lines also
    are in the training part is dropped, so that copied passages do not flatter the perplexity."""

    def is_held(entry: Entry) -> bool:
        return int(hashlib.sha256(entry.source.encode()).hexdigest()[:8], 16) / 16**8 < HELD_OUT_SHARE

    train = [entry for entry in entries if not is_held(entry)]
    seen = {line.strip() for entry in train for line in entry.text.splitlines()}

    def is_copied(entry: Entry) -> bool:
        lines = [line.strip() for line in entry.text.splitlines() if line.strip()]
        copied = sum(len(line) for line in lines if line in seen)
        return copied > 0.5 * sum(map(len, lines))

    return train, [entry for entry in entries if is_held(entry) and not is_copied(entry)]


def plain_exchanges(entries: list[Entry], seed: int) -> list[tuple[str, str]]:
    """One epoch of the exchanges whose answers are plain sentences, without markup or lists, in a random order."""
    rng = random.Random(seed)
    pairs = [pair for entry in entries for pair in exchanges(entry, rng)]
    plain = [pair for pair in pairs if PLAIN.fullmatch(pair[1])]
    rng.shuffle(plain)
    return plain


def chatml(question: str, answer: str = "") -> str:
    """One exchange as the chat template writes it; without an answer, the prompt for one."""
    prompt = f"<|im_start|>user\n{question}<|im_end|>\n<|im_start|>assistant\n"
    return f"{prompt}{answer}<|im_end|>\n" if answer else prompt


def documents(entries: list[Entry], seed: int) -> list[str]:
    """One epoch of training documents in a random order: every docstring plain, and its exchanges."""
    rng = random.Random(seed)
    texts = [f"{entry.text}<|endoftext|>" for entry in entries]
    texts += [chatml(*pair) for entry in entries for pair in exchanges(entry, rng)]
    rng.shuffle(texts)
    return texts


if __name__ == "__main__":
    everything = collect()
    train, held = split(everything)
    print(f"{len(everything):,} docstrings, {sum(len(e.text) for e in everything) / 1e6:.1f} MB; ", end="")
    print(f"{len(train):,} train, {len(held):,} held out; python {sys.version.split()[0]}")
    for sample in documents(train, 0)[:20]:
        print("-" * 80, sample[:600], sep="\n")
