"""The files of a submitted folder, within bounds: nothing is followed, waited for or unpacked.

Every folder and file is opened by the one around it and never through a link, so that nothing can be put in the place of
what was looked at; and a file that has changed since then is refused, so that no two versions are mixed.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from ..errors import BadSubmission
from ..text import printable

# In bytes. The largest honest submission, exercise 5 on Qwen2.5-0.5B with 32-bit adapters, has 231 MB.
MAX_TOTAL = 300_000_000
MAX_NOTEBOOK, MAX_JSON = 10_000_000, 1_000_000
MAX_ENTRIES = 2_000  # files and folders
MAX_DEPTH = 10  # folders within folders
MAX_LABEL = 63  # characters of a file's name that are kept; in UTF-8 they fit into any file system's 255 bytes

ONLY = "submit the notebook and the run folders, or the zip that loralab.pack makes"
Parts = tuple[str, ...]  # a path within a submission
Version = tuple[int, ...]  # a file on the disk as it was at some moment


@dataclass(frozen=True)
class File:
    """A file of a submission: its path, how many bytes it says it has, and how to read at most so many of them."""

    path: Parts
    size: int
    read: Callable[[int], bytes]

    def content(self) -> bytes:
        """Return all of it. Raises `BadSubmission` if its size is not the one that it claims."""
        content = self.read(self.size + 1)
        if len(content) != self.size:
            raise BadSubmission(
                f"{show_path(self.path)} has not the {self.size:,} bytes that it says it has: submit it again"
            )
        return content


def label(name: str) -> str:
    """Return a name as it is shown and stored; of a long one, the beginning and the end."""
    name, half = printable(name), MAX_LABEL // 2 - 1
    return name if len(name) <= MAX_LABEL else f"{name[:half]}...{name[-half:]}"


def show_path(path: Parts) -> str:
    return "/".join(map(label, path if len(path) <= MAX_DEPTH else (*path[:2], "...", *path[-2:])))


@contextmanager
def open_folder(path: Path, inside: Path | None = None) -> Iterator[int]:
    """Open the folder and close it again. It is not a link, nor is any folder between `inside` (its parent) and it.

    Raises `BadSubmission` if that is not so.
    """
    inside = path.parent if inside is None else inside
    opened, name = None, path.name
    try:
        opened = os.open(inside, os.O_RDONLY | os.O_DIRECTORY)
        for name in path.relative_to(inside).parts:
            inner = os.open(name, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW, dir_fd=opened)
            os.close(opened)
            opened = inner
    except OSError as error:
        linked = error.errno in {errno.ELOOP, errno.ENOTDIR} and _is_link(name, opened)
        if opened is not None:
            os.close(opened)
        what = "is a symlink" if linked else f"cannot be opened as a folder ({error.strerror})"
        raise BadSubmission(f"{label(name)} {what}: put a plain folder there") from None
    try:
        yield opened
    finally:
        os.close(opened)


def _is_link(name: str, folder: int | None) -> bool:
    try:
        return stat.S_ISLNK(os.stat(name, dir_fd=folder, follow_symlinks=False).st_mode)
    except OSError:
        return False


def walk(root: int) -> Iterator[File]:
    """Yield every file in the folder, except hidden ones and what macOS adds. Raises `BadSubmission` for anything but plain files."""
    waiting: list[Parts] = [()]
    seen = 0
    while waiting:
        folder = waiting.pop()
        with _open_in(root, folder, os.O_DIRECTORY) as opened, os.scandir(opened) as entries:
            for entry in entries:
                seen += 1
                if seen > MAX_ENTRIES:
                    raise BadSubmission(f"more than {MAX_ENTRIES:,} files and folders are in it: {ONLY}")
                path = (*folder, entry.name)
                if is_hidden(path):
                    continue
                status = refuse_unless_plain(path, entry.stat(follow_symlinks=False))
                if stat.S_ISREG(status.st_mode):
                    yield File(path, status.st_size, partial(read_in, root, path, seen=_version(status)))
                elif len(path) < MAX_DEPTH:
                    waiting.append(path)
                else:
                    raise BadSubmission(f"{show_path(path)}: folders are nested more than {MAX_DEPTH} deep: {ONLY}")


def is_hidden(path: Parts) -> bool:
    return any(name.startswith(".") or name == "__MACOSX" for name in path)


def refuse_unless_plain(path: Parts, status: os.stat_result) -> os.stat_result:
    if not (stat.S_ISREG(status.st_mode) or stat.S_ISDIR(status.st_mode)):
        kind = KINDS.get(stat.S_IFMT(status.st_mode), "a special file")
        raise BadSubmission(f"{show_path(path)} is {kind}: only plain files are taken in, put the file itself there")
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
    """Open what is at `path` below the folder `root`, without following a link or waiting for a pipe."""
    flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_NOCTTY
    opened = os.dup(root)
    try:
        for depth, name in enumerate(path, 1):
            inner = os.open(name, flags | (kind if depth == len(path) else os.O_DIRECTORY), dir_fd=opened)
            os.close(opened)
            opened = inner
        yield opened
    except OSError as error:
        raise BadSubmission(
            f"{show_path(path) or 'the folder'} cannot be read ({error.strerror}): submit it again"
        ) from None
    finally:
        os.close(opened)


def read_in(root: int, path: Parts, most: int, seen: Version | None = None) -> bytes:
    """Return at most so many bytes of the file; a hard link to another file is refused.

    So is one that is not, or is no longer, in the version that was `seen`.
    """
    with _open_in(root, path) as opened:
        status = refuse_unless_plain(path, os.fstat(opened))
        if status.st_nlink > 1:
            raise BadSubmission(f"{show_path(path)} is a hard link to another file: put a copy there")
        with open(opened, "rb", closefd=False) as file:
            content = file.read(most)
        if not _version(os.fstat(opened)) == _version(status) == (seen or _version(status)):
            raise BadSubmission(f"{show_path(path)} has changed while the submission was read: grade it again")
        return content


def _version(status: os.stat_result) -> Version:
    return status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns
