"""The archive of a submission (a zip, or a tar), read in memory, entry by entry and within bounds."""

from __future__ import annotations

import bz2
import io
import lzma
import os
import re
import stat
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from copy import copy
from functools import partial
from typing import Any

from loralab.errors import first_line

from ..errors import BadSubmission
from ..text import printable
from .files import KINDS, MAX_DEPTH, MAX_ENTRIES, MAX_TOTAL, ONLY, File, Parts, is_hidden, label, show_path

MAX_RATIO, ALWAYS_ALLOWED = 100, 5_000_000  # an archive unpacks to at most 100 times its size, or to 5 MB
MAX_DIRECTORY = 500_000  # bytes of a zip's table of contents; zipfile reads it whole, 46 bytes and a name an entry
MAX_DICTIONARY = 2**27  # bytes that an LZMA reader may need; the strongest setting of common programs needs 64 MiB
MAX_STREAMS = 10_000  # in a compressed tar; bgzip's hold the least, 64 KiB, and 5,000 of them make MAX_TOTAL
PIECE = 2**16  # bytes that are unpacked at a time
ENCRYPTED = 0x41  # the bits of an entry's flags that say so
UTF_8 = 0x800  # the bit that says in what its name is written
# What a name without that bit may be written in: programs of East Asia use their system's, in which the second byte of a
# letter can be a backslash.
CODECS = ("ascii", "utf-8", "cp932", "cp949", "gb18030", "cp437")
HALF_WIDTH = re.compile("[\uff61-\uff9f]")  # katakana that names do not have: what Korean bytes are in cp932
TARS = (".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tbz2", ".tar.xz", ".txz")
FORGED = re.compile(r"[A-Za-z]:|[/\\]")  # how an absolute path begins
Entry = tuple[zipfile.ZipInfo, str]  # an entry of a zip and its name, decoded


class _Bounded(io.BytesIO):
    """Bytes of which not more than `most` are read at a time."""

    most: int | None = MAX_DIRECTORY

    def read(self, size: int | None = -1) -> bytes:
        if self.most is not None and size is not None and size > self.most:
            raise BadSubmission(f"its table of contents has {size:,} bytes, those of many thousand files: {ONLY}")
        return super().read(size)


def is_archive(name: str) -> bool:
    """Tell whether a file of this name is one that `open_archive` reads."""
    return name.lower().endswith((".zip", *TARS))


@contextmanager
def open_archive(file: File) -> Iterator[list[File]]:
    """Open the archive and give its files. Raises `BadSubmission`, whatever is wrong with it or found in it meanwhile."""
    where = show_path(file.path)
    kind = "zip" if file.path[-1].lower().endswith(".zip") else "tar"
    if file.size > MAX_TOTAL:
        raise BadSubmission(f"{where} is too large, {file.size:,} bytes where {MAX_TOTAL:,} are allowed: {ONLY}")
    with report_archive_errors(where, kind):
        content = file.read(file.size)
        with _open_zip(content) if kind == "zip" else _open_tar(content) as files:
            yield files


@contextmanager
def report_archive_errors(where: str, kind: str = "zip") -> Iterator[None]:
    """Turn whatever reading an archive raises into `BadSubmission`, in one line that begins with `where`."""
    try:
        yield
    except BadSubmission as problem:
        raise BadSubmission(f"{where}: {problem}") from None
    except Exception as error:  # whatever a broken file does to its reader, it is the file's fault
        what = first_line(error)[:200]
        raise BadSubmission(
            f"{where}: cannot be read as a {kind} ({printable(what)}): pack and submit it again"
        ) from None


def _refuse_if_a_bomb(count: int, unpacked: int, packed: int) -> None:
    if count > MAX_ENTRIES:
        raise BadSubmission(f"{count:,} files are in it, more than the {MAX_ENTRIES:,} allowed: {ONLY}")
    if unpacked > _room(packed):
        raise BadSubmission(
            f"its {packed:,} bytes would unpack to {unpacked:,}; up to {MAX_RATIO} times as many are allowed, "
            f"and {MAX_TOTAL:,}: {ONLY}"
        )


def _room(packed: int) -> int:
    return min(MAX_TOTAL, max(ALWAYS_ALLOWED, MAX_RATIO * packed))


# Zips


@contextmanager
def _open_zip(content: bytes) -> Iterator[list[File]]:
    with open_contents(content) as archive:
        yield files_in_zip(archive, named_entries(archive), len(content))


@contextmanager
def open_contents(content: bytes) -> Iterator[zipfile.ZipFile]:
    """Open a zip in memory, if its table of contents is within bounds."""
    source = _Bounded(content)
    with zipfile.ZipFile(source) as archive:
        source.most = None
        yield archive


def named_entries(archive: zipfile.ZipFile) -> list[Entry]:
    """Return the entries and their names, with / between folders, in the one encoding that fits all of them."""
    names = [(info.orig_filename, bool(info.flag_bits & UTF_8)) for info in archive.infolist()]
    old = [name.encode("cp437") for name, is_utf_8 in names if not is_utf_8]
    codec = next(codec for codec in CODECS if all(_can_be(name, codec) for name in old))
    decoded = (name if is_utf_8 else name.encode("cp437").decode(codec) for name, is_utf_8 in names)
    slashed = (name.replace("\\", "/") for name in decoded)  # PowerShell writes backslashes
    return list(zip(archive.infolist(), slashed, strict=True))


def _can_be(name: bytes, codec: str) -> bool:
    try:
        decoded = name.decode(codec)
    except UnicodeDecodeError:
        return False
    return codec != "cp932" or not HALF_WIDTH.search(decoded)


def files_in_zip(archive: zipfile.ZipFile, entries: list[Entry], packed: int) -> list[File]:
    """Return the files among these entries, which take `packed` bytes in the zip. Raises `BadSubmission`."""
    _refuse_if_a_bomb(len(entries), sum(info.file_size for info, _ in entries), packed)
    return list(_files(archive, entries))


def _files(archive: zipfile.ZipFile, entries: list[Entry]) -> Iterator[File]:
    """Yield the files of a zip, except hidden ones."""
    seen: set[Parts] = set()
    for info, name in entries:
        path = _path(name)
        kind = stat.S_IFMT(info.external_attr >> 16)
        _refuse_unless_file_or_folder(path, kind)
        if info.flag_bits & ENCRYPTED:
            raise BadSubmission(f"{show_path(path)} is encrypted: zip it without a password")
        if name.endswith("/") or is_hidden(path):
            continue
        if info.compress_type not in METHODS:
            raise BadSubmission(
                f"{show_path(path)} is compressed by a method that is not read here: make an ordinary zip"
            )
        _refuse_if_twice(path, seen)
        yield File(path, info.file_size, partial(METHODS[info.compress_type], archive, info))


def _unpack(archive: zipfile.ZipFile, info: zipfile.ZipInfo, most: int) -> bytes:
    """Return at most so many bytes, even if the entry declares fewer: `zipfile` itself would cut it off there."""
    honest = copy(info)
    honest.file_size = most
    with archive.open(honest) as file:
        return file.read(most)


def _unpack_bounded(
    reader: Callable[[bytes], tuple[bz2.BZ2Decompressor | lzma.LZMADecompressor, bytes]],
    archive: zipfile.ZipFile,
    info: zipfile.ZipInfo,
    most: int,
) -> bytes:
    """Do the same for methods that `zipfile` would unpack at once, however much that is."""
    raw = copy(info)
    raw.compress_type, raw.file_size = zipfile.ZIP_STORED, info.compress_size
    del raw.CRC  # it is of what comes out
    with archive.open(raw) as file:
        decompressor, packed = reader(file.read())
    content = decompressor.decompress(packed, max_length=most)
    if len(content) == info.file_size and zlib.crc32(content) != info.CRC:
        raise BadSubmission(f"{label(info.filename)} is damaged (Bad CRC-32): pack again")
    return content


def _lzma(packed: bytes) -> tuple[lzma.LZMADecompressor, bytes]:
    """Return a decompressor and the data in the form of a .lzma file.

    A zip has two bytes of version and two of length before LZMA's properties; a .lzma file has eight of size after them.
    """
    properties, rest = packed[4:9], packed[9:]
    return lzma.LZMADecompressor(lzma.FORMAT_ALONE, memlimit=MAX_DICTIONARY), properties + b"\xff" * 8 + rest


METHODS: dict[int, Callable[[zipfile.ZipFile, zipfile.ZipInfo, int], bytes]] = {
    zipfile.ZIP_STORED: _unpack,
    zipfile.ZIP_DEFLATED: _unpack,
    zipfile.ZIP_BZIP2: partial(_unpack_bounded, lambda packed: (bz2.BZ2Decompressor(), packed)),
    zipfile.ZIP_LZMA: partial(_unpack_bounded, _lzma),
}


# Tars


@contextmanager
def _open_tar(content: bytes) -> Iterator[list[File]]:
    unpacked = _decompressed(content, _room(len(content)) + 1)
    _refuse_if_a_bomb(0, unpacked.seek(0, io.SEEK_END), len(content))
    unpacked.seek(0)
    with tarfile.open(fileobj=unpacked, mode="r:") as archive:
        yield list(_members(archive, len(content)))


# Parallel programs (pbzip2, bgzip) write a stream per block, and joined files have one per file.
STREAMS: dict[bytes, Callable[[], Any]] = {
    b"\x1f\x8b": partial(zlib.decompressobj, wbits=31),
    b"BZh": bz2.BZ2Decompressor,
    b"\xfd7zXZ\0": partial(lzma.LZMADecompressor, lzma.FORMAT_XZ, memlimit=MAX_DICTIONARY),
}


def _decompressed(content: bytes, most: int) -> io.BytesIO:
    """Return at most so many bytes of a .gz, .bz2 or .xz, from all its streams; anything else as it is."""
    start = next((start for start in STREAMS if content.startswith(start)), None)
    if start is None:
        return io.BytesIO(content)
    unpacked, place = io.BytesIO(), 0
    for _ in range(MAX_STREAMS):
        stream = STREAMS[start]()
        while not stream.eof and place < len(content) and unpacked.tell() < most:
            piece = content[place : place + PIECE]
            unpacked.write(stream.decompress(piece, most - unpacked.tell()))
            place += len(piece) - len(stream.unused_data)
        if unpacked.tell() == most or not content.startswith(start, place):
            return unpacked
    raise BadSubmission(f"it has more than {MAX_STREAMS:,} compressed streams: pack it again")


def _members(archive: tarfile.TarFile, packed: int) -> Iterator[File]:
    """Yield the files of a tar, except hidden ones."""
    seen: set[Parts] = set()
    unpacked = 0
    for count, member in enumerate(archive, 1):
        if member.size < 0:
            raise BadSubmission("it is damaged (an entry of less than nothing): pack again")
        unpacked += member.size
        _refuse_if_a_bomb(count, unpacked, packed)
        if member.isdir() and member.name in {"", "."}:
            continue
        path = _path(member.name)
        _refuse_unless_file_or_folder(path, TAR_KINDS.get(member.type, -1))
        if member.isdir() or is_hidden(path):
            continue
        _refuse_if_twice(path, seen)
        yield File(path, member.size, partial(_extract, archive, member))


def _extract(archive: tarfile.TarFile, member: tarfile.TarInfo, most: int) -> bytes:
    file = archive.extractfile(member)
    assert file is not None, "only regular files are extracted"
    with file:
        return file.read(most)


TAR_KINDS = {
    tarfile.REGTYPE: stat.S_IFREG,
    tarfile.AREGTYPE: stat.S_IFREG,
    tarfile.DIRTYPE: stat.S_IFDIR,
    tarfile.SYMTYPE: stat.S_IFLNK,
    tarfile.LNKTYPE: stat.S_IFLNK,
    tarfile.FIFOTYPE: stat.S_IFIFO,
    tarfile.CHRTYPE: stat.S_IFCHR,
    tarfile.BLKTYPE: stat.S_IFBLK,
}


# What is refused in both


def _refuse_unless_file_or_folder(path: Parts, kind: int) -> None:
    if kind not in {0, stat.S_IFREG, stat.S_IFDIR}:
        raise BadSubmission(f"{show_path(path)} is {KINDS.get(kind, 'a special file')}: pack the file itself")


def _refuse_if_twice(path: Parts, seen: set[Parts]) -> None:
    if path in seen:
        raise BadSubmission(f"{show_path(path)} is in it twice: pack again")
    seen.add(path)


def _path(name: str) -> Parts:
    """Return the path of an entry. Raises `BadSubmission` if it leads elsewhere."""
    if FORGED.match(name):
        raise BadSubmission(
            f"{label(name)} is an absolute path: pack the folder's contents, with paths that begin in it"
        )
    if "\0" in name:
        raise BadSubmission(f"{label(name)} is not a path that every system reads alike: make an ordinary zip")
    path = tuple(part for part in name.split("/") if part not in {"", "."})
    if ".." in path:
        raise BadSubmission(
            f"{label(name)} leads outside by '..': pack the folder's contents, with paths that begin in it"
        )
    if len(path) > MAX_DEPTH:
        raise BadSubmission(f"{show_path(path)} is more than {MAX_DEPTH} folders deep: {ONLY}")
    if not path or any(len(os.fsencode(part)) > 255 for part in path):
        raise BadSubmission(f"{label(name)!r} is not a name that a file can have: pack again")
    return path
