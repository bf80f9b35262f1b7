"""Running a command that is not trusted: in namespaces of its own, with limits, and killed as a whole."""

from __future__ import annotations

import contextlib
import functools
import json
import os
import platform
import re
import selectors
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import matplotlib

import grader
import loralab
from loralab import data_path
from loralab.pool import allowed_threads

from ..errors import SandboxFailed, SandboxMissing
from . import kernel_limits, seccomp
from .limits import Limits, Watch, size

FOLDER = "/submission"  # where the command finds the folder that it may write to
MATPLOTLIB = "/tmp/matplotlib"
NOBODY = 65534
TICK = 0.2  # seconds between two looks at what is used
THREADS = 16  # a process may have on average; the kernel counts threads as it counts processes
SYSTEM = (
    *("/usr", "/bin", "/sbin", "/lib", "/lib32", "/lib64", "/libx32"),
    *("/etc/ld.so.cache", "/etc/ld.so.conf", "/etc/ld.so.conf.d", "/etc/alternatives", "/etc/fonts", "/etc/localtime"),
)
OPTIONS = "grade what was submitted with --artifacts-only, or run it unprotected with --no-sandbox"
GRADER = Path(grader.__file__).parent.resolve()  # all of it, in whatever part of it this file is
NOT_INSTALLED = f"bubblewrap is not installed: install it (sudo apt install bubblewrap; or dnf, pacman); or {OPTIONS}"


@dataclass(frozen=True)
class Ended:
    """How a command ended: its exit status, the limit it passed (or ""), what it printed, and what it used.

    `seconds` is wall time, `memory` the most bytes seen; `overfull` says that what lies in
    the folder now breaks the limits.
    """

    status: int
    breach: str
    output: bytes
    seconds: float
    memory: int
    overfull: bool = False


@functools.cache
def available() -> str | None:
    """Return None if a sandbox can be made, or else one line that says what is missing and what to do."""
    if shutil.which("bwrap") is None:
        return NOT_INSTALLED
    try:
        with tempfile.TemporaryDirectory() as folder:
            ended = run([sys.executable, "-I", "-c", "pass"], Path(folder), Limits(wall=60))
    except (SandboxFailed, SandboxMissing) as failure:
        return str(failure)
    if ended.status or ended.breach:
        return f"Python does not start in the sandbox ({ended.breach or _last_line(ended.output)}); {OPTIONS}"
    return None


def run(
    command: Sequence[str],
    folder: Path,
    limits: Limits | None = None,
    shown: Mapping[Path, str] | None = None,
    environment: Mapping[str, str] | None = None,
) -> Ended:
    """Run `command` with `folder` as its own at `/submission`, and see to it that nothing of it is left.

    It sees the system's programs, this Python environment, loralab and the course's data, and what is `shown` (a path
    out here, and where it appears inside); it can write to its folder and to a private /tmp; it has no network.
    Raises `SandboxMissing` where bubblewrap cannot be used, `SandboxFailed` if it breaks otherwise.
    """
    limits = limits or Limits()
    folder = folder.resolve()
    if shutil.which("bwrap") is None:
        raise SandboxMissing(NOT_INSTALLED)
    if (refused_calls := seccomp.program()) is None:
        raise SandboxMissing(f"no filter of system calls is known for this processor ({platform.machine()}); {OPTIONS}")
    if os.geteuid() == 0:
        _give_away(folder)
    told, telling = os.pipe()
    with os.fdopen(told) as answer:
        with os.fdopen(telling, "wb") as report:
            process = _start(command, folder, limits, shown or {}, environment or {}, refused_calls, report.fileno())
        assert process.stdout is not None, "it is a pipe"
        try:
            with process:
                init = _first_process(answer.read(), process)
                try:
                    watch = Watch(limits, folder, init.pid)
                    output, breach = _follow(process.stdout.fileno(), init, watch)
                finally:
                    init.kill()
                output += process.stdout.read(max(0, limits.output - len(output)))  # no more than a pipe holds
        finally:
            process.kill()
    overfull = watch.left()  # it may have filled its folder just before it ended
    status = process.wait()
    return Ended(status, breach or overfull, bytes(output), watch.seconds, watch.memory, bool(overfull))


def _start(
    command: Sequence[str],
    folder: Path,
    limits: Limits,
    shown: Mapping[Path, str],
    environment: Mapping[str, str],
    refused_calls: bytes,
    telling: int,
) -> subprocess.Popen[bytes]:
    """Start bubblewrap with the command; on `telling` it reports the process it made."""
    with contextlib.ExitStack() as opened:
        # What bubblewrap reads of files: the filter of system calls, and what would show our folders in its command line.
        calls = opened.enter_context(_readable(refused_calls))
        fonts = {path.name: opened.enter_context(_readable(path.read_bytes())).fileno() for path in _fonts()}
        hidden = [word for pair in {**_environment(), **environment}.items() for word in ("--setenv", *pair)]
        hidden += _scene(folder, limits, shown, fonts)
        bounded = kernel_limits.prefix(limits.memory + limits.memory // 4, limits.processes * THREADS)
        words = opened.enter_context(_readable(b"".join(os.fsencode(word) + b"\0" for word in hidden)))
        return subprocess.Popen(
            [*bounded, *_cage(limits, words.fileno(), telling, calls.fileno()), *command],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            pass_fds=[telling, calls.fileno(), words.fileno(), *fonts.values()],
            cwd="/",
            # Bubblewrap's own can be read, as /proc/1/environ, whatever it passes on; the prefix takes its variables away.
            env=kernel_limits.environment() if bounded else {"PATH": os.defpath},
        )


class _Init:
    """The first process of a sandbox, seen from outside: when it ends, the kernel has ended all the others."""

    def __init__(self, pid: int) -> None:
        self.pid = pid
        self.handle = os.pidfd_open(pid)

    def fileno(self) -> int:
        return self.handle

    def kill(self) -> None:
        """Kill the whole sandbox, and return when nothing of it is left."""
        with contextlib.suppress(ProcessLookupError):
            signal.pidfd_send_signal(self.handle, signal.SIGKILL)
        with selectors.DefaultSelector() as selector:
            selector.register(self, selectors.EVENT_READ)
            gone = selector.select(timeout=60)
        os.close(self.handle)
        if not gone:
            raise SandboxFailed(f"the sandbox (process {self.pid}) does not end")


def _first_process(told: str, process: subprocess.Popen[bytes]) -> _Init:
    try:
        return _Init(json.loads(told)["child-pid"])
    except (ValueError, KeyError, ProcessLookupError):
        what = _last_line(process.stdout.read(10_000) if process.stdout else b"")
    if re.search("namespace|uid map|denied|not permitted", what):
        raise SandboxMissing(
            f"bubblewrap may not make a sandbox here ({what}): allow user namespaces (as root: "
            f"sysctl kernel.unprivileged_userns_clone=1 kernel.apparmor_restrict_unprivileged_userns=0); or {OPTIONS}"
        )
    raise SandboxFailed(f"bubblewrap failed: {what}")


def _follow(pipe: int, init: _Init, watch: Watch) -> tuple[bytearray, str]:
    """Return the output until the sandbox ends or exceeds a limit, and that limit."""
    output, due, most = bytearray(), time.monotonic() + TICK, watch.limits.output
    with selectors.DefaultSelector() as selector:
        selector.register(pipe, selectors.EVENT_READ)
        selector.register(init, selectors.EVENT_READ)
        while True:
            ready = {key.fd for key, _ in selector.select(max(0.0, due - time.monotonic()))}
            if pipe in ready:
                piece = os.read(pipe, 2**16)
                output += piece
                if len(output) > most:
                    return output[:most], f"wrote more than {size(most)} of output"
                if not piece:
                    selector.unregister(pipe)
            if init.fileno() in ready:
                return output, ""
            if time.monotonic() >= due:
                if breach := watch.breach():
                    return output, breach
                due = time.monotonic() + TICK


def _give_away(folder: Path) -> None:
    """Let the unprivileged user that the command runs as own `folder`."""
    for path in [folder, *folder.rglob("*")]:
        os.chown(path, NOBODY, NOBODY, follow_symlinks=False)


@contextlib.contextmanager
def _readable(content: bytes) -> Iterator[IO[bytes]]:
    with tempfile.TemporaryFile() as file:
        file.write(content)
        file.seek(0)
        yield file


def _cage(limits: Limits, words: int, telling: int, calls: int) -> list[str]:
    """Return the command line before the command itself; on `telling` bubblewrap reports the process it made."""
    bwrap = shutil.which("bwrap") or "bwrap"
    root = os.geteuid() == 0
    # Root would stay root to the kernel, whatever it is called inside: the limit on processes would not bind it.
    # So root first sets the scene and becomes nobody, and nobody makes a user namespace.
    alone = ["--unshare-ipc", "--unshare-pid", "--unshare-net", "--unshare-uts", "--unshare-cgroup-try"]
    drop = ["--unshare-user", *_no_namespaces(bwrap), "--cap-drop", "ALL", "--seccomp", str(calls)]
    stage = ["--cap-add", "CAP_SETUID", "--cap-add", "CAP_SETGID", "--cap-add", "CAP_SETPCAP"] if root else drop
    become = [
        *("setpriv", f"--reuid={NOBODY}", f"--regid={NOBODY}", "--clear-groups", "--inh-caps=-all", "--"),
        *("bwrap", *drop, "--die-with-parent", "--dev-bind", "/", "/", "--chdir", FOLDER, "--"),
    ]
    bounds = [
        *("choom", "-n", "1000", "--"),  # where memory runs out, this goes first
        *("nice", "-n", "10", "--"),  # what watches it gets the processor, however many processes it starts
        *("prlimit", "--core=0", "--nofile=1024", f"--fsize={limits.file}", f"--nproc={limits.processes * THREADS}", "--"),
    ]  # fmt: skip
    return [
        *(bwrap, "--info-fd", str(telling), *alone, *stage, "--die-with-parent", "--new-session", "--clearenv"),
        *("--hostname", "sandbox"),
        *("--args", str(words)),
        *("--chdir", FOLDER, "--"),
        *(become if root else []),
        *bounds,
    ]


@functools.cache
def _no_namespaces(bwrap: str) -> list[str]:
    """Return the option that forbids user namespaces inside; bubblewrap has it since 0.8."""
    options = subprocess.run([bwrap, "--help"], capture_output=True, text=True).stdout
    return ["--disable-userns"] if "--disable-userns" in options else []


def _environment() -> dict[str, str]:
    return {
        "PATH": f"{sys.prefix}/bin:/usr/bin:/bin",
        "HOME": "/tmp",
        "USER": "student",
        "LANG": "C.UTF-8",
        "OMP_NUM_THREADS": str(allowed_threads()),
        "HF_HUB_OFFLINE": "1",
        "TOKENIZERS_PARALLELISM": "false",
        "TORCHDYNAMO_DISABLE": "1",  # nothing here is compiled, and bitsandbytes imports the compiler for a second
        "MPLCONFIGDIR": MATPLOTLIB,
        "IPYTHONDIR": "/tmp/ipython",
        "JUPYTER_CONFIG_DIR": "/tmp/jupyter/config",
        "JUPYTER_DATA_DIR": "/tmp/jupyter/data",
        "JUPYTER_RUNTIME_DIR": "/tmp/jupyter/runtime",
    }


def _fonts() -> list[Path]:
    """Return matplotlib's font lists, which take seconds to make; they are in the grader's home."""
    return sorted(Path(matplotlib.get_cachedir()).glob("fontlist-*.json"))


def _scene(folder: Path, limits: Limits, shown: Mapping[Path, str], fonts: Mapping[str, int]) -> list[str]:
    """Return the files that the command sees; `fonts` are copied from open files, for a mount would show their path."""
    system = [path for name in SYSTEM if (path := Path(name)).exists()]
    links = [path for path in system if path.is_symlink() and path.parent == Path("/")]
    prefixes = {Path(prefix) for prefix in (sys.prefix, sys.base_prefix)}
    course = {Path(loralab.__file__).parent, data_path()}
    wanted = {path: str(path) for path in {*prefixes, *(prefix.resolve() for prefix in prefixes), *course}}
    wanted = {path: place for path, place in (wanted | dict(shown)).items() if not path.is_relative_to("/usr")}
    for path in [Path("/usr"), *wanted]:
        _nothing_private(path)
    places = [FOLDER, *wanted.values()]
    parents = sorted({str(parent) for place in places for parent in Path(place).parents} - {"/"})
    room = ["--perms", "1777", "--size", str(limits.scratch), "--tmpfs"]
    gpus = [str(path) for path in Path("/dev").glob("nvidia*")]
    return [
        *(word for path in links for word in ("--symlink", str(path.readlink()), str(path))),
        *(word for path in system if path not in links for word in ("--ro-bind", str(path), str(path))),
        *("--proc", "/proc", "--dev", "/dev", *room, "/dev/shm", *room, "/tmp"),
        *("--perms", "1777", "--dir", MATPLOTLIB),
        *(word for name, file in fonts.items() for word in ("--ro-bind-data", str(file), f"{MATPLOTLIB}/{name}")),
        *(word for path in gpus for word in ("--dev-bind", path, path)),
        *(("--ro-bind", "/sys", "/sys") if gpus else ("--ro-bind-try", "/sys/devices/system", "/sys/devices/system")),
        *(word for place in parents for word in ("--perms", "0755", "--dir", place)),
        *(word for path, place in wanted.items() for word in ("--ro-bind", str(path), place)),
        *("--bind", str(folder), FOLDER),
        *("--remount-ro", "/dev", "--remount-ro", "/"),  # else they are small disks without a limit
    ]


def _nothing_private(path: Path) -> None:
    shown = path.resolve()
    for private in (GRADER, Path.home()):
        if private.is_relative_to(shown):
            raise SandboxMissing(
                f"{path} would have to be shown to student code, and holds {private}; "
                f"keep the course and its environment in folders of their own; or {OPTIONS}"
            )
    if shown.is_relative_to(GRADER) and shown.is_dir():  # of the grader, single files are shown and no folder
        raise SandboxMissing(f"{path} would have to be shown to student code, and is a part of the grader; {OPTIONS}")


def _last_line(output: bytes) -> str:
    lines = output.decode(errors="replace").strip().splitlines()
    return lines[-1][:300] if lines else "no message"
