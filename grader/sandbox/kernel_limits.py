"""Limits that the kernel itself keeps, on memory of every kind and on processes, where systemd can set them (cgroup v2).

The watch looks a few times per second and cannot see everything; the kernel can. Where there is no systemd, no session of
the user's, or no cgroup v2, the watch limits alone.
"""

from __future__ import annotations

import functools
import os
import shutil
import subprocess

SESSION = ("XDG_RUNTIME_DIR", "DBUS_SESSION_BUS_ADDRESS")  # where systemd-run finds the user's own systemd
# Reports the kernel's limit on this process's memory, through an open file that it inherits as the sandbox inherits its own.
PROBE = 'cat "/sys/fs/cgroup$(sed -n s/^0:://p /proc/self/cgroup)/memory.max" > "/proc/self/fd/$1"'
PROBE_MEMORY, PROBE_SECONDS = 2**28, 20


def prefix(memory: int, tasks: int) -> list[str]:
    """Return the words before a command by which the kernel limits it, in bytes and threads; none where that cannot be.

    They have to be run with `environment()`; the command itself has nothing of it.
    """
    return _words(memory, tasks) if _available() else []


def environment() -> dict[str, str]:
    """Return the variables that the prefix needs."""
    return {"PATH": os.defpath} | {name: os.environ[name] for name in SESSION if name in os.environ}


def _words(memory: int, tasks: int) -> list[str]:
    limits = {"MemoryMax": memory, "MemorySwapMax": 0, "TasksMax": tasks}
    return [
        *("systemd-run", *([] if os.geteuid() == 0 else ["--user"]), "--scope", "--quiet", "--collect"),
        *(f"--property={name}={value}" for name, value in limits.items()),
        *("--", "env", "-i", f"PATH={os.defpath}"),
    ]


@functools.cache
def _available() -> bool:
    """Test once that the kernel applies the limit, and that open files reach the command."""
    if shutil.which("systemd-run") is None:
        return False
    told, telling = os.pipe()
    with os.fdopen(told) as answer:
        try:
            subprocess.run(
                [*_words(PROBE_MEMORY, 16), "sh", "-c", PROBE, "probe", str(telling)],
                stdin=subprocess.DEVNULL,
                capture_output=True,
                pass_fds=[telling],
                env=environment(),
                timeout=PROBE_SECONDS,
            )
        except (OSError, subprocess.TimeoutExpired):
            return False
        finally:
            os.close(telling)
        return answer.read().strip() == str(PROBE_MEMORY)
