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
    """Make a folder for the jobs of one command, and remove it at the end, with what killed jobs left.

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
    """Make a folder in `root`, or in the system's temporary folder, and remove it at the end, however deep it is nested."""
    folder = Path(tempfile.mkdtemp(prefix="grading-", dir=root))
    try:
        yield folder
    finally:
        empty(folder)
        folder.rmdir()


def _abandoned() -> Iterator[Path]:
    """Return the folders of this user's commands that have ended."""
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
    """Remove the folder, the lock last: what cannot be removed now, the next command removes."""
    with suppress(subprocess.CalledProcessError, OSError):
        for left in root.iterdir():
            if left.name != LOCK:
                empty(left)
                left.rmdir()
        (root / LOCK).unlink()
        root.rmdir()
