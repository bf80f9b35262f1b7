"""What a sandboxed command may use, and the watch over what its processes, all together, do use."""

from __future__ import annotations

import os
import stat
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path

import psutil

MIB = 2**20
GIB = 2**30
MEMORY = ("/dev/zero", "/memfd:", "/anon_hugepage", "/SYSV")  # what the kernel calls memory that processes share
# Pieces whose size only root can see. Of such memory, which can be of any size, neither the course's notebooks nor torch's
# workers hold one; a GPU's driver holds some in every process. A file is no larger than the limit of one file.
UNKNOWN_MEMORY = 256 if any(Path("/dev").glob("nvidia[0-9]*")) else 0
UNKNOWN_FILES = 16
LOOKS = 10  # torch's workers hand descriptors over in a moment, and not at that many looks in a row
# What a process takes beside its pages; memory that is only read needs none, but tables by which the kernel finds it.
BESIDE = ("VmPTE", "VmSwap", "HugetlbPages")
# Of all processes together; each takes some 250 bytes of the kernel's memory. A notebook has some thousands.
MAPPINGS = 200_000
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
    on_their_way: int = 0  # at how many looks in a row open files waited in sockets

    @property
    def seconds(self) -> float:
        """Wall time since the start."""
        return time.monotonic() - self.started

    def breach(self) -> str:
        """Return the exceeded limit as the end of a sentence ("ran longer than 900 s"); "" if there is none."""
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
        living = [_living(process.pid) for process in tree]
        if _mappings(living) > MAPPINGS:
            return f"divided its memory into more than {MAPPINGS:,} pieces"
        scratch, scratch_files, devices = _scratch(living)
        unlinked, unknown = _unlinked(living, devices)  # torch's workers share what lies unlinked in /dev/shm
        self.on_their_way = self.on_their_way + 1 if any(map(_sends, living)) else 0
        if hiding := self._hiding(unknown):
            return hiding
        device = self.folder.stat().st_dev
        hidden = scratch + sum(held for (where, _), held in unlinked.items() if where != device)
        used = hidden + sum(map(_resident, living))
        if used > limits.memory:  # pages that processes share were counted for each; now exactly, which takes longer
            used = hidden + sum(map(_proportional, living))
        self.memory = max(self.memory, used)
        if used > limits.memory:
            return f"used more than {size(limits.memory)} of memory"
        if scratch_files > limits.files:
            return f"made more than {limits.files} files"
        return self.left(sum(held for (where, _), held in unlinked.items() if where == device))

    def _hiding(self, unknown: list[str]) -> str:
        """Say how it hides its use of memory; `unknown` are the former names of files of unknown size."""
        memory = sum(name.startswith(MEMORY) for name in unknown)
        if memory > UNKNOWN_MEMORY:
            return "shares memory between processes without a file, so that its size cannot be seen"
        if len(unknown) - memory > UNKNOWN_FILES:
            return f"holds more than {UNKNOWN_FILES} deleted files whose size cannot be seen"
        if self.on_their_way >= LOOKS:
            return "leaves open files waiting in a socket, where they cannot be seen"
        return ""

    def left(self, unlinked: int = 0) -> str:
        """Return the limit that the contents of the folder exceed, with `unlinked` bytes on the same disk."""
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
    """Format a number of bytes for people, e.g. "4 GiB"."""
    return f"{count / GIB:.4g} GiB" if count >= GIB else f"{count / MIB:.4g} MiB"


def _cpu(process: psutil.Process) -> float:
    try:
        return sum(process.cpu_times()[:4])  # its own and that of its children that have ended
    except psutil.Error:
        return 0.0


def _living(pid: int) -> int:
    """Return the thread to inspect: a process whose first thread has ended keeps running, and seems to use nothing."""
    with suppress(OSError):
        for thread in (pid, *(int(path.name) for path in Path(f"/proc/{pid}/task").iterdir())):
            if _sum_fields(thread, "status", "VmRSS"):
                return thread
    return pid


def _resident(pid: int) -> int:
    return _sum_fields(pid, "status", "VmRSS", *BESIDE)


def _proportional(pid: int) -> int:
    shared = _sum_fields(pid, "smaps_rollup", "Pss")  # bubblewrap's own processes, which are small, do not tell
    return shared + _sum_fields(pid, "status", *BESIDE) if shared else _resident(pid)


def _sum_fields(pid: int, file: str, *fields: str) -> int:
    """Return the sum of these fields of a file that the kernel keeps on a process, in bytes; 0 where there are none."""
    try:
        lines = Path(f"/proc/{pid}/{file}").read_text(errors="replace").splitlines()
    except OSError:
        return 0
    return sum(1024 * int(line.split()[1]) for line in lines if line.partition(":")[0] in fields)


def _unlinked(processes: list[int], counted: set[int]) -> tuple[dict[Inode, int], list[str]]:
    """Return the size of each unnamed file, except on devices that are `counted`, and the names of those of unknown size.

    They are on the disk, or in memory, and in no folder: a process that has one open, or a part of it mapped, keeps
    the whole.
    """
    held: dict[Inode, int] = {}
    mapped: dict[Inode, int] = {}
    names: dict[Inode, str] = {}
    for process in processes:
        held.update(_opened(process))
        for where, name, place, end in _mapped(process):
            try:
                state = place.stat()
                held[state.st_dev, state.st_ino] = state.st_blocks * 512
            except FileNotFoundError:
                continue  # it was mapped a moment ago
            except OSError:  # only root may look; others see where a mapping ends, and the file may be longer
                mapped[where], names[where] = max(mapped.get(where, 0), end), name
    found = {where: taken for where, taken in (mapped | held).items() if where[0] not in counted}
    return found, [names[where] for where in found.keys() - held.keys()]


def _descriptors(pid: int) -> Iterator[tuple[str, os.stat_result]]:
    """Yield each file that a process has open: its number there, and its state."""
    with suppress(OSError):
        for entry in os.scandir(f"/proc/{pid}/fd"):
            with suppress(OSError):
                yield entry.name, entry.stat()


def _opened(pid: int) -> Iterator[tuple[Inode, int]]:
    """Yield the unnamed files that a process has open, and their bytes; how full a socket is cannot be seen."""
    for _, state in _descriptors(pid):
        if stat.S_ISSOCK(state.st_mode):
            yield (state.st_dev, state.st_ino), SOCKET
        elif stat.S_ISREG(state.st_mode) and state.st_nlink == 0:
            yield (state.st_dev, state.st_ino), state.st_blocks * 512


def _mappings(processes: list[int]) -> int:
    """Count the mappings of the processes, up to one more than allowed."""
    count = 0
    for process in processes:
        with suppress(OSError), Path(f"/proc/{process}/maps").open("rb") as lines:
            count += sum(1 for _ in islice(lines, MAPPINGS + 1 - count))
    return count


def _sends(pid: int) -> bool:
    """Tell whether open files wait in a socket of this process: they are in no process's table."""
    sockets = (number for number, state in _descriptors(pid) if stat.S_ISSOCK(state.st_mode))
    return any(_sum_fields(pid, f"fdinfo/{number}", "scm_fds") for number in sockets)


def _mapped(pid: int) -> Iterator[tuple[Inode, str, Path, int]]:
    """Yield each mapping of an unnamed file: which file, its former name, where root can inspect it, its last byte mapped.

    Memory that processes share without a file, and that of memfd_create, is of this kind, too.
    """
    process = Path(f"/proc/{pid}")
    with suppress(OSError), (process / "maps").open("rb") as lines:
        for line in lines:
            if not line.endswith(b"(deleted)\n"):
                continue
            addresses, _, offset, device, inode, name = line.decode(errors="replace").split(maxsplit=5)
            first, last = (int(address, 16) for address in addresses.split("-"))
            major, minor = (int(number, 16) for number in device.split(":"))
            end = int(offset, 16) + last - first
            yield (os.makedev(major, minor), int(inode)), name, process / "map_files" / f"{first:x}-{last:x}", end


def _scratch(processes: list[int]) -> tuple[int, int, set[int]]:
    """Return bytes, number of files and devices of the sandbox's private /tmp and /dev/shm, seen through one process."""
    for process in reversed(processes):
        folders = [Path(f"/proc/{process}/root/{name}") for name in ("tmp", "dev/shm")]
        try:
            places, devices = [os.statvfs(folder) for folder in folders], {folder.stat().st_dev for folder in folders}
        except OSError:
            continue
        used = sum((place.f_blocks - place.f_bfree) * place.f_frsize for place in places)
        return used, sum(place.f_files - place.f_ffree for place in places), devices
    return 0, 0, set()


def _contents(folder: Path, limits: Limits) -> tuple[int, int, int]:
    """Return number, bytes on disk and depth of the entries below `folder`, inspected no further than the limits."""
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
