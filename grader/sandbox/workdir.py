"""Folders for what notebooks leave behind: a job's is gone when it ends, those of a command that was killed with the next."""

from __future__ import annotations

import fcntl
import os
import stat
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from .execute import empty

PREFIX, LOCK = "lora-grading-", "in-use"


@contextmanager
def root_of_a_command() -> Iterator[Path]:
    """A folder in which the jobs of one command have theirs; removed at its end, whatever jobs that were killed left.

    While the command lives it holds a lock in it, which the system gives free with the process. By that the next
    command knows which folders nobody will remove any more.
    """
    for abandoned in _abandoned():
        _remove(abandoned)
    root = Path(tempfile.mkdtemp(prefix=PREFIX))
    lock = os.open(root / "new", os.O_RDWR | os.O_CREAT, 0o600)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX)
        (root / "new").rename(root / LOCK)  # under this name it was never free
        yield root
    finally:
        _remove(root)
        os.close(lock)


@contextmanager
def folder_of_a_job(root: Path | None) -> Iterator[Path]:
    """A folder in `root`, or in the system's place for such folders; removed at the end, however deep it is nested."""
    folder = Path(tempfile.mkdtemp(prefix="grading-", dir=root))
    try:
        yield folder
    finally:
        empty(folder)
        folder.rmdir()


def _abandoned() -> Iterator[Path]:
    """The folders of commands of this user that have ended."""
    for root in Path(tempfile.gettempdir()).glob(f"{PREFIX}*"):
        with suppress(OSError):  # another command may have removed it; one that has no lock yet is just being made
            state = root.lstat()
            if not stat.S_ISDIR(state.st_mode) or state.st_uid != os.geteuid():
                continue
            lock = os.open(root / LOCK, os.O_RDWR | os.O_NOFOLLOW)
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                yield root
            finally:
                os.close(lock)


def _remove(root: Path) -> None:
    """The lock last: what a process that is not quite gone keeps from being removed, the next command removes."""
    with suppress(subprocess.CalledProcessError, OSError):
        for left in root.iterdir():
            if left.name != LOCK:
                empty(left)
                left.rmdir()
        (root / LOCK).unlink()
        root.rmdir()
