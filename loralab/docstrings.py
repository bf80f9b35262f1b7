"""Questions and answers about Python, made by rule from the docstrings of installed source files.

The embedded base was pretrained on them, and other bases have read them as well. So a fresh draw measures how much of
what a base knew an adapter has made it forget.
"""

from __future__ import annotations

import ast
import inspect
import random
import re
import sys
import sysconfig
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from .errors import LoralabError
from .pairs import Pair

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

PLAIN = re.compile(r"[\w ,.;'`()-]+\.")  # an answer in plain sentences, without markup or lists
MAX_CHARACTERS = 400  # of question and answer; the longest has 165 tokens of the embedded base, whose limit is 256
PER_FILE = 4  # pairs from one source file, so that a draw covers many subjects
UNUSUAL = {"test", "tests", "idlelib", "lib2to3", "turtledemo", "encodings"}  # not installed everywhere, or tables


@cache
def draw_general(seed: int, count: int) -> tuple[Pair, ...]:
    """Draw `count` pairs from the standard library of this Python, the same for the same seed and library.

    Raises `LoralabError` if the library has too few docstrings, as where only compiled files are installed.
    """
    rng = random.Random(f"general {seed}")
    files = standard_library()
    rng.shuffle(files)
    pairs: dict[str, Pair] = {}
    for name, path in files:
        made = (pair for entry in docstrings(name, path) for pair in exchanges(entry, rng))
        kept = [pair for pair in made if PLAIN.fullmatch(pair[1]) and len("".join(pair)) <= MAX_CHARACTERS]
        for question, answer in rng.sample(kept, min(PER_FILE, len(kept))):
            pairs.setdefault(question, Pair(instruction=question, output=answer))
        if len(pairs) >= count:
            return tuple(pairs.values())[:count]
    raise LoralabError(
        f"the standard library in {sysconfig.get_paths()['stdlib']} has docstrings for {len(pairs)} questions, not {count}: "
        "use a Python that is installed with its sources"
    )


def standard_library() -> list[tuple[str, Path]]:
    """Return the source files of the standard library as (relative name, path), in a fixed order."""
    root = Path(sysconfig.get_paths()["stdlib"])
    paths = [root / f"{name}.py" for name in sys.stdlib_module_names - UNUSUAL]
    paths += [path for name in sys.stdlib_module_names - UNUSUAL for path in (root / name).rglob("*.py")]
    names = (path.relative_to(root) for path in paths if path.exists())
    return sorted((name.as_posix(), root / name) for name in names if not UNUSUAL & set(name.parts))


@dataclass(frozen=True)
class Entry:
    """A docstring with its source file, what it documents, and its text."""

    source: str
    module: str
    name: str
    kind: str  # "function", "class" or "module"
    text: str


def docstrings(name: str, path: Path) -> Iterator[Entry]:
    """Yield the docstrings of one source file; none if it cannot be parsed."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            tree = ast.parse(path.read_text("utf-8"))
    except (SyntaxError, ValueError, RecursionError, OSError):
        return
    module = name.removesuffix(".py").removesuffix("/__init__").replace("/", ".")
    kinds = {ast.Module: "module", ast.ClassDef: "class", ast.FunctionDef: "function", ast.AsyncFunctionDef: "function"}
    for node in ast.walk(tree):
        if not isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            continue
        text = inspect.cleandoc(ast.get_docstring(node, clean=False) or "")
        if len(text) >= MIN_CHARACTERS and text.isascii():
            yield Entry(name, module, getattr(node, "name", module), kinds[type(node)], text)


def first_sentence(text: str) -> str | None:
    """Return the first sentence of the first paragraph; None if it is long or incomplete."""
    paragraph = " ".join(text.split("\n\n")[0].split())
    match = re.match(r"(.+?[.])(?: [A-Z`]|$)", paragraph)
    if not match:
        return None
    sentence = match.group(1)
    good = 3 <= len(sentence.split()) <= MAX_ANSWER_WORDS and sentence[0].isalpha() and ">>>" not in sentence
    return sentence if good else None


def third_person(sentence: str) -> str | None:
    """Turn 'Return the sum.' into 'returns the sum.'; None if the first word is no known verb."""
    verb, _, rest = sentence.partition(" ")
    verb = verb.lower()
    if verb not in VERBS or not rest:
        return None
    if verb.endswith("y") and verb[-2] not in "aeiou":
        return f"{verb[:-1]}ies {rest}"
    ending = "es" if verb.endswith(("s", "sh", "ch", "x", "z", "o")) else "s"
    return f"{verb}{ending} {rest}"


def arguments(text: str) -> list[tuple[str, str]]:
    """Find (argument, first sentence about it) in Sphinx, Google and NumPy style."""
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
    """Draw up to three (question, answer) pairs from one docstring."""
    pairs = [_argument(entry, rng)]
    summary = first_sentence(entry.text)
    if summary and entry.name.strip("_"):
        forms = rng.sample((_about, _about, _which, _complete, _rewrite, _summarise), 2)
        pairs += [form(entry, summary, rng) for form in forms]
    return [pair for pair in dict.fromkeys(pairs) if pair]
