"""A filter of system calls: what no notebook needs, and what bubblewrap does not take away by itself.

Where the Python binding of libseccomp is installed (as `seccomp` or `pyseccomp`), it makes the filter from the calls'
names, on any processor that it knows; elsewhere the numbers of two processors are listed here.

The session keyring of the user who runs the grader (it may hold Kerberos tickets) is passed on to every process, whatever
its namespaces; and the rest of the list are parts of the kernel that were often the way out of a container.
"""

from __future__ import annotations

import errno
import importlib
import platform
import socket
import struct
import tempfile
from contextlib import suppress
from functools import partial
from types import ModuleType

# The numbers of the calls, on x86_64 and on aarch64.
REFUSED = {
    "add_key": (248, 217),
    "request_key": (249, 218),
    "keyctl": (250, 219),
    "bpf": (321, 280),
    "perf_event_open": (298, 241),
    "userfaultfd": (323, 282),
    "io_uring_setup": (425, 425),
    "mount": (165, 40),
    "umount2": (166, 39),
    "pivot_root": (155, 41),
    "open_tree": (428, 428),
    "move_mount": (429, 429),
    "fsopen": (430, 430),
    "unshare": (272, 97),
    "setns": (308, 268),
    "syslog": (103, 116),
    # Memory that belongs to no process, or that can wait in a socket, so that none is seen to use it.
    "shmget": (29, 194),
    "semget": (64, 190),
    "msgget": (68, 186),
    "memfd_create": (319, 279),
    "memfd_secret": (447, 447),
}
CLONE, CLONE3, CLOSE_RANGE = (56, 220), 435, 436
SOCKET, SOCKET_PAIR, SET_OPTION = (41, 198), (53, 199), (54, 208)
# By the first the notebook's kernel and torch's workers are spoken to; by the second, with protocol 0, a kernel asks for the
# network interfaces when it starts. What waits in others is seen by no watch, and some lead out of the network namespace:
# by AF_VSOCK a virtual machine reaches its host.
LOCAL, INTERFACES = socket.AF_UNIX, getattr(socket, "AF_NETLINK", 16)
BUFFERS = (socket.SO_SNDBUF, socket.SO_RCVBUF)
NEW_USER = 0x10000000  # the flag of clone that asks for a user namespace
# Two flags of clone and one of close_range: a thread with a table of open files of its own would have files that the
# watch does not find in its process.
THREAD, SAME_FILES, OWN_FILES = 0x10000, 0x400, 2
MACHINES = {"x86_64": (0, 0xC000003E), "aarch64": (1, 0xC00000B7)}
# Where libseccomp's names are enough. On others one call stands for all of sockets, or clone has its flags elsewhere.
PLAIN_CALLS = {*MACHINES, "riscv64", "loongarch64"}

BINDINGS = ("seccomp", "pyseccomp")

LOAD, EQUAL, AT_LEAST, ANY_BIT, RETURN = 0x20, 0x15, 0x35, 0x45, 0x06
ALLOW, ERROR = 0x7FFF0000, 0x00050000
# Where they stand in what the filter is given.
NUMBER, ARCHITECTURE, FIRST_ARGUMENT, SECOND_ARGUMENT, THIRD_ARGUMENT = 0, 4, 16, 24, 32


def program() -> bytes | None:
    """Return the filter in the kernel's form; None if none can be made for this machine."""
    for name in BINDINGS if platform.machine() in PLAIN_CALLS else ():
        with suppress(Exception):  # none, one of the same name, or one that lacks a call: then the table decides
            return by_name(importlib.import_module(name))
    return by_number()


def by_name(libseccomp: ModuleType) -> bytes:
    """Return the filter that libseccomp makes on this machine."""
    refuse, low = libseccomp.ERRNO(errno.EPERM), 0xFFFFFFFF  # the kernel looks at the lower half of these arguments
    made = libseccomp.SyscallFilter(libseccomp.ALLOW)
    made.set_attr(libseccomp.Attr.ACT_BADARCH, refuse)
    for name in REFUSED:
        made.add_rule(refuse, name)
    made.add_rule(libseccomp.ERRNO(errno.ENOSYS), "clone3")

    def where(call: str, action: int, *conditions: tuple[int, int, int]) -> None:
        """Take `action` where each of these arguments, masked, has this value."""
        made.add_rule(action, call, *(libseccomp.Arg(i, libseccomp.MASKED_EQ, *rest) for i, *rest in conditions))

    family, protocol = partial(libseccomp.Arg, 0), partial(libseccomp.Arg, 2)
    unknown = libseccomp.ERRNO(errno.EAFNOSUPPORT)
    for name in ("socket", "socketpair"):
        made.add_rule(unknown, name, family(libseccomp.LT, LOCAL))
        made.add_rule(unknown, name, family(libseccomp.GT, INTERFACES))
        made.add_rule(unknown, name, family(libseccomp.EQ, INTERFACES), protocol(libseccomp.NE, 0))
        for between in range(LOCAL + 1, INTERFACES):
            where(name, unknown, (0, low, between))
    for option in BUFFERS:
        where("setsockopt", refuse, (1, low, socket.SOL_SOCKET), (2, low, option))
    where("close_range", refuse, (2, OWN_FILES, OWN_FILES))
    where("clone", refuse, (0, NEW_USER, NEW_USER))
    where("clone", refuse, (0, THREAD | SAME_FILES, THREAD))
    with tempfile.TemporaryFile() as file:
        made.export_bpf(file)
        file.seek(0)
        return file.read()


def by_number() -> bytes | None:
    """Return the filter from the numbers above; None for a machine whose calls are not listed."""
    if platform.machine() not in MACHINES:
        return None
    column, architecture = MACHINES[platform.machine()]
    refuse, missing = ERROR | errno.EPERM, ERROR | errno.ENOSYS
    steps = [
        (LOAD, 0, 0, ARCHITECTURE),
        *((EQUAL, 1, 0, architecture), (RETURN, 0, 0, refuse)),  # another architecture has other numbers
        (LOAD, 0, 0, NUMBER),
        *((AT_LEAST, 0, 1, 0x40000000), (RETURN, 0, 0, refuse)),  # so has x86_64's second set of calls
        *((EQUAL, 0, 1, CLONE3), (RETURN, 0, 0, missing)),  # its flags cannot be seen; who asks then takes clone
    ]
    for numbers in REFUSED.values():
        steps += [(EQUAL, 0, 1, numbers[column]), (RETURN, 0, 0, refuse)]
    for numbers in (SOCKET, SOCKET_PAIR):
        steps += [(EQUAL, 0, 7, numbers[column]), (LOAD, 0, 0, FIRST_ARGUMENT)]
        steps += [(EQUAL, 4, 0, LOCAL), (EQUAL, 0, 2, INTERFACES), (LOAD, 0, 0, THIRD_ARGUMENT), (EQUAL, 1, 0, 0)]
        steps += [(RETURN, 0, 0, ERROR | errno.EAFNOSUPPORT), (RETURN, 0, 0, ALLOW)]
    steps += [
        (EQUAL, 0, 7, SET_OPTION[column]),  # a socket's buffer stays as large as the watch takes it to be
        *((LOAD, 0, 0, SECOND_ARGUMENT), (EQUAL, 0, 4, socket.SOL_SOCKET), (LOAD, 0, 0, THIRD_ARGUMENT)),
        *((EQUAL, 1, 0, BUFFERS[0]), (EQUAL, 0, 1, BUFFERS[1]), (RETURN, 0, 0, refuse), (RETURN, 0, 0, ALLOW)),
        (EQUAL, 0, 4, CLOSE_RANGE),
        *((LOAD, 0, 0, THIRD_ARGUMENT), (ANY_BIT, 0, 1, OWN_FILES), (RETURN, 0, 0, refuse), (RETURN, 0, 0, ALLOW)),
        (EQUAL, 0, 5, CLONE[column]),
        *(
            (LOAD, 0, 0, FIRST_ARGUMENT),
            (ANY_BIT, 2, 0, NEW_USER),
            (ANY_BIT, 0, 2, THREAD),
            (ANY_BIT, 1, 0, SAME_FILES),
        ),
        *((RETURN, 0, 0, refuse), (RETURN, 0, 0, ALLOW)),
    ]
    return b"".join(struct.pack("=HBBI", *step) for step in steps)
