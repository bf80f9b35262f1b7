"""Submissions that are identical: the same adapter, or the same code once comments and layout are left out."""

from __future__ import annotations

import hashlib
import io
import tokenize
from collections import defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Literal

from loralab.record import ADAPTER_FILE

from ..errors import NotebookFailed
from .intake import Submission
from .rebuild import solution_sources

Kind = Literal["all cells", "adapter", "cell"]

# What has a longer line is compared by its words: `tokenize` may look from each character of a line to its end.
MAX_LINE = 1_000
# Honest students write short cells alike: most solutions of these exercises have 20 to 90 tokens, the longest 200.
MIN_TOKENS = 80
UNANSWERED = ("NotImplementedError", "(Write your answer here.)")
NEW_LINE = {tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT}
LAYOUT = NEW_LINE | {tokenize.COMMENT, tokenize.NL, tokenize.ENDMARKER}


@dataclass(frozen=True)
class Fingerprint:
    """What of a submission can be compared: the SHA-256 of each run's tensors, the source of each solution cell by its id."""

    adapters: dict[str, str] = field(default_factory=dict)
    sources: dict[str, str] = field(default_factory=dict)


def fingerprint(submission: Submission) -> Fingerprint:
    """Return what of a submission is compared with others: its adapters' tensors and its cells' sources."""
    adapters = {}
    for run, files in submission.runs.items():
        weights = files.get(ADAPTER_FILE, b"")
        header = 8 + int.from_bytes(weights[:8], "little")  # it may differ where the tensors do not
        if tensors := weights[header:]:
            adapters[run] = hashlib.sha256(tensors).hexdigest()
    try:
        sources = solution_sources(submission.notebook) if submission.notebook is not None else {}
    except NotebookFailed:
        sources = {}
    return Fingerprint(adapters, sources)


@dataclass(frozen=True)
class Group:
    """Submissions to one exercise with the same adapter (of the run `where`), the same cell `where`, or all cells the same.

    `reference` says that the reference solution has the same; then one student makes a group.
    """

    exercise: str
    kind: Kind
    where: str
    students: tuple[str, ...]
    reference: bool = False


def groups(
    fingerprints: Mapping[tuple[str, str], Fingerprint], reference: Mapping[str, Fingerprint] | None = None
) -> list[Group]:
    """Return the groups among `fingerprints` (by student and exercise), by exercise and kind, the smallest first.

    `reference` has the reference solution of each exercise. A cell that was not answered is not compared, a short one
    only with all others, and one whose group is part of a group of whole notebooks is not told again.
    """
    members: dict[tuple[str, Kind, str, str], list[str]] = defaultdict(list)
    for (student, exercise), fingerprint in fingerprints.items():
        for kind, where, digest in _marks(fingerprint):
            members[exercise, kind, where, digest].append(student)
    known = {(exercise, *mark) for exercise, one in (reference or {}).items() for mark in _marks(one)}
    found = [
        Group(exercise, kind, where, tuple(sorted(students)), (exercise, kind, where, digest) in known)
        for (exercise, kind, where, digest), students in members.items()
        if len(students) > 1 or (exercise, kind, where, digest) in known
    ]
    whole = [(group.exercise, set(group.students)) for group in found if group.kind == "all cells"]
    told = [
        group
        for group in found
        if group.kind != "cell"
        or not any(group.exercise == exercise and students >= set(group.students) for exercise, students in whole)
    ]
    order: tuple[Kind, ...] = ("all cells", "adapter", "cell")
    return sorted(
        told, key=lambda one: (one.exercise, order.index(one.kind), len(one.students), one.where, one.students)
    )


def _marks(fingerprint: Fingerprint) -> Iterator[tuple[Kind, str, str]]:
    """Yield what may be equal: its kind, where it is, and a hash of its content."""
    for run, digest in fingerprint.adapters.items():
        yield "adapter", run, digest
    answered = {
        cell: normalised(source)
        for cell, source in fingerprint.sources.items()
        if not any(word in source for word in UNANSWERED)
    }
    for cell, source in answered.items():
        if source.count(" ") + 1 >= MIN_TOKENS:
            yield "cell", cell, _digest(source)
    everything = "\n".join(f"{cell} {source}" for cell, source in sorted(answered.items()))
    if len(answered) > 1 and everything.count(" ") >= MIN_TOKENS:
        yield "all cells", "", _digest(everything)


def normalised(source: str) -> str:
    """Return the tokens of `source` separated by spaces: no comments, no docstrings, no layout.

    Nothing is parsed into a tree: a source that is nested deep enough would bring the parser down.
    """
    if any(len(line) > MAX_LINE for line in source.splitlines()):
        return " ".join(source.split())
    kept: list[str] = []
    at_start = True  # a string there is a docstring
    try:
        for token in tokenize.generate_tokens(io.StringIO(source).readline):
            if token.type not in LAYOUT and not (token.type == tokenize.STRING and at_start):
                kept.append(token.string)
            if token.type not in (tokenize.COMMENT, tokenize.NL):
                at_start = token.type in NEW_LINE
    except (tokenize.TokenError, SyntaxError):
        return " ".join(source.split())
    return " ".join(kept)


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()
