"""Collecting a bulk download into `submitted/<student>/<exercise>/`, as often as one likes."""

from __future__ import annotations

import hashlib
import json
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from functools import partial
from pathlib import Path

from loralab.files import whole_folder

from ..errors import BadSubmission, GraderError
from ..submission.files import Parts, open_folder, walk
from ..text import display_line, listed, printable
from .deadlines import CourseRules, read_rules
from .downloads import Note, Upload, Uploaded, read_download
from .guess import exercises_of, without_number
from .roster import Entry, Roster, read_roster, write_roster

EARLIER = "earlier"  # where superseded attempts are kept, in the course folder


@dataclass(frozen=True)
class Collected:
    """One submission of the download, and what became of it: "new", "updated", "unchanged" or "older"."""

    entry: Entry
    outcome: str


def collect(
    download: Path, course: Path, exercise: str | None = None, times: Mapping[str, str] | None = None
) -> Iterator[Collected | Note]:
    """Bring the submissions of a download into the course; yield each, and a line for each thing that is kept aside or
    left out.

    What is there already is not written again; a newer one takes its place, and the older one is kept in `earlier/`.
    The roster is written after each submission, so the command can be repeated if it was stopped. `times` has the times
    of submission by student, where they are known better than the download knows them. Raises `GraderError` if the
    download, the roster or the course's rules cannot be read, or the roster cannot be written.
    """
    roster, rules = read_roster(course), read_rules(course)
    for upload in read_download(download):
        if isinstance(upload, Note):
            yield upload
            continue
        upload.files.sort(key=partial(_age, rules=rules), reverse=True)  # everything below keeps the latest first
        of, unknown = _by_exercise(upload, exercise)
        for one, files in of.items():
            yield from _bring(upload, one, files, course, roster, rules, times or {})
        if unknown:
            names = listed("/".join(file.path) for file in unknown)
            yield Note("left out", f"{_who(upload)}: {names}: cannot tell the exercise: name it with --exercise")


def _who(upload: Upload) -> str:
    return display_line(f"{upload.owner.name} ({upload.owner.student})")


def _by_exercise(upload: Upload, exercise: str | None) -> tuple[dict[str, list[Uploaded]], list[Uploaded]]:
    """Return the files of each exercise, and those of unknown ones; these belong to the exercise if there is only one."""
    if exercise:
        return {exercise: upload.files}, []
    of: dict[str, list[Uploaded]] = defaultdict(list)
    unknown: list[Uploaded] = []
    for file in upload.files:
        found = exercises_of(file.path, file.content)
        if len(found) == 1:
            of[found.pop()].append(file)
        else:
            unknown.append(file)
    return (dict.fromkeys(of, upload.files), []) if len(of) == 1 else (of, unknown)


def _bring(
    upload: Upload,
    exercise: str,
    files: list[Uploaded],
    course: Path,
    roster: Roster,
    rules: CourseRules | None,
    times: Mapping[str, str],
) -> Iterator[Collected | Note]:
    """Write one submission, unless it is there or a newer one is."""
    counted, older = _attempts(files, exercise)
    content = _contents(counted, exercise)
    entry = _entry(upload, exercise, counted[0], content)
    entry = replace(entry, timestamp=times.get(entry.student, entry.timestamp))
    folder = course / "submitted" / entry.student / exercise
    before = roster.get((entry.student, exercise))
    who = f"{_who(upload)}, {exercise}"
    try:
        there = _digest(_read(folder)) if folder.is_dir() or folder.is_symlink() else ""
    except BadSubmission as problem:
        yield Note("left out", f"{who}: {printable(str(folder))} exists and cannot be read ({problem}): move it away")
        return
    if before and before.lms != entry.lms:
        yield Note("left out", f"{who}: {entry.student} came from {before.lms} before: collect it into another course")
        return
    if there and there != entry.digest and (before is None or there != before.digest):
        yield Note(
            "left out", f"{who}: submitted/{entry.student}/{exercise} was changed or put there by hand: move it away"
        )
        return
    outcome = _outcome(entry, before, there, course, rules)
    try:
        if outcome == "updated" and before:
            _keep_aside(_read(folder), before, course)
        if outcome in ("new", "updated"):
            _write(content, folder)
        if outcome == "older":
            _keep_aside(content, entry, course)
    except GraderError as problem:
        yield Note("left out", f"{who}: {problem}")
        return
    known = before is not None and times.get(entry.student, before.timestamp) == before.timestamp
    if outcome in ("new", "updated") or (outcome == "unchanged" and not known):
        roster[entry.student, exercise] = entry
        write_roster(roster, course)
    yield Collected(entry, outcome)
    yield from _aside(older, upload, exercise, course)


def _outcome(entry: Entry, before: Entry | None, there: str, course: Path, rules: CourseRules | None) -> str:
    if there == entry.digest:
        return "unchanged"
    if not there or before is None:
        return "new"
    time, time_before = _time(entry.timestamp, rules), _time(before.timestamp, rules)
    if entry.timestamp and time < time_before:
        return "older"
    seen = _earlier(entry, course).exists()
    return "older" if seen and time <= time_before else "updated"


def _entry(upload: Upload, exercise: str, latest: Uploaded, content: dict[Parts, bytes]) -> Entry:
    owner, parsed = upload.owner, latest.parsed
    return Entry(
        owner.student, owner.name, owner.lms, exercise, parsed.late, latest.timestamp, parsed.download, _digest(content)
    )


def _age(file: Uploaded, rules: CourseRules | None) -> tuple[int, datetime, int]:
    """Return what is larger for a later file: Canvas's own number, the time, the number of a further copy."""
    return file.parsed.number, _time(file.timestamp, rules), without_number(_stem(file.path[-1]))[1]


def _time(timestamp: str, rules: CourseRules | None) -> datetime:
    """Return the time in UTC; without an offset it is of the course's zone, or without rules of this computer's.

    An unknown time is earlier than every other.
    """
    time = datetime.fromisoformat(timestamp) if timestamp else datetime.fromtimestamp(0, UTC)
    return (rules.in_zone(time) if rules else time).astimezone(UTC)


def _stem(name: str) -> str:
    return name.rsplit(".", 1)[0]


def _attempts(files: list[Uploaded], exercise: str) -> tuple[list[Uploaded], list[Uploaded]]:
    """Return the files that count, and those that a later one of the same kind supersedes; each the latest first."""
    notebooks = {file.path for file in _notebooks(files, exercise)}
    stems = {_stem(file.path[-1]) for file in files}
    versions: dict[Parts | None, list[Uploaded]] = defaultdict(list)
    for file in files:
        versions[None if file.path in notebooks else _without_number(file.path, stems, exercise)].append(file)
    latest = {id(same[0]) for same in versions.values()}
    return [file for file in files if id(file) in latest], [file for file in files if id(file) not in latest]


def _notebooks(files: Iterable[Uploaded], exercise: str) -> list[Uploaded]:
    """Return the notebooks that may be the exercise's, whatever they are called: if there are any, those that surely are."""
    loose = [file for file in files if len(file.path) == 1 and file.path[0].lower().endswith(".ipynb")]
    of = [(file, exercises_of(file.path, file.content)) for file in loose]
    return [file for file, found in of if found == {exercise}] or [file for file, found in of if not found]


def _without_number(path: Parts, stems: set[str], exercise: str) -> Parts:
    """Return the path without the number of a further copy, if it is one: `rank-4.zip` is none of `rank-16.zip`."""
    stem, dot, ending = path[-1].rpartition(".")
    base, number = without_number(stem)
    copy = number and (base in stems or base == exercise)
    return (*path[:-1], f"{base}{dot}{ending.lower()}" if copy else path[-1])


def _contents(files: Iterable[Uploaded], exercise: str) -> dict[Parts, bytes]:
    """Return the files as intake expects them: the notebook has the exercise's name."""
    found = {file.path: file.content for file in files}
    notebooks = _notebooks(files, exercise)
    name = (f"{exercise}.ipynb",)
    if len(notebooks) == 1 and name not in found:
        found[name] = found.pop(notebooks[0].path)
    return found


def _digest(content: dict[Parts, bytes]) -> str:
    files = sorted(("/".join(path), hashlib.sha256(data).hexdigest()) for path, data in content.items())
    return hashlib.sha256(json.dumps(files).encode()).hexdigest()


def _read(folder: Path) -> dict[Parts, bytes]:
    with open_folder(folder) as opened:
        return {file.path: file.content() for file in walk(opened)}


def _earlier(entry: Entry, course: Path) -> Path:
    return course / EARLIER / entry.student / entry.exercise / entry.digest[:12]


def _keep_aside(content: dict[Parts, bytes], entry: Entry, course: Path) -> None:
    folder = _earlier(entry, course)
    if not folder.exists():
        _write(content, folder)


def _aside(older: list[Uploaded], upload: Upload, exercise: str, course: Path) -> Iterator[Note]:
    """Keep the superseded files of one download, and yield a line for each."""
    for file in older:
        content = {file.path: file.content}
        _keep_aside(content, _entry(upload, exercise, file, content), course)
        yield Note(
            "kept aside", f"{_who(upload)}, {exercise}: {display_line('/'.join(file.path))}: a later attempt counts"
        )


def _write(content: dict[Parts, bytes], folder: Path) -> None:
    try:
        with whole_folder(folder) as unfinished:
            for path, data in content.items():
                target = unfinished.joinpath(*path)
                target.parent.mkdir(parents=True, exist_ok=True)
                target.write_bytes(data)
    except OSError as error:  # a folder has the name of a file, a name is too long, the disk is full
        raise GraderError(
            f"its files cannot be written to {folder} ({error.strerror}): make room there, or permit it"
        ) from None
