"""Taking in hand-ins: what lies there is looked at, bounded and copied into memory; nothing is unpacked or followed.

Of a hand-in only the notebook and three files of each run are read. Everything else is named, and never opened.
"""

from __future__ import annotations

import errno
import hashlib
import io
import json
import os
import re
import stat
import zipfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from copy import copy
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from loralab.errors import first_line
from loralab.handin import RUN_FILES
from loralab.measure import ADAPTER_FILE

from .exercises import EXERCISES, Exercise

# In bytes. The largest honest hand-in, exercise 5 on Qwen2.5-0.5B with 32-bit adapters, has 231 MB.
MAX_TOTAL = 300_000_000
MAX_NOTEBOOK, MAX_JSON = 10_000_000, 1_000_000
MAX_ENTRIES = 2_000  # files and folders
MAX_DEPTH = 10  # folders within folders
MAX_RATIO, ALWAYS_ALLOWED = 100, 5_000_000  # a zip unpacks to at most 100 times its size, or to 5 MB
MAX_DIRECTORY = 500_000  # bytes of a zip's table of contents; zipfile reads it whole, 46 bytes and a name an entry
ENCRYPTED = 0x41  # the bits of an entry's flags that say so
MAX_LABEL = 63  # characters of a file's name that are kept; in UTF-8 they fit into any file system's 255 bytes
MAX_UNKNOWN = 5  # things beside a student's hand-ins that are named one by one

ONLY = "hand in the notebook and the run folders, or the zip that loralab.pack makes"
Parts = tuple[str, ...]  # a path within a hand-in
Runs = dict[str, dict[str, bytes]]


class BadHandIn(ValueError):
    """A hand-in that is not taken in; the message tells the student in one line what is wrong, where and what to do."""


@dataclass(frozen=True)
class Place:
    """Where a hand-in lies. `student` is the name of its folder in a form that can be printed, stored and told apart."""

    student: str
    exercise: str
    folder: Path


@dataclass(frozen=True)
class HandIn:
    """What was handed in: the notebook's bytes, the runs' files by run and name, and the paths of all that is not read."""

    student: str
    exercise: str
    notebook: bytes | None
    runs: Runs
    strays: tuple[str, ...]

    @property
    def digest(self) -> str:
        """Identifies the content (SHA-256), whoever handed it in."""
        runs = {run: {name: _sha256(content) for name, content in files.items()} for run, files in self.runs.items()}
        notebook = None if self.notebook is None else _sha256(self.notebook)
        return _sha256(json.dumps([notebook, runs, sorted(self.strays)], sort_keys=True).encode())


def _sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def printable(text: str) -> str:
    """`text` with what cannot be printed or encoded (control and direction marks, bytes that are not UTF-8) escaped.

    Backslashes are escaped as well, so different texts stay different.
    """
    return "".join(c if c.isprintable() and c != "\\" else c.encode("unicode_escape").decode() for c in text)


def find(submitted: Path) -> list[Place]:
    """The hand-ins `<submitted>/<student>/<exercise>/`, by student and exercise; none if there is no such folder."""
    return [found for found in _survey(submitted) if isinstance(found, Place)]


def left_out(submitted: Path) -> list[str]:
    """What lies where hand-ins belong and is none, a line each for the instructor: what, why, what to do."""
    return [found for found in _survey(submitted) if isinstance(found, str)]


def _survey(submitted: Path) -> Iterator[Place | str]:
    if not submitted.is_dir():
        return
    for folder in sorted(submitted.iterdir()):
        if folder.name.startswith("."):
            continue
        where = f"{submitted.name}/{printable(folder.name)}"
        try:
            if folder.is_symlink():
                yield f"{where}: a symlink, which is not followed: put the folder itself there"
            elif not folder.is_dir():
                yield f"{where}: not a student's folder: hand-ins lie in {submitted.name}/<student>/<exercise>/"
            else:
                yield from _survey_student(folder, where)
        except OSError as error:
            yield f"{where}: cannot be looked into ({error.strerror})"


def _survey_student(folder: Path, where: str) -> Iterator[Place | str]:
    names = {entry.name for entry in folder.iterdir()}
    for exercise in EXERCISES:
        if exercise in names:
            yield Place(printable(folder.name), exercise, folder / exercise)
    unknown = sorted(name for name in names - EXERCISES.keys() if not name.startswith("."))
    for name in unknown[:MAX_UNKNOWN]:
        yield f"{where}/{_label(name)}: no exercise has this name: {_where_it_belongs(name)}"
    if len(unknown) > MAX_UNKNOWN:
        yield f"{where}: {len(unknown) - MAX_UNKNOWN:,} further things that are no hand-ins"


def _where_it_belongs(name: str) -> str:
    if name.lower() in EXERCISES:
        return f"rename it to {name.lower()}"
    first, *_, last = EXERCISES
    return f"a hand-in, a zip too, lies in a folder named {first} ... {last}"


def take_in(place: Place, exercise: Exercise) -> HandIn:
    """The hand-in at `place`: a folder with the notebook and run folders (there or in `runs/`), or with a zip of them.

    Where there are run folders, a zip is not opened; a notebook beside a zip is taken, not the one in it, because it was
    saved later. Raises `BadHandIn`, also if there is neither a notebook nor anything of a run.
    """
    with _folder(place.folder) as folder:
        files = list(_walk(folder))
        notebook, runs, strays = _gather(files, exercise)
        zips = [file for file in files if _may_be_the_zip(file.path)]
        if zips and not runs:
            packed, runs, more = _gather_zip(zips, exercise)
            notebook = packed if notebook is None else notebook
            strays = tuple(sorted({*strays, *more}))
    in_runs = {run.name for run in exercise.runs}
    if notebook is None and not runs and not any(stray.split("/")[0] in in_runs for stray in strays):
        instead = f" (only {', '.join(strays[:3])}{' ...' if len(strays) > 3 else ''})" if strays else ""
        raise BadHandIn(
            f"neither {exercise.id}.ipynb nor a run folder such as {exercise.runs[0].name!r} is there{instead}: {ONLY}"
        )
    return HandIn(place.student, exercise.id, notebook, runs, strays)


def collect_runs(folder: Path, exercise: Exercise) -> tuple[Runs, tuple[str, ...]]:
    """The runs that a notebook left in `folder`, and the paths of all else. Raises `BadHandIn`, as `take_in`.

    A folder that is not there holds no runs.
    """
    if not os.path.lexists(folder):
        return {}, ()
    with _folder(folder) as opened:
        _, runs, strays = _gather(list(_walk(opened)), exercise)
    return runs, strays


def collect_notebook(folder: Path, exercise: Exercise) -> bytes:
    """The executed notebook that lies in `folder`, as distrusted as the runs. Raises `BadHandIn`."""
    with _folder(folder) as opened:
        content = _read_in(opened, (f"{exercise.id}.ipynb",), MAX_NOTEBOOK + 1)
    if len(content) > MAX_NOTEBOOK:
        raise BadHandIn(f"{exercise.id}.ipynb is too large after it has run: more than {MAX_NOTEBOOK:,} bytes")
    return content


def lay_out(runs: Runs, strays: Iterable[str], folder: Path) -> None:
    """Write the run folders into `folder`; a stray that lay in a run folder becomes an empty file of its name."""
    folder.mkdir(parents=True, exist_ok=True)
    for run, _, name in (stray.partition("/") for stray in strays):
        if name and "/" not in name:
            (folder / run).mkdir(exist_ok=True)
            (folder / run / name).touch()
    for run, files in runs.items():
        (folder / run).mkdir(exist_ok=True)
        for name, content in files.items():
            (folder / run / name).write_bytes(content)


@dataclass(frozen=True)
class File:
    """A file of a submission: its path, how many bytes it says it has, and how to read at most so many of them."""

    path: Parts
    size: int
    read: Callable[[int], bytes]

    def content(self) -> bytes:
        """Return all of it. Raises `BadHandIn` if its size is not the one that it claims."""
        content = self.read(self.size + 1)
        if len(content) != self.size:
            raise BadHandIn(
                f"{_shown(self.path)} has not the {self.size:,} bytes that it says it has: hand it in again"
            )
        return content


def _gather(files: Iterable[File], exercise: Exercise) -> tuple[bytes | None, Runs, tuple[str, ...]]:
    """The notebook and the runs among these files, read, and the paths of all else."""
    files = list(files)
    around = _around_everything(files, exercise)
    taken: dict[Parts, bytes] = {}
    strays = set()
    total = 0
    for file in files:
        slot = _slot(file.path, around)
        if not _is_read(slot, exercise):
            strays.add("/".join(map(_label, slot)))
            continue
        if slot in taken:
            raise BadHandIn(f"{_shown(file.path)}: {_shown(slot)} is there twice: keep one of them")
        total += file.size
        _refused_if_too_large(file, total)
        taken[slot] = file.content()
    runs = {
        run.name: {name: taken[run.name, name] for name in RUN_FILES if (run.name, name) in taken}
        for run in exercise.runs
    }
    notebook = taken.get((f"{exercise.id}.ipynb",))
    return notebook, {name: found for name, found in runs.items() if found}, tuple(sorted(strays))


def _around_everything(files: Sequence[File], exercise: Exercise) -> str:
    """The one folder that everything lies in, whatever a system packs beside it; or else that of the exercise's name."""
    tops = {file.path[0] for file in files if file.path[0] != "__MACOSX" and not file.path[0].startswith(".")}
    loose = any(len(file.path) == 1 and file.path[0] in tops for file in files)
    ours = {"runs", *(run.name for run in exercise.runs)}
    return tops.pop() if len(tops) == 1 and not loose and not tops & ours else exercise.id


def _slot(path: Parts, around: str) -> Parts:
    """The path as `loralab.pack` would have named it: without the folder `around` everything, and without `runs/`."""
    if len(path) > 1 and path[0] == around:
        path = path[1:]
    return path[1:] if len(path) > 2 and path[0] == "runs" else path


def _is_read(slot: Parts, exercise: Exercise) -> bool:
    if len(slot) == 2:
        return slot[1] in RUN_FILES and slot[0] in {run.name for run in exercise.runs}
    return slot == (f"{exercise.id}.ipynb",)


def _refused_if_too_large(file: File, total: int) -> None:
    most, advice = MAX_JSON, "no run has one that large, save it again"
    if file.path[-1] == ADAPTER_FILE:
        most, advice = MAX_TOTAL, "hand in the adapter, not a whole model"
    elif file.path[-1].endswith(".ipynb"):
        most, advice = MAX_NOTEBOOK, "clear its outputs, save it and hand it in again"
    if file.size > most:
        raise BadHandIn(f"{_shown(file.path)} is too large, {file.size:,} bytes where {most:,} are allowed: {advice}")
    if total > MAX_TOTAL:
        raise BadHandIn(f"all runs are too large, {total:,} bytes where {MAX_TOTAL:,} are allowed: {ONLY}")


def _may_be_the_zip(path: Parts) -> bool:
    """Whether this is a zip where a hand-in may lie: `loralab.pack` writes it into `runs/`."""
    return path[-1].lower().endswith(".zip") and path[:-1] in {(), ("runs",)}


def _label(name: str) -> str:
    """A name as it is shown and kept; of a long one its beginning and end."""
    name, half = printable(name), MAX_LABEL // 2 - 1
    return name if len(name) <= MAX_LABEL else f"{name[:half]}...{name[-half:]}"


def _shown(path: Parts) -> str:
    return "/".join(map(_label, path if len(path) <= MAX_DEPTH else (*path[:2], "...", *path[-2:])))


# Folders. Every folder and file is opened by the one around it and never through a link, so that nothing can be put in
# the place of what was looked at.


@contextmanager
def _folder(path: Path) -> Iterator[int]:
    """Open the folder and close it again. Raises `BadHandIn` if it is none."""
    try:
        opened = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
    except OSError as error:
        linked = error.errno in {errno.ELOOP, errno.ENOTDIR} and path.is_symlink()
        what = "is a symlink" if linked else f"cannot be opened as a folder ({error.strerror})"
        raise BadHandIn(f"{_label(path.name)} {what}: put a plain folder there") from None
    try:
        yield opened
    finally:
        os.close(opened)


@contextmanager
def files_in_folder(path: Path) -> Iterator[list[File]]:
    """Yield the files in the folder, to be read before it is closed. Raises `BadHandIn`, also while they are read."""
    with _folder(path) as opened:
        yield list(_walk(opened))


def file_in_folder(path: Path) -> File:
    """Return the one file at `path`. Raises `BadHandIn` if it is no plain file, also while it is read."""

    def read(most: int) -> bytes:
        with _folder(path.parent) as opened:
            return _read_in(opened, (path.name,), most)

    return File((path.name,), _refused_unless_plain((path.name,), path.lstat()).st_size, read)


def _walk(root: int) -> Iterator[File]:
    """Every file in the folder; hidden ones excepted, and what macOS adds. Raises `BadHandIn` for what is no plain file."""
    waiting: list[Parts] = [()]
    seen = 0
    while waiting:
        folder = waiting.pop()
        with _open_in(root, folder, os.O_DIRECTORY) as opened, os.scandir(opened) as entries:
            for entry in entries:
                seen += 1
                if seen > MAX_ENTRIES:
                    raise BadHandIn(f"more than {MAX_ENTRIES:,} files and folders are in it: {ONLY}")
                path = (*folder, entry.name)
                if _is_hidden(path):
                    continue
                status = _refused_unless_plain(path, entry.stat(follow_symlinks=False))
                if stat.S_ISREG(status.st_mode):
                    yield File(path, status.st_size, partial(_read_in, root, path))
                elif len(path) < MAX_DEPTH:
                    waiting.append(path)
                else:
                    raise BadHandIn(f"{_shown(path)}: folders lie more than {MAX_DEPTH} deep: {ONLY}")


def _is_hidden(path: Parts) -> bool:
    return any(name.startswith(".") or name == "__MACOSX" for name in path)


def _refused_unless_plain(path: Parts, status: os.stat_result) -> os.stat_result:
    if not (stat.S_ISREG(status.st_mode) or stat.S_ISDIR(status.st_mode)):
        kind = KINDS.get(stat.S_IFMT(status.st_mode), "a special file")
        raise BadHandIn(f"{_shown(path)} is {kind}: only plain files are taken in, put the file itself there")
    return status


KINDS = {
    stat.S_IFLNK: "a symlink",
    stat.S_IFIFO: "a pipe",
    stat.S_IFSOCK: "a socket",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
}


@contextmanager
def _open_in(root: int, path: Parts, kind: int = 0) -> Iterator[int]:
    """Open what lies at `path` below the folder `root`, without following a link or waiting for a pipe."""
    flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_NOCTTY
    opened = os.dup(root)
    try:
        for depth, name in enumerate(path, 1):
            inner = os.open(name, flags | (kind if depth == len(path) else os.O_DIRECTORY), dir_fd=opened)
            os.close(opened)
            opened = inner
        yield opened
    except OSError as error:
        raise BadHandIn(f"{_shown(path) or 'the folder'} cannot be read ({error.strerror}): hand it in again") from None
    finally:
        os.close(opened)


def _read_in(root: int, path: Parts, most: int) -> bytes:
    """At most so many bytes of the file; another name for a file that lies elsewhere is refused."""
    with _open_in(root, path) as opened:
        status = _refused_unless_plain(path, os.fstat(opened))
        if status.st_nlink > 1:
            raise BadHandIn(f"{_shown(path)} is a hard link to another file: put a copy there")
        with open(opened, "rb", closefd=False) as file:
            return file.read(most)


# Zips. They are read in memory, entry by entry.


class _Bounded(io.BytesIO):
    """Bytes of which not more than `most` are read at a time."""

    most: int | None = MAX_DIRECTORY

    def read(self, size: int | None = -1) -> bytes:
        if self.most is not None and size is not None and size > self.most:
            raise BadHandIn(f"its table of contents has {size:,} bytes, those of many thousand files: {ONLY}")
        return super().read(size)


def _gather_zip(zips: list[File], exercise: Exercise) -> tuple[bytes | None, Runs, tuple[str, ...]]:
    """As `_gather`, from the one zip of a hand-in. Raises `BadHandIn`, whatever is wrong with it."""
    first, *others = zips
    where = _shown(first.path)
    if others:  # whichever is named like the exercise: a browser puts a number to the later one
        raise BadHandIn(f"{where} and {_shown(others[0].path)} are both there: keep the one to be graded")
    if first.size > MAX_TOTAL:
        raise BadHandIn(f"{where} is too large, {first.size:,} bytes where {MAX_TOTAL:,} are allowed: {ONLY}")
    with zip_errors_in_one_line(where):
        content = first.read(first.size)
        source = _Bounded(content)
        with zipfile.ZipFile(source) as archive:
            source.most = None
            entries = archive.infolist()
            return _gather(files_in_zip(archive, entries, len(content)), exercise)


@contextmanager
def zip_errors_in_one_line(where: str) -> Iterator[None]:
    """Turn whatever reading a zip raises into `BadHandIn`, in one line that begins with `where`."""
    try:
        yield
    except BadHandIn as problem:
        raise BadHandIn(f"{where}: {problem}") from None
    except Exception as error:  # whatever a broken file does to its reader, it is the file's fault
        what = first_line(error)[:200]
        raise BadHandIn(f"{where}: cannot be read as a zip ({printable(what)}): pack and hand it in again") from None


def files_in_zip(archive: zipfile.ZipFile, entries: list[zipfile.ZipInfo], packed: int) -> list[File]:
    """Return the files among these entries, which take `packed` bytes in the zip. Raises `BadHandIn`."""
    _refused_if_a_bomb(entries, packed)
    return list(_entries(archive, entries))


def _refused_if_a_bomb(entries: list[zipfile.ZipInfo], packed: int) -> None:
    if len(entries) > MAX_ENTRIES:
        raise BadHandIn(f"{len(entries):,} files are in it, more than the {MAX_ENTRIES:,} allowed: {ONLY}")
    unpacked = sum(info.file_size for info in entries)
    if unpacked > min(MAX_TOTAL, max(ALWAYS_ALLOWED, MAX_RATIO * packed)):
        raise BadHandIn(
            f"its {packed:,} bytes would unpack to {unpacked:,}; up to {MAX_RATIO} times as many are allowed, "
            f"and {MAX_TOTAL:,}: {ONLY}"
        )


def _entries(archive: zipfile.ZipFile, entries: list[zipfile.ZipInfo]) -> Iterator[File]:
    """The files of a zip, hidden ones excepted."""
    seen = set()
    for info in entries:
        path = _path(info)
        kind = stat.S_IFMT(info.external_attr >> 16)
        if kind not in {0, stat.S_IFREG, stat.S_IFDIR}:
            raise BadHandIn(f"{_shown(path)} is {KINDS.get(kind, 'a special file')}: zip the file itself")
        if info.flag_bits & ENCRYPTED:
            raise BadHandIn(f"{_shown(path)} is encrypted: zip it without a password")
        if info.is_dir() or _is_hidden(path):
            continue
        if info.compress_type not in {zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED}:
            raise BadHandIn(f"{_shown(path)} is compressed by a method that is not read here: make an ordinary zip")
        if path in seen:
            raise BadHandIn(f"{_shown(path)} is in it twice: pack again")
        seen.add(path)
        yield File(path, info.file_size, partial(_unpack, archive, info))


def _path(info: zipfile.ZipInfo) -> Parts:
    name = info.orig_filename
    if name.startswith("/") or re.match("[A-Za-z]:", name):
        raise BadHandIn(f"{_label(name)} is an absolute path: zip the folder's contents, with paths that begin in it")
    if "\\" in name or "\0" in name or info.filename != name:
        raise BadHandIn(
            f"{_label(name)} is not a path that every system reads alike: make an ordinary zip, with / in paths"
        )
    path = tuple(part for part in name.split("/") if part not in {"", "."})
    if ".." in path:
        raise BadHandIn(f"{_label(name)} leads outside by '..': zip the folder's contents, with paths that begin in it")
    if len(path) > MAX_DEPTH:
        raise BadHandIn(f"{_shown(path)} lies more than {MAX_DEPTH} folders deep: {ONLY}")
    if not path or any(len(os.fsencode(part)) > 255 for part in path):
        raise BadHandIn(f"{_label(name)!r} is not a name that a file can have: pack again")
    return path


def _unpack(archive: zipfile.ZipFile, info: zipfile.ZipInfo, most: int) -> bytes:
    """At most so many bytes, also where the entry says that it has fewer: `zipfile` itself would cut it off there."""
    honest = copy(info)
    honest.file_size = most
    with archive.open(honest) as file:
        return file.read(most)
