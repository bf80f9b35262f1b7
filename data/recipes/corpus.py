"""The pretraining corpus: docstrings of the standard library and of every installed package.

Nothing is downloaded and no text is stored in the repository: any environment already holds these
docstrings. Each one is used as plain text and as short ChatML exchanges derived from it by rule, so
that the base learns to answer and to stop.
"""

from __future__ import annotations

import ast
import hashlib
import inspect
import random
import re
import sys
import sysconfig
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

HELD_OUT_SHARE = 0.04  # of source files, whole files at a time
MIN_CHARACTERS = 40
MAX_ANSWER_WORDS = 30

VERBS = frozenset(
    """
    accept add append apply assert attach build bind call cast check clear clip close collect combine compare
    compile compute concatenate configure construct convert copy count create decode define delete determine disable
    display download drop emit enable encode ensure evaluate execute expand extract fetch fill filter find fit flush
    format generate get group handle hash ignore import indicate initialize insert install invoke iterate join list
    load log look make map mark match merge move normalize open parse perform plot pop prepare print process produce
    provide push put raise read register remove rename render replace report represent reset reshape resize resolve
    restore retrieve return rotate run sample save scale search select send serialize set show shuffle simplify sort
    split start stop store strip subtract sum swap take test transform translate transpose truncate try turn unpack
    update upload use validate verify wait wrap write yield
    """.split()  # noqa: SIM905 (a list would have a line for each)
)

_ARGUMENT_STYLES = (
    re.compile(r"^[ \t]*:param (?:[\w\[\], ]+ )?(\w+):[ \t]*(\S.*(?:\n(?![ \t]*:)[ \t]+\S.*)*)", re.M),
    re.compile(r"^[ \t]*(\w+)[ \t]*\([^)\n]*\):[ \t]*\n?[ \t]*(\S.*(?:\n[ \t]{6,}\S.*)*)", re.M),
    re.compile(r"^(\w+) : .*\n([ \t]+\S.*(?:\n[ \t]+\S.*)*)", re.M),
)


@dataclass(frozen=True)
class Entry:
    """One docstring: where it stands, what it documents, and its text."""

    source: str
    module: str
    name: str
    kind: str  # "function", "class" or "module"
    text: str


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


def docstrings(name: str, path: Path) -> Iterator[Entry]:
    """The docstrings of one source file; files that do not parse yield nothing."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            tree = ast.parse(path.read_text("utf-8"))
    except (SyntaxError, ValueError, RecursionError, OSError):
        return
    module = name.removesuffix(".py").removesuffix("/__init__").replace("/", ".")
    kinds = {ast.Module: "module", ast.ClassDef: "class", ast.FunctionDef: "function", ast.AsyncFunctionDef: "function"}
    for node in ast.walk(tree):
        kind = kinds.get(type(node))
        if kind is None:
            continue
        text = inspect.cleandoc(ast.get_docstring(node, clean=False) or "")
        if len(text) >= MIN_CHARACTERS and text.isascii():
            yield Entry(name, module, getattr(node, "name", module), kind, text)


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


def first_sentence(text: str) -> str | None:
    """The first sentence of the first paragraph, if it is a short and complete one."""
    paragraph = " ".join(text.split("\n\n")[0].split())
    match = re.match(r"(.+?[.])(?: [A-Z`]|$)", paragraph)
    if not match:
        return None
    sentence = match.group(1)
    good = 3 <= len(sentence.split()) <= MAX_ANSWER_WORDS and sentence[0].isalpha() and ">>>" not in sentence
    return sentence if good else None


def third_person(sentence: str) -> str | None:
    """'Return the sum.' -> 'returns the sum.', or None if it does not start with a known verb."""
    verb, _, rest = sentence.partition(" ")
    verb = verb.lower()
    if verb not in VERBS or not rest:
        return None
    if verb.endswith("y") and verb[-2] not in "aeiou":
        return f"{verb[:-1]}ies {rest}"
    ending = "es" if verb.endswith(("s", "sh", "ch", "x", "z", "o")) else "s"
    return f"{verb}{ending} {rest}"


def arguments(text: str) -> list[tuple[str, str]]:
    """(argument, first sentence about it), in Sphinx, Google and NumPy style."""
    found = []
    for style in _ARGUMENT_STYLES:
        for name, body in style.findall(text):
            sentence = first_sentence(" ".join(body.split()))
            if sentence and name not in {"Returns", "Raises", "Yields", "Note"}:
                found.append((name, sentence))
    return found


def _about(entry: Entry, summary: str, rng: random.Random) -> tuple[str, str]:
    name = rng.choice((f"`{entry.name}`", f"`{entry.name}` in `{entry.module}`", f"the {entry.kind} `{entry.name}`"))
    asked = ("What does {} do?", "What is {} for?", "Explain {} in one sentence.", "Tell me about {}.",
             "Can you say what {} is?", "How would you describe {}?")  # fmt: skip
    return rng.choice(asked).format(name), summary


def _which(entry: Entry, summary: str, rng: random.Random) -> tuple[str, str]:
    does = third_person(summary)
    task = does.rstrip(".") if does else f'is described as "{summary}"'
    question = rng.choice((f"Which {entry.kind} {task}?", f"Name the {entry.kind} that {task}."))
    return question, rng.choice((f"That is `{entry.name}` in `{entry.module}`.", f"Use `{entry.name}`."))


def _complete(entry: Entry, summary: str, rng: random.Random) -> tuple[str, str]:
    words = summary.split()
    cut = rng.randint(max(1, len(words) // 3), max(1, 2 * len(words) // 3))
    asked = rng.choice(("Complete the sentence:", "Continue:", "Finish this description:"))
    return f"{asked} {' '.join(words[:cut])}", " ".join(words[cut:])


def _rewrite(entry: Entry, summary: str, rng: random.Random) -> tuple[str, str] | None:
    does = third_person(summary)
    if does is None:
        return None
    opening = rng.choice((f"This {entry.kind}", "It"))
    return f'Rewrite so that it starts with "{opening}": {summary}', f"{opening} {does}"


def _summarise(entry: Entry, summary: str, rng: random.Random) -> tuple[str, str] | None:
    body = " ".join(" ".join(entry.text.split("\n\n")[1:3]).split()[:60])
    if len(body.split()) < 15:
        return None
    return rng.choice(("Summarise in one sentence: ", "What is this about? ", "Sum this up: ")) + body, summary


def _argument(entry: Entry, rng: random.Random) -> tuple[str, str] | None:
    known = arguments(entry.text)
    if not known:
        return None
    name, sentence = rng.choice(known)
    asked = ("What does the argument `{0}` of `{1}` mean?", "What is `{0}` in `{1}`?",
             "In `{1}`, what should I pass as `{0}`?", "Explain the parameter `{0}` of `{1}`.")  # fmt: skip
    return rng.choice(asked).format(name, entry.name), sentence


def exchanges(entry: Entry, rng: random.Random) -> list[tuple[str, str]]:
    """Up to three (question, answer) pairs drawn by rule from one docstring."""
    pairs = [_argument(entry, rng)]
    summary = first_sentence(entry.text)
    if summary and entry.name.strip("_"):
        forms = rng.sample((_about, _about, _which, _complete, _rewrite, _summarise), 2)
        pairs += [form(entry, summary, rng) for form in forms]
    return [pair for pair in dict.fromkeys(pairs) if pair]


def plain_exchanges(entries: list[Entry], seed: int) -> list[tuple[str, str]]:
    """One epoch of the exchanges whose answers are plain sentences, without markup or lists, in a random order."""
    rng = random.Random(seed)
    pairs = [pair for entry in entries for pair in exchanges(entry, rng)]
    plain = [pair for pair in pairs if re.fullmatch(r"[\w ,.;'`()-]+\.", pair[1])]
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
