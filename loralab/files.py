"""Write files atomically, and read JSON of known fields."""

from __future__ import annotations

import errno
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar

from pydantic import BaseModel, ValidationError

from .errors import LoralabError, first_problem

Model = TypeVar("Model", bound=BaseModel)


def read_json(path: Path, model: type[Model]) -> Model:
    """Return a JSON file as `model`. Raises `LoralabError`, in one line, that names the file and the field."""
    try:
        return model.model_validate_json(path.read_text("utf-8"))
    except UnicodeDecodeError:
        raise LoralabError(f"{path}: not UTF-8 text") from None
    except ValidationError as error:
        raise LoralabError(f"{path}: {first_problem(error)}") from None


def make_folder(out: Path) -> None:
    """Make the folder for results. Raises `LoralabError`, in one line, if that is impossible."""
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise LoralabError(f"{out} cannot be a folder ({error.strerror}): give another --out") from None


def write_whole(path: str | Path, content: str | bytes) -> Path:
    """Write `content`, a text as UTF-8, to `path`, and make its folder; the file appears whole or not at all.

    Raises `OSError`, and leaves nothing beside it, if `path` is a folder or cannot be written.
    """
    with whole_file(path) as unfinished:
        unfinished.write_bytes(content.encode() if isinstance(content, str) else content)
    return Path(path)


@contextmanager
def whole_file(path: str | Path) -> Iterator[Path]:
    """Yield a temporary path beside `path`; its file takes the place of `path` if the block ends without an error.

    For content that is too large for `write_whole`. Raises `OSError` as it does.
    """
    path = Path(path)
    if path.is_dir():  # else only the last step would find out
        raise IsADirectoryError(errno.EISDIR, "is a folder", str(path))
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_name(path.name + ".part")
    try:
        yield unfinished
        unfinished.replace(path)
    finally:
        unfinished.unlink(missing_ok=True)


@contextmanager
def whole_folder(path: str | Path) -> Iterator[Path]:
    """Yield an empty temporary folder beside `path`; it takes the place of `path` if the block ends without an error.

    A folder that was there is removed only when the new one is complete.
    """
    path = Path(path)
    unfinished, old = path.with_name(path.name + ".part"), path.with_name(path.name + ".old")
    _settle(path, old)
    shutil.rmtree(unfinished, ignore_errors=True)
    unfinished.mkdir(parents=True)
    try:
        yield unfinished
        if path.exists():
            path.rename(old)
        unfinished.rename(path)
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)
        _settle(path, old)


def _settle(path: Path, old: Path) -> None:
    """Remove the folder `old` if `path` has replaced it; put it back if not."""
    if path.exists():
        shutil.rmtree(old, ignore_errors=True)
    elif old.exists():
        old.rename(path)
