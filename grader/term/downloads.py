"""The bulk downloads of Moodle and Canvas: the owner of each file, by the name that the platform gave it, and its time.

Moodle's own importer reads `<full name>_<participant>_assignsubmission_file_/...` (since 4.1 without the last
underscore; without folders the file's name follows), Canvas `<name>[_LATE]_<user>_<file>_<file's name>`.
"""

from __future__ import annotations

import re
import struct
import unicodedata
import zipfile
from collections import defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Literal

from ..errors import BadSubmission, GraderError
from ..submission.archive import Entry, files_in_zip, named_entries, report_archive_errors
from ..submission.files import MAX_TOTAL, Parts, open_folder, read_in, walk
from ..text import display_line
from .roster import Late, Platform

MOODLE = re.compile(r"(?P<name>.+)_(?P<student>\d+)_(?P<plugin>assignsubmission_[a-z]+)(?:_(?P<rest>.*))?", re.DOTALL)
CANVAS = re.compile(
    r"(?P<name>.+?)(?:_(?P<late>late))?_(?P<student>\d+)_(?P<file>\d+)_(?P<rest>.+)", re.DOTALL | re.IGNORECASE
)
CANVAS_ANONYMOUS = re.compile(
    r"(?:(?P<late>late)_)?(?P<name>(?P<student>anon_[a-z0-9]+))_(?P<file>\d+)_(?P<rest>.+)", re.DOTALL | re.IGNORECASE
)
CANVAS_TEXT = re.compile(r"(?:.+_)?(?:\d+|anon_[A-Za-z0-9]+)_(?:text|link)\.html", re.DOTALL | re.IGNORECASE)
ONLY_FILES = "assignsubmission_file"
HIDDEN = ("__MACOSX", ".", "~")
EXTENDED_TIME = 0x5455  # the extra field of an entry that has its time in UTC


@dataclass(frozen=True)
class Note:
    """One line about something that is no submission to be graded."""

    kind: Literal["left out", "kept aside", "ignored"]
    what: str


@dataclass(frozen=True)
class Owner:
    """The student who uploaded a file; the platform's id tells students apart."""

    student: str
    lms: Platform
    name: str = field(compare=False)


@dataclass(frozen=True)
class ParsedName:
    """What the name of a file in the download says: its owner, and its path below the student's folder.

    `download` is the folder (Moodle) or the name (Canvas) in the download. Canvas also says whether it is late, and
    numbers its files: the larger, the later.
    """

    owner: Owner
    path: Parts
    download: str
    late: Late = ""
    number: int = 0


@dataclass(frozen=True)
class Uploaded:
    """One uploaded file, and what its name in the download says."""

    parsed: ParsedName
    content: bytes
    timestamp: str

    @property
    def path(self) -> Parts:
        """The path below the student's folder."""
        return self.parsed.path


@dataclass
class Upload:
    """Everything in a download that one student uploaded."""

    owner: Owner
    files: list[Uploaded]


def read_download(path: Path) -> Iterator[Upload | Note]:
    """Yield what each student uploaded, by name, and a line for everything else; one student at a time is in memory.

    Raises `GraderError` if `path` is neither a zip nor a folder.
    """
    try:
        if not path.exists():
            raise GraderError(f"{path}: no such file: name the zip that Moodle or Canvas made, or its folder")
        yield from _from_folder(path.resolve()) if path.is_dir() else _from_zip(path)
    except OSError as error:
        raise GraderError(f"{path}: cannot be read ({error.strerror}): download it again") from None


def _from_zip(path: Path) -> Iterator[Upload | Note]:
    with _open_zip(path) as archive:
        entries: dict[Parts, list[Entry]] = defaultdict(list)
        for info, name in named_entries(archive):
            if not name.endswith("/"):
                entries[_parts(name)].append((info, name))
        owned, notes = _assign_owners(entries)
        yield from notes
        for owner, names in owned.items():
            own = [entry for name in names for entry in entries[name]]
            try:
                with report_archive_errors("its files"):
                    files = files_in_zip(archive, own, sum(info.compress_size for info, _ in own))
                    found = [Uploaded(names[f.path], f.content(), _entry_time(entries[f.path][0][0])) for f in files]
            except BadSubmission as problem:
                yield _note_left_out(owner, str(problem))
            else:
                yield from _upload(owner, found)


def _open_zip(path: Path) -> zipfile.ZipFile:
    try:
        return zipfile.ZipFile(path)
    except (OSError, ValueError, zipfile.BadZipFile, NotImplementedError) as error:
        raise GraderError(f"{path}: cannot be read as a zip ({display_line(str(error))}): download it again") from None


def _from_folder(path: Path) -> Iterator[Upload | Note]:
    while len(inner := _visible(path)) == 1 and _is_around(inner[0]):
        path = inner[0]
    owned, notes = _assign_owners(((one.name,) for one in inner), folders={one.name for one in inner if one.is_dir()})
    yield from notes
    for owner, names in owned.items():
        try:
            found = [one for name, parsed in names.items() for one in _from_entry(path / name[0], parsed)]
        except (BadSubmission, OSError) as problem:
            yield _note_left_out(owner, str(problem))
        else:
            yield from _upload(owner, found)


def _visible(folder: Path) -> list[Path]:
    return sorted(one for one in folder.iterdir() if not one.name.startswith(HIDDEN))


def _is_around(path: Path) -> bool:
    """Tell whether this is a folder around the download, not one of a student."""
    known = MOODLE.fullmatch(_nfc(path.name)) or CANVAS.fullmatch(_nfc(path.name))
    return path.is_dir() and not path.is_symlink() and not known


def _from_entry(path: Path, parsed: ParsedName) -> Iterator[Uploaded]:
    """Yield the files of one entry of a downloaded folder: those of a student's folder, or one file."""
    if path.is_dir() or path.is_symlink():
        with open_folder(path) as opened:
            files = list(walk(opened))
            if sum(file.size for file in files) > MAX_TOTAL:
                raise BadSubmission(f"its files are too large, where {MAX_TOTAL:,} bytes are allowed")
            for file in files:
                inner = ParsedName(parsed.owner, tuple(map(_nfc, file.path)), parsed.download)
                yield Uploaded(inner, file.content(), _modification_time(path.joinpath(*file.path)))
    else:
        with open_folder(path.parent) as opened:
            content = read_in(opened, (path.name,), MAX_TOTAL + 1)
        if len(content) > MAX_TOTAL:
            raise BadSubmission(f"it is too large, more than the {MAX_TOTAL:,} bytes that are allowed")
        yield Uploaded(parsed, content, _modification_time(path))


def _modification_time(path: Path) -> str:
    return datetime.fromtimestamp(int(path.lstat().st_mtime), UTC).isoformat()


def _upload(owner: Owner, found: list[Uploaded]) -> Iterator[Upload | Note]:
    """Yield the upload, or a line if two of its files have the same path once their names are composed alike."""
    if len({one.path for one in found}) < len(found):
        yield _note_left_out(owner, "two of its files have the same name: keep one of them")
    elif found:
        yield Upload(owner, found)


def _note_left_out(owner: Owner, why: str) -> Note:
    return Note("left out", display_line(f"{owner.name} ({owner.student}): {why}"))


def _assign_owners(
    names: Iterable[Parts], folders: Iterable[str] | None = None
) -> tuple[dict[Owner, dict[Parts, ParsedName]], list[Note]]:
    """Return the names by owner, and a line for each name that has none; with `folders` the names are of one folder."""
    owned: dict[Owner, dict[Parts, ParsedName]] = defaultdict(dict)
    notes: dict[Note, None] = {}
    for name in sorted(names):
        if not name or any(part.startswith(HIDDEN) and part != ".." for part in name):
            continue
        found = _parse_name(name, is_folder=folders is not None and name[0] in folders)
        if isinstance(found, Note):
            notes[found] = None
        else:
            owned[found.owner][name] = found
    return owned, list(notes)


def _parse_name(name: Parts, is_folder: bool) -> ParsedName | Note:
    """Return what the name of the file at this path says, or why it has no owner."""
    for depth, part in enumerate(map(_nfc, name)):
        below = tuple(map(_nfc, name[depth + 1 :]))
        if match := MOODLE.fullmatch(part):
            if match["plugin"] != ONLY_FILES:
                return Note(
                    "ignored", display_line(f"{part}: {match['plugin'].removeprefix('assignsubmission_')}, not files")
                )
            owner = Owner(match["student"], "moodle", match["name"])
            if below or is_folder:
                return ParsedName(owner, below, name[depth])
            if match["rest"]:
                return ParsedName(owner, (match["rest"],), name[depth])
        if below or is_folder:
            continue
        if CANVAS_TEXT.fullmatch(part):
            return Note("ignored", display_line(f"{part}: typed into the platform, not a file"))
        if match := CANVAS_ANONYMOUS.fullmatch(part) or CANVAS.fullmatch(part):
            owner = Owner(match["student"], "canvas", match["name"])
            return ParsedName(
                owner, (match["rest"],), name[depth], "yes" if match["late"] else "no", int(match["file"])
            )
    return Note("left out", display_line(f"{'/'.join(name[:2])}: no name that Moodle or Canvas gives to a submission"))


def _parts(name: str) -> Parts:
    """Return the parts of an entry's path as intake counts them."""
    return tuple(part for part in name.split("/") if part not in {"", "."})


def _nfc(text: str) -> str:
    return unicodedata.normalize("NFC", text)


def _entry_time(info: zipfile.ZipInfo) -> str:
    """Return the time of an entry in ISO 8601: in UTC if the entry has that, else without an offset; "" if there is none."""
    extra = info.extra
    while len(extra) >= 4:
        kind, size = struct.unpack("<HH", extra[:4])
        if kind == EXTENDED_TIME and size >= 5 and extra[4] & 1 and len(extra) >= 9:
            return datetime.fromtimestamp(struct.unpack("<i", extra[5:9])[0], UTC).isoformat()
        extra = extra[4 + size :]
    try:
        return datetime(*info.date_time).isoformat() if info.date_time[:3] != (1980, 1, 1) else ""
    except ValueError:
        return ""
