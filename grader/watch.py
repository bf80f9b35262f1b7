"""What a sandboxed command may use, and the watch over what its processes, all together, do use."""

from __future__ import annotations

import os
import stat
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

import psutil

MIB = 2**20
GIB = 2**30
MOST_UNKNOWN = 16  # a notebook of the course has none; a GPU's driver may have a few
SOCKET = 208 * 2**10  # the kernel's usual limit of what waits in a socket; a notebook has some dozens of sockets

Inode = tuple[int, int]  # a file without a name, by its device and its number there


@dataclass(frozen=True)
class Limits:
    """The most that one notebook may use; times in seconds, sizes in bytes, all its processes taken together.

    The defaults suit a laptop with two cores: an exercise takes some minutes and about 1 GiB on the embedded base.
    """

    wall: float = 900
    cpu: float = 1800
    memory: int = 4 * GIB  # what lies in its private /tmp and /dev/shm included
    processes: int = 64
    file: int = 1 * GIB  # the largest single file
    folder: int = 2 * GIB  # its run folder
    files: int = 5_000  # in its run folder, and as many in its private /tmp
    depth: int = 50  # of folders in its run folder
    scratch: int = 512 * MIB  # its private /tmp, and as much in /dev/shm
    output: int = 16 * MIB  # what its cells print and show, and what its processes write to the standard streams


class _Unseen(Exception):
    """A folder into which the watch cannot look."""


@dataclass
class Watch:
    """Looks at the processes below `init` (a process id) and at `folder`, and says which limit is passed.

    The kernel limits a process, not a tree of them, so what they use together has to be added up from outside.
    """

    limits: Limits
    folder: Path
    init: int
    started: float = field(default_factory=time.monotonic)
    cpu: float = 0.0
    memory: int = 0  # the most seen

    @property
    def seconds(self) -> float:
        """Wall time since the start."""
        return time.monotonic() - self.started

    def breach(self) -> str:
        """The limit that is passed, as a sentence's end ("ran longer than 900 s"); empty if none is."""
        limits = self.limits
        if self.seconds > limits.wall:
            return f"ran longer than {limits.wall:.0f} s"
        try:
            init = psutil.Process(self.init)
            tree = [init, *init.children(recursive=True)]
        except psutil.NoSuchProcess:
            return ""
        if len(tree) > limits.processes:
            return f"started more than {limits.processes} processes"
        self.cpu = max(self.cpu, sum(map(_cpu, tree)))
        if self.cpu > limits.cpu:
            return f"used more than {limits.cpu:.0f} s of processor time"
        scratch, scratch_files, devices = _scratch(tree)
        unlinked, unknown = _unlinked(tree, devices)  # torch's workers share what lies unlinked in /dev/shm
        if unknown > MOST_UNKNOWN:
            return f"holds more than {MOST_UNKNOWN} pieces of memory without a name, whose size cannot be seen"
        device = self.folder.stat().st_dev
        hidden = scratch + sum(held for (where, _), held in unlinked.items() if where != device)
        used = hidden + sum(map(_resident, tree))
        if used > limits.memory:  # pages that processes share were counted for each; now exactly, which takes longer
            used = hidden + sum(map(_proportional, tree))
        self.memory = max(self.memory, used)
        if used > limits.memory:
            return f"used more than {size(limits.memory)} of memory"
        if scratch_files > limits.files:
            return f"made more than {limits.files} files"
        return self.left(sum(held for (where, _), held in unlinked.items() if where == device))

    def left(self, unlinked: int = 0) -> str:
        """The limit that is passed by what lies in the folder, with `unlinked` bytes on the same disk."""
        try:
            count, written, depth = _contents(self.folder, self.limits)
        except _Unseen as unseen:
            return f"left a folder that cannot be looked into ({unseen})"
        if count > self.limits.files:
            return f"made more than {self.limits.files} files"
        if depth > self.limits.depth:
            return f"made folders more than {self.limits.depth} deep"
        if written + unlinked > self.limits.folder:
            return f"wrote more than {size(self.limits.folder)} into its folder"
        return ""


def size(count: int) -> str:
    """A number of bytes as a person writes it, e.g. "4 GiB"."""
    return f"{count / GIB:.4g} GiB" if count >= GIB else f"{count / MIB:.4g} MiB"


def _cpu(process: psutil.Process) -> float:
    try:
        return sum(process.cpu_times()[:4])  # its own and that of its children that have ended
    except psutil.Error:
        return 0.0


def _resident(process: psutil.Process) -> int:
    try:
        return process.memory_info().rss
    except psutil.Error:
        return 0


def _proportional(process: psutil.Process) -> int:
    try:
        return process.memory_full_info().pss
    except psutil.AccessDenied:  # the sandbox's own first process; it is small
        return _resident(process)
    except psutil.Error:
        return 0


def _unlinked(tree: list[psutil.Process], counted: set[int]) -> tuple[dict[Inode, int], int]:
    """Files without a name and the bytes that they take, but those on devices that are `counted`; how many may take more.

    They lie on the disk, or in memory, and in no folder: whoever holds them open, or has a part of them mapped, keeps
    the whole.
    """
    held: dict[Inode, int] = {}
    mapped: dict[Inode, int] = {}
    for process in tree:
        held.update(_opened(process.pid))
        for where, place, end in _mapped(process.pid):
            try:
                state = place.stat()
                held[state.st_dev, state.st_ino] = state.st_blocks * 512
            except FileNotFoundError:
                continue  # it was mapped a moment ago
            except OSError:  # only root may look; others see where a mapping ends, and the file may be longer
                mapped[where] = max(mapped.get(where, 0), end)
    found = {where: taken for where, taken in (mapped | held).items() if where[0] not in counted}
    return found, len(found.keys() - held.keys())


def _opened(pid: int) -> Iterator[tuple[Inode, int]]:
    """The files without a name that a process has open, and their bytes; how full a socket is cannot be seen."""
    with suppress(OSError):
        for entry in os.scandir(f"/proc/{pid}/fd"):
            with suppress(OSError):
                state = entry.stat()
                if stat.S_ISSOCK(state.st_mode):
                    yield (state.st_dev, state.st_ino), SOCKET
                elif stat.S_ISREG(state.st_mode) and state.st_nlink == 0:
                    yield (state.st_dev, state.st_ino), state.st_blocks * 512


def _mapped(pid: int) -> Iterator[tuple[Inode, Path, int]]:
    """The mappings of files without a name: which file, where root can look at it, and its last byte mapped.

    Memory that processes share without a file, and that of memfd_create, is of this kind, too.
    """
    process = Path(f"/proc/{pid}")
    with suppress(OSError), (process / "maps").open("rb") as lines:
        for line in lines:
            if not line.endswith(b"(deleted)\n"):
                continue
            addresses, _, offset, device, inode, _ = line.decode(errors="replace").split(maxsplit=5)
            first, last = (int(address, 16) for address in addresses.split("-"))
            major, minor = (int(number, 16) for number in device.split(":"))
            end = int(offset, 16) + last - first
            yield (os.makedev(major, minor), int(inode)), process / "map_files" / f"{first:x}-{last:x}", end


def _scratch(tree: list[psutil.Process]) -> tuple[int, int, set[int]]:
    """Bytes, number of files and devices of the sandbox's private /tmp and /dev/shm, seen through one of its processes."""
    for process in reversed(tree):
        folders = [Path(f"/proc/{process.pid}/root/{name}") for name in ("tmp", "dev/shm")]
        try:
            places, devices = [os.statvfs(folder) for folder in folders], {folder.stat().st_dev for folder in folders}
        except OSError:
            continue
        used = sum((place.f_blocks - place.f_bfree) * place.f_frsize for place in places)
        return used, sum(place.f_files - place.f_ffree for place in places), devices
    return 0, 0, set()


def _contents(folder: Path, limits: Limits) -> tuple[int, int, int]:
    """Number, bytes on disk and depth of what lies below `folder`, looked at no further than the limits."""
    seen: dict[tuple[int, int], int] = {}
    waiting, deepest = [(str(folder), 0)], 0
    while waiting and len(seen) <= limits.files and deepest <= limits.depth:
        place, depth = waiting.pop()
        deepest = max(deepest, depth)
        try:
            with os.scandir(place) as entries:
                for entry in entries:
                    state = entry.stat(follow_symlinks=False)
                    seen[state.st_dev, state.st_ino] = state.st_blocks * 512
                    if entry.is_dir(follow_symlinks=False):
                        waiting.append((entry.path, depth + 1))
                    if len(seen) > limits.files:
                        break
        except (FileNotFoundError, NotADirectoryError):
            continue  # it was there a moment ago
        except OSError as error:
            raise _Unseen(error.strerror) from None
    return len(seen), sum(seen.values()), deepest
