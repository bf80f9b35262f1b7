"""The zip of a submission, read in memory, entry by entry and within bounds."""

from __future__ import annotations

import io
import os
import re
import stat
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from copy import copy
from functools import partial

from loralab.errors import first_line

from ..errors import BadSubmission
from ..text import printable
from .files import KINDS, MAX_DEPTH, MAX_ENTRIES, MAX_TOTAL, ONLY, File, Parts, is_hidden, label, show_path

MAX_RATIO, ALWAYS_ALLOWED = 100, 5_000_000  # a zip unpacks to at most 100 times its size, or to 5 MB
MAX_DIRECTORY = 500_000  # bytes of a zip's table of contents; zipfile reads it whole, 46 bytes and a name an entry
ENCRYPTED = 0x41  # the bits of an entry's flags that say so


class _Bounded(io.BytesIO):
    """Bytes of which not more than `most` are read at a time."""

    most: int | None = MAX_DIRECTORY

    def read(self, size: int | None = -1) -> bytes:
        if self.most is not None and size is not None and size > self.most:
            raise BadSubmission(f"its table of contents has {size:,} bytes, those of many thousand files: {ONLY}")
        return super().read(size)


@contextmanager
def open_zip(file: File) -> Iterator[list[File]]:
    """Open the zip and give its files. Raises `BadSubmission`, whatever is wrong with it or found in it meanwhile."""
    where = show_path(file.path)
    if file.size > MAX_TOTAL:
        raise BadSubmission(f"{where} is too large, {file.size:,} bytes where {MAX_TOTAL:,} are allowed: {ONLY}")
    content = file.read(file.size)
    with open_archive(content, where) as archive:
        yield files_in_zip(archive, archive.infolist(), len(content))


@contextmanager
def open_archive(content: bytes, where: str) -> Iterator[zipfile.ZipFile]:
    """Open a zip in memory, if its table of contents is within bounds. Raises `BadSubmission`, as `open_zip`."""
    with report_zip_errors(where):
        source = _Bounded(content)
        with zipfile.ZipFile(source) as archive:
            source.most = None
            yield archive


@contextmanager
def report_zip_errors(where: str) -> Iterator[None]:
    """Turn whatever reading a zip raises into `BadSubmission`, in one line that begins with `where`."""
    try:
        yield
    except BadSubmission as problem:
        raise BadSubmission(f"{where}: {problem}") from None
    except Exception as error:  # whatever a broken file does to its reader, it is the file's fault
        what = first_line(error)[:200]
        raise BadSubmission(
            f"{where}: cannot be read as a zip ({printable(what)}): pack and hand it in again"
        ) from None


def files_in_zip(archive: zipfile.ZipFile, entries: list[zipfile.ZipInfo], packed: int) -> list[File]:
    """Return the files among these entries, which take `packed` bytes in the zip. Raises `BadSubmission`."""
    _refuse_if_a_bomb(entries, packed)
    return list(_entries(archive, entries))


def _refuse_if_a_bomb(entries: list[zipfile.ZipInfo], packed: int) -> None:
    if len(entries) > MAX_ENTRIES:
        raise BadSubmission(f"{len(entries):,} files are in it, more than the {MAX_ENTRIES:,} allowed: {ONLY}")
    unpacked = sum(info.file_size for info in entries)
    if unpacked > min(MAX_TOTAL, max(ALWAYS_ALLOWED, MAX_RATIO * packed)):
        raise BadSubmission(
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
            raise BadSubmission(f"{show_path(path)} is {KINDS.get(kind, 'a special file')}: zip the file itself")
        if info.flag_bits & ENCRYPTED:
            raise BadSubmission(f"{show_path(path)} is encrypted: zip it without a password")
        if info.is_dir() or is_hidden(path):
            continue
        if info.compress_type not in {zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED}:
            raise BadSubmission(
                f"{show_path(path)} is compressed by a method that is not read here: make an ordinary zip"
            )
        if path in seen:
            raise BadSubmission(f"{show_path(path)} is in it twice: pack again")
        seen.add(path)
        yield File(path, info.file_size, partial(_unpack, archive, info))


def _path(info: zipfile.ZipInfo) -> Parts:
    name = info.orig_filename
    if name.startswith("/") or re.match("[A-Za-z]:", name):
        raise BadSubmission(
            f"{label(name)} is an absolute path: zip the folder's contents, with paths that begin in it"
        )
    if "\\" in name or "\0" in name or info.filename != name:
        raise BadSubmission(
            f"{label(name)} is not a path that every system reads alike: make an ordinary zip, with / in paths"
        )
    path = tuple(part for part in name.split("/") if part not in {"", "."})
    if ".." in path:
        raise BadSubmission(
            f"{label(name)} leads outside by '..': zip the folder's contents, with paths that begin in it"
        )
    if len(path) > MAX_DEPTH:
        raise BadSubmission(f"{show_path(path)} lies more than {MAX_DEPTH} folders deep: {ONLY}")
    if not path or any(len(os.fsencode(part)) > 255 for part in path):
        raise BadSubmission(f"{label(name)!r} is not a name that a file can have: pack again")
    return path


def _unpack(archive: zipfile.ZipFile, info: zipfile.ZipInfo, most: int) -> bytes:
    """At most so many bytes, also where the entry says that it has fewer: `zipfile` itself would cut it off there."""
    honest = copy(info)
    honest.file_size = most
    with archive.open(honest) as file:
        return file.read(most)
