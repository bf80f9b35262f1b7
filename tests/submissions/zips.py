"""Zip files that `zipfile` would not write."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

BLOCK = 16_777_216  # bytes of filling that are compressed once and then repeated


@dataclass(frozen=True)
class Entry:
    """One entry, byte for byte. `at` is the number of an earlier entry whose bytes it shares; `flags` as in the format."""

    name: bytes
    packed: bytes
    crc: int
    size: int
    method: int = zlib.DEFLATED
    flags: int = 0x800
    mode: int = 0o100644
    at: int | None = None


def stored(name: str | bytes, content: bytes, **more: int) -> Entry:
    """An entry with this content, not compressed."""
    name = name if isinstance(name, bytes) else name.encode()
    return Entry(name, content, zlib.crc32(content), len(content), method=0, **more)


def filled(name: str, byte: bytes, blocks: int, claimed: int | None = None) -> Entry:
    """An entry of `blocks` times 16 MiB of one byte, in a thousandth of the space; it may claim another size."""
    packer = zlib.compressobj(9, wbits=-15)
    block = packer.compress(byte * BLOCK) + packer.flush(zlib.Z_FULL_FLUSH)
    end = zlib.compressobj(9, wbits=-15).flush()
    checksum = 0
    for _ in range(blocks if claimed is None else 0):
        checksum = zlib.crc32(byte * BLOCK, checksum)
    if claimed is not None:
        checksum = zlib.crc32(byte * claimed)
    return Entry(name.encode(), block * blocks + end, checksum, BLOCK * blocks if claimed is None else claimed)


def write_zip(path: Path, entries: Sequence[Entry]) -> None:
    """Write the entries and a directory of them; up to 65,535 of them and 4 GiB."""
    places: list[int] = []
    with path.open("wb") as file:
        for entry in entries:
            if entry.at is not None:
                places.append(places[entry.at])
                continue
            places.append(file.tell())
            file.write(struct.pack("<4s5H3L2H", b"PK\3\4", 20, *_common(entry), len(entry.name), 0))
            file.write(entry.name + entry.packed)
        start = file.tell()
        for entry, place in zip(entries, places, strict=True):
            head = struct.pack("<4s6H3L5H2L", b"PK\1\2", 0x31E, 20, *_common(entry), len(entry.name), *[0] * 4,
                               entry.mode << 16, place)  # fmt: skip
            file.write(head + entry.name)
        count = len(entries)
        file.write(struct.pack("<4s4H2LH", b"PK\5\6", 0, 0, count, count, file.tell() - start, start, 0))


def _common(entry: Entry) -> tuple[int, ...]:
    midnight = 0x21  # 1 January 1980, the first day that the format knows
    return entry.flags, entry.method, 0, midnight, entry.crc, len(entry.packed), entry.size
