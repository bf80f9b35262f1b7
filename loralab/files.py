"""Writing files so that nobody ever reads half of one."""

from __future__ import annotations

import errno
from pathlib import Path


def write_whole(path: str | Path, content: str | bytes) -> Path:
    """Write `content`, a text as UTF-8, to `path`, and make its folder; the file appears whole or not at all.

    Raises `OSError`, and leaves nothing beside it, if `path` is a folder or cannot be written.
    """
    path = Path(path)
    if path.is_dir():  # else only the last step would find out
        raise IsADirectoryError(errno.EISDIR, "is a folder", str(path))
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_name(path.name + ".part")
    try:
        unfinished.write_bytes(content.encode() if isinstance(content, str) else content)
        unfinished.replace(path)
    finally:
        unfinished.unlink(missing_ok=True)
    return path
