"""What people decided about verdicts, and what changed since the results were last written; kept in the ledger's file."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import asdict, astuple, dataclass, fields, replace
from pathlib import Path
from typing import Any, Literal

from loralab.files import write_whole
from loralab.record import now

from ..records.ledger import BANDS, Key, Ledger, decisive_code, decisive_parts
from ..reports.exports import write_texts
from ..text import display_line, display_name
from ..verdict import Adjustment, Check, Verdict

Kind = Literal["again", "points", "removed"]
AGAIN = re.compile(r", again \d+$")
# What a part of the grader is called where a verdict changed because of it.
PART_NAMES = {
    "versions": "versions of packages",
    "grader": "grader code",
    BANDS: "bands",
    "loralab": "library code",
    "solutions": "solutions",
    "exercises": "exercises",
    "data/base": "embedded base",
    "data/desk": "fact tables",
    "data/pairs": "pairs",
}


@dataclass(frozen=True)
class Decision:
    """What somebody decided: to judge again, to set points by hand, or to remove these points."""

    student: str
    exercise: str
    kind: Kind
    points: float | None
    note: str
    recorded: str = ""


@dataclass(frozen=True)
class Change:
    """One thing about a verdict that is not what it was; `check` is a check's name, or what else changed."""

    student: str
    exercise: str
    check: str
    before: str
    after: str
    why: str


class History:
    """The decisions and the results that were written last, in the file of an open ledger."""

    def __init__(self, ledger: Ledger) -> None:
        self._ledger = ledger

    def decide(self, decision: Decision) -> None:
        """Keep a decision; earlier ones stay in the history."""
        values = astuple(replace(decision, recorded=now()))
        self._ledger.query(
            "INSERT INTO decision (student, exercise, kind, points, note, recorded) VALUES (?, ?, ?, ?, ?, ?)", values
        )

    def decisions(self) -> list[Decision]:
        """Return every decision, in their order."""
        rows = self._ledger.query("SELECT student, exercise, kind, points, note, recorded FROM decision ORDER BY id")
        return [Decision(*row) for row in rows]

    def again(self) -> dict[tuple[str, str], int]:
        """Count how often each submission is to be judged again."""
        return Counter((one.student, one.exercise) for one in self.decisions() if one.kind == "again")

    def points_by_hand(self) -> dict[tuple[str, str], Decision]:
        """Return the points set by hand that are in force, by student and exercise."""
        last = {(one.student, one.exercise): one for one in self.decisions() if one.kind != "again"}
        return {who: one for who, one in last.items() if one.kind == "points"}

    def remember(self, options: dict[str, Any]) -> None:
        """Keep the options with which the class was graded last."""
        self._ledger.query("INSERT OR REPLACE INTO options VALUES (1, ?)", (json.dumps(options),))

    def recall(self) -> dict[str, Any] | None:
        """Return the options with which the class was graded last; None if it was not."""
        rows = self._ledger.query("SELECT value FROM options")
        return json.loads(rows[0][0]) if rows else None

    def publish(self, verdicts: Sequence[Verdict], folder: Path) -> list[Change]:
        """Store these as the current results; return what changed in those that were there before, and why.

        The changes are in `folder` before the results are stored: if this is stopped, the next time finds them again.
        """
        self._remember_parts()
        changes: list[Change] = []
        rows: list[tuple[str, str, str, str]] = []
        for verdict in verdicts:
            key = self._key_of(verdict)
            changes += self._changes(verdict, key)
            rows.append((verdict.student, verdict.exercise, _text(verdict), json.dumps(key)))
        if changes:
            write_changes(changes, folder)
        self._ledger.write("INSERT OR REPLACE INTO published VALUES (?, ?, ?, ?)", rows)
        return changes

    def _changes(self, verdict: Verdict, key: dict[str, Any]) -> list[Change]:
        """Return what changed in one verdict, nothing if it is the first."""
        who = verdict.student, verdict.exercise
        rows = self._ledger.query("SELECT verdict, key FROM published WHERE student = ? AND exercise = ?", who)
        if not rows:
            return []
        stored = json.loads(rows[0][0]) | {"claims": {}}  # an older grader's records may have had other fields
        before, old = Verdict.model_validate(stored), json.loads(rows[0][1])
        why = "; ".join(self._reasons(before, verdict, old, key)) or "unknown"
        return [Change(*who, *differing, why) for differing in _differences(before, verdict)]

    def _remember_parts(self) -> None:
        """Keep the hash of each part of the present grader, so that a later one can tell what it has otherwise."""
        self._ledger.query("INSERT OR IGNORE INTO parts VALUES (?, ?)", (decisive_code(), json.dumps(decisive_parts())))

    def _key_of(self, verdict: Verdict) -> dict[str, Any]:
        """Return what the verdict depended on; nothing if it is not in the ledger, as of a submission that cannot be opened."""
        names = [field.name for field in fields(Key)]
        earned = _text(verdict.model_copy(update={"adjustments": []}))
        rows = self._ledger.query(
            f"SELECT {', '.join(names)} FROM verdict WHERE student = ? AND exercise = ? AND verdict = ? ORDER BY id DESC",
            (verdict.student, verdict.exercise, earned),
        )
        found = dict(zip(names, rows[0], strict=True)) if rows else {}
        return {name: value.hex() if isinstance(value, bytes) else value for name, value in found.items()}

    def _reasons(self, before: Verdict, after: Verdict, old: dict[str, Any], new: dict[str, Any]) -> Iterator[str]:
        if not (old and new):
            yield "the grader failed" if "grader failed" in (before.state, after.state) else "the submission"
        elif old != new:
            named = {"digest": "the submission", "base": "the base", "heldout_seed": "the held-out seed"}
            yield from (why for name, why in named.items() if old[name] != new[name])
            if old["mode"] != new["mode"]:
                yield from self._of_mode(after, old["mode"], new["mode"])
            if old["grader_version"] != new["grader_version"]:
                yield from self._of_version(old["grader_version"], new["grader_version"])
        for kind, why in (("late", "the deadline, or the roster"), ("by hand", "points by hand")):
            was, now_is = ([one for one in verdict.adjustments if one.kind == kind] for verdict in (before, after))
            if was != now_is and (kind == "by hand" or [one.reason for one in was] != [one.reason for one in now_is]):
                yield why

    def _of_mode(self, verdict: Verdict, old: str, new: str) -> Iterator[str]:
        if AGAIN.sub("", old) != AGAIN.sub("", new):
            yield "how it was run"
        else:
            who = verdict.student, verdict.exercise, "again"
            notes = [one.note for one in self.decisions() if (one.student, one.exercise, one.kind) == who]
            yield f"judged again: {notes[-1]}" if notes else "judged again"

    def _of_version(self, old: str, new: str) -> Iterator[str]:
        known = dict(self._ledger.query("SELECT grader_version, hashes FROM parts"))
        if old not in known or new not in known:
            yield "the grader"
            return
        before, after = json.loads(known[old]), json.loads(known[new])
        parts = dict.fromkeys([*before, *after])
        yield from (PART_NAMES.get(part, part) for part in parts if before.get(part) != after.get(part))


def _text(verdict: Verdict) -> str:
    return json.dumps(verdict.model_dump())


def _differences(before: Verdict, after: Verdict) -> Iterator[tuple[str, str, str]]:
    """Yield what differs: its name, and what it was and is; nothing if only the seconds do."""
    pairs = [
        ("state", before.state, after.state),
        ("message", before.message, after.message),
        ("points", _number(before.points), _number(after.points)),
        ("final points", _number(before.final_points), _number(after.final_points)),
        ("adjustment", before.reasons, after.reasons),
    ]
    old, new = ({one.label: one for one in verdict.checks} for verdict in (before, after))
    pairs += [(name, _earned(old.get(name)), _earned(new.get(name))) for name in dict.fromkeys([*old, *new])]
    return (pair for pair in pairs if pair[1] != pair[2])


def _earned(check: Check | None) -> str:
    return f"{check.earned:.4g} of {check.points:.4g}" if check else ""


def _number(points: float | None) -> str:
    return "" if points is None else f"{points:g}"


def set_by_hand(verdict: Verdict, decision: Decision) -> Verdict:
    """Return the verdict with the points of a decision instead of its own."""
    reason = f"{decision.note} ({decision.recorded[:10]})"
    one = Adjustment(kind="by hand", points=decision.points or 0.0, reason=reason)
    return verdict.model_copy(update={"adjustments": [*verdict.adjustments, one]})


def write_changes(changes: Sequence[Change], folder: Path) -> None:
    """Write `changes.csv` and `changes.json`."""
    write_texts(folder / "changes.csv", Change, changes)
    write_whole(folder / "changes.json", json.dumps([asdict(one) for one in changes], indent=1) + "\n")


def format_changes(changes: Sequence[Change]) -> list[str]:
    """Format the changes of each verdict as one line."""
    found: dict[tuple[str, str], list[Change]] = {}
    for one in changes:
        found.setdefault((one.student, one.exercise), []).append(one)
    return [
        f"{display_name(student)}, {exercise}: "
        + "; ".join(display_line(f"{one.check} {one.before or '-'} -> {one.after or '-'}", 200) for one in same)
        + f" (because of: {display_line(same[0].why)})"
        for (student, exercise), same in found.items()
    ]
