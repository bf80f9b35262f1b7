"""The sandbox: what a command in it can reach, what it may use, and that nothing of it is left."""

from __future__ import annotations

import errno
import json
import os
import platform
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import matplotlib
import psutil
import pytest

import loralab
from grader.errors import SandboxFailed, SandboxMissing
from grader.sandbox import bubblewrap, kernel_limits, limits, seccomp
from grader.sandbox.limits import GIB, MIB, Limits, size
from loralab import data_path

ROOT = Path(__file__).parents[2]

needs_bwrap = pytest.mark.skipif(bubblewrap.shutil.which("bwrap") is None, reason="bubblewrap is not installed")


@pytest.fixture(autouse=True)
def without_a_gpu(monkeypatch):
    """The watch as it is where no GPU's driver shares memory."""
    monkeypatch.setattr(limits, "UNKNOWN_MEMORY", 0)


@pytest.fixture
def folder(tmp_path) -> Path:
    """A run folder, in a place that other users can enter as little as they can enter the repository."""
    path = tmp_path / "submission"
    path.mkdir()
    return path


def python(folder: Path, code: str, shown: dict | None = None, /, **bounds) -> bubblewrap.Ended:
    """How `code` ends in the sandbox."""
    return bubblewrap.run([sys.executable, "-c", code], folder, Limits(**{"wall": 30, **bounds}), shown)


def alive(mark: str) -> list[psutil.Process]:
    found = []
    for process in psutil.process_iter(["cmdline", "pid"]):
        if process.pid != os.getpid() and any(mark in word for word in process.info["cmdline"] or []):
            found.append(process)
    return found


def gone(mark: str, seconds: float = 5) -> bool:
    until = time.monotonic() + seconds
    while alive(mark) and time.monotonic() < until:
        time.sleep(0.05)
    return not alive(mark)


@needs_bwrap
def test_a_sandbox_can_be_made_here():
    assert bubblewrap.available() is None


@needs_bwrap
def test_a_command_runs_in_its_own_folder_and_is_measured(folder):
    ended = python(folder, "open('here', 'w').write('x'); print(__import__('os').getcwd()); raise SystemExit(3)")
    assert (ended.status, ended.breach, ended.output) == (3, "", b"/submission\n")
    assert (folder / "here").read_text() == "x"
    assert 0 < ended.seconds < 30


@needs_bwrap
@pytest.mark.parametrize("fails", ["_scene", "subprocess.Popen", "_first_process"])
def test_a_sandbox_that_cannot_be_made_leaves_no_open_file(folder, monkeypatch, fails):
    def fail(*_, **__):
        raise SandboxMissing("not here")

    monkeypatch.setattr(f"grader.sandbox.bubblewrap.{fails}", fail)
    before = sorted(Path("/proc/self/fd").iterdir())
    with pytest.raises(SandboxMissing):
        python(folder, "pass")
    assert sorted(Path("/proc/self/fd").iterdir()) == before


@needs_bwrap
def test_the_course_and_its_data_are_there(folder):
    code = f"import importlib.util as u; print(u.find_spec('loralab').origin); open({str(data_path('pairs/train.jsonl'))!r})"
    assert python(folder, code).output.decode() == f"{loralab.__file__}\n"


@needs_bwrap
def test_nothing_else_of_the_machine_is_there(folder, tmp_path):
    (tmp_path / "secret").write_text("of another student")
    private = ["grader", "solutions", "tests", "exercises", ".git", "build", "submitted", "Makefile"]
    paths = [
        *(ROOT / name for name in private),
        tmp_path,
        Path.home() / ".bashrc",
        Path("/etc/passwd"),
        Path("/var"),
        Path("/run"),
    ]
    ended = python(folder, f"import os; print([path for path in {list(map(str, paths))} if os.path.exists(path)])")
    assert ended.output == b"[]\n"


@needs_bwrap
def test_no_source_of_the_grader_can_be_read(folder):
    sources = [str(path) for path in (ROOT / "grader").rglob("*") if path.suffix in {".py", ".json", ".j2"}]
    assert len(sources) > 30
    ended = python(folder, f"import os; print([path for path in {sources} if os.path.exists(path)])")
    assert ended.output == b"[]\n"


ENVIRONMENTS = """
import glob
for path in ["/proc/self/environ", *glob.glob("/proc/[0-9]*/environ")]:
    try: print(path, open(path, "rb").read())
    except OSError as error: print(error)
"""


@needs_bwrap
def test_no_secret_of_the_environment_can_be_read(folder, monkeypatch):
    """The variables of the grader, of bubblewrap itself (the first process inside), and their command lines."""
    monkeypatch.setenv("GRADEBOOK_PASSWORD", "hunter2")
    ended = python(folder, ENVIRONMENTS)
    assert b"/proc/1/environ" in ended.output and b"HF_HUB_OFFLINE" in ended.output
    assert b"hunter2" not in ended.output and b"GRADEBOOK" not in ended.output


@needs_bwrap
def test_no_cache_of_the_graders_home_is_among_the_mounts(folder):
    mounts = python(folder, "print(open('/proc/self/mountinfo').read())").output.decode()
    assert "/submission" in mounts and "fontlist" in mounts
    assert str(Path.home() / ".cache") not in mounts and matplotlib.get_cachedir() not in mounts


@needs_bwrap
def test_other_processes_cannot_be_seen_and_so_neither_traced_nor_killed(folder):
    code = """
import glob, os
commands = [open(path).read() for path in glob.glob("/proc/[0-9]*/cmdline")]
print(len(commands) < 10, any("pytest" in one and "/submission" not in one for one in commands), flush=True)
try: os.kill(-1, 9)
except ProcessLookupError: pass
os.kill(os.getpid(), 9)
"""
    ended = python(folder, code)  # and this process lives to tell
    assert (ended.output, ended.status, ended.breach) == (b"True False\n", 137, "")


@needs_bwrap
def test_nothing_outside_the_folder_can_be_written(folder):
    places = ["/", "/usr", "/dev", "/etc", "/sys", "/proc/sys/kernel", sys.prefix, ROOT, ROOT / "loralab", data_path()]
    code = f"""
for place in {list(map(str, places))}:
    try: open(place + "/planted", "w"); print(place)
    except OSError: pass
open("/tmp/mine", "w"); open("/dev/shm/mine", "w"); open("mine", "w"); print("done")
"""
    assert python(folder, code).output == b"done\n"
    assert not Path("/tmp/mine").exists() and not Path("/dev/shm/mine").exists()
    assert [path.name for path in folder.iterdir()] == ["mine"]


@needs_bwrap
def test_there_is_no_network_not_even_the_loopback_of_the_machine(folder):
    with socket.create_server(("127.0.0.1", 0)) as server, socket.socket(socket.AF_UNIX) as abstract:
        name = f"\0grader-test-{os.getpid()}"
        abstract.bind(name)
        abstract.listen()
        places = [
            ("INET", server.getsockname()),
            ("UNIX", name),
            ("INET", ("192.0.2.1", 80)),
            ("INET", ("1.1.1.1", 53)),
        ]
        code = f"""
import socket
for family, place in {places}:
    try:
        with socket.socket(getattr(socket, "AF_" + family)) as one:
            one.settimeout(2)
            one.connect(place)
            print("reached", place)
    except OSError: print("no")
"""
        with socket.create_connection(server.getsockname()):  # from out here it can be reached
            assert python(folder, code).output == b"no\n" * 4


@needs_bwrap
def test_only_sockets_of_families_that_the_kernel_of_a_notebook_needs(folder):
    code = """
import errno, socket
for name in ("UNIX", "NETLINK", "INET", "INET6", "VSOCK", "PACKET", "ALG"):
    try: socket.socket(getattr(socket, "AF_" + name), socket.SOCK_STREAM if name != "NETLINK" else socket.SOCK_RAW); print(name)
    except OSError as error: print(name, errno.errorcode[error.errno])
"""
    others = ("INET", "INET6", "VSOCK", "PACKET", "ALG")
    wanted = ["UNIX", "NETLINK", *(f"{name} EAFNOSUPPORT" for name in others)]
    assert python(folder, code).output.decode().splitlines() == wanted


@needs_bwrap
def test_no_rights_and_no_further_namespaces(folder):
    code = """
import os, subprocess
status = dict(line.split(":", 1) for line in open("/proc/self/status").read().splitlines())
print(status["CapEff"].strip(), status["CapBnd"].strip(), status["NoNewPrivs"].strip())
print(subprocess.run(["unshare", "--user", "true"], capture_output=True).returncode)
"""
    rights, namespaces = python(folder, code).output.decode().splitlines()
    assert rights == "0" * 16 + " " + "0" * 16 + " 1"
    if bubblewrap._no_namespaces("bwrap"):
        assert namespaces == "1"


@needs_bwrap
@pytest.mark.skipif(seccomp.program() is None, reason="no list of system calls for this machine")
def test_keys_of_the_grader_and_parts_of_the_kernel_that_no_notebook_needs_are_out_of_reach(folder):
    code = f"""
import ctypes
libc = ctypes.CDLL(None, use_errno=True)
for numbers in {list(seccomp.REFUSED.values())}:
    print(libc.syscall(numbers[{seccomp.MACHINES[platform.machine()][0]}], 0, 0, 0, 0, 0), ctypes.get_errno())
"""
    asked = len(seccomp.REFUSED)
    assert python(folder, code).output.decode().splitlines() == [f"-1 {errno.EPERM}"] * asked
    inside = (
        "import subprocess, threading; threading.Thread(target=print, args=['thread']).start(); subprocess.run('true')"
    )
    assert python(folder, inside).output == b"thread\n"


@needs_bwrap
@pytest.mark.skipif(seccomp.program() is None, reason="no list of system calls for this machine")
def test_memory_that_no_process_would_be_seen_to_hold_cannot_be_made(folder):
    code = """
import ctypes, os
libc = ctypes.CDLL(None)
print(libc.shmget(0, 4096, 0o1600), libc.semget(0, 3, 0o1600), libc.msgget(0, 0o1600), flush=True)
os.memfd_create("hidden")
"""
    output = python(folder, code).output
    assert output.startswith(b"-1 -1 -1\n") and b"PermissionError" in output


@needs_bwrap
@pytest.mark.skipif(seccomp.program() is None, reason="no list of system calls for this machine")
def test_no_thread_has_open_files_of_its_own(folder):
    code = f"""
import ctypes, platform, threading
libc = ctypes.CDLL(None)
vm_and_signals, clone = 0x100 | 0x800, {seccomp.CLONE}[platform.machine() == "aarch64"]
def ask():
    print(libc.syscall({seccomp.CLOSE_RANGE}, 900, 900, 0), libc.syscall({seccomp.CLOSE_RANGE}, 900, 900, 2), flush=True)
    print(libc.syscall(clone, {seccomp.THREAD} | vm_and_signals, 0, 0, 0, 0), flush=True)
thread = threading.Thread(target=ask)
thread.start()
thread.join()
"""
    assert python(folder, code).output == b"0 -1\n-1\n"


# As C sees memory: Python's own mapping of a file keeps the file open.
LIBC = """
import ctypes, os, socket, threading, time
libc = ctypes.CDLL(None)
libc.mmap.restype = ctypes.c_void_p
libc.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, *[ctypes.c_int] * 3, ctypes.c_long]
libc.munmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t]
"""

# Memory that processes share, filled and then unmapped but for a page: the process itself seems to use little.
HIDDEN_MEMORY = f"""{LIBC}
for _ in range(30):
    place = libc.mmap(None, 10**7, 3, 0x21, -1, 0)
    ctypes.memset(place, 1, 10**7)
    libc.munmap(place + 4096, 10**7 - 4096)
time.sleep(60)
"""

DELETED = f"""{LIBC}
def deleted():
    file = os.open("x", os.O_CREAT | os.O_RDWR)
    os.write(file, bytes(10**7))
    os.unlink("x")
    return file
"""

HIDDEN_FILES = f"""{DELETED}
for _ in range(30):
    file = deleted()
    libc.mmap(None, 4096, 3, 1, file, 0)
    os.close(file)
time.sleep(60)
"""

FILES_ON_THEIR_WAY = f"""{DELETED}
one, other = socket.socketpair()
for _ in range(30):
    file = deleted()
    socket.send_fds(one, [b"x"], [file])
    os.close(file)
time.sleep(60)
"""

# The kernel tells nothing of a process's memory where its first thread has ended.
NO_FIRST_THREAD = f"""{LIBC}
def fill():
    kept = []
    while True: kept.append(b"1" * 10**7); time.sleep(0.02)
threading.Thread(target=fill).start()
libc.pthread_exit(None)
"""

# Read in each of a million places: they all show the same page of zeros, but it takes a table to find it from there.
TABLES = f"""{LIBC}
place = libc.mmap(None, 2**40, 1, 0x4022, -1, 0)
libc.madvise(ctypes.c_void_p(place), ctypes.c_size_t(2**40), 15)  # in small pages
for number in range(2**19): ctypes.string_at(place + number * 2**21, 1)
time.sleep(60)
"""


# Each mapping takes a piece of the kernel's memory, and nothing of the process's own.
MAPPINGS = f"""{LIBC}
for _ in range(3): os.fork()
place = libc.mmap(None, 60_000 * 4096, 0, 0x22, -1, 0)
libc.mprotect.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
for number in range(0, 60_000, 2): libc.mprotect(place + number * 4096, 4096, 1)
time.sleep(60)
"""


@needs_bwrap
@pytest.mark.parametrize(
    ("code", "limits", "reason"),
    [
        ("while True: pass", {"wall": 1}, "ran longer than 1 s"),
        ("import time; time.sleep(60)", {"wall": 1}, "ran longer than 1 s"),
        ("import os\nos.fork()\nwhile True: pass", {"cpu": 1}, "used more than 1 s of processor time"),
        ("import os\nwhile True:\n try: os.fork()\n except OSError: pass", {}, "started more than 64 processes"),
        ("x = []\nwhile True: x.append(b'1' * 10**7)", {"memory": 200 * MIB}, "used more than 200 MiB of memory"),
        (
            "import time\nopen('/tmp/filler', 'wb').write(bytes(300 * 2**20))\ntime.sleep(60)",
            {"memory": 200 * MIB},
            "used more than 200 MiB of memory",
        ),
        (
            "for i in range(40): open(str(i), 'wb').write(bytes(10**7))",
            {"folder": 100 * MIB},
            "wrote more than 100 MiB into its folder",
        ),
        (
            "import os, time\nfor i in range(40):\n f = os.open('x', 65); os.write(f, bytes(10**7)); os.unlink('x')\ntime.sleep(60)",
            {"folder": 100 * MIB},
            "wrote more than 100 MiB into its folder",
        ),
        ("for i in range(400): open(str(i), 'w')", {"files": 300}, "made more than 300 files"),
        ("import time\nfor i in range(400): open(f'/tmp/{i}', 'w')\ntime.sleep(60)", {"files": 300}, "made more than 300 files"),
        ("import os\nfor i in range(30): os.mkdir('d' * 200); os.chdir('d' * 200)", {}, "left a folder that cannot be looked into"),
        ("import os\nfor i in range(60): os.mkdir('d'); os.chdir('d')", {}, "made folders more than 50 deep"),
        (HIDDEN_MEMORY, {"memory": 200 * MIB}, "used more than 200 MiB" if os.geteuid() == 0 else "shares memory"),
        (HIDDEN_FILES, {"folder": 100 * MIB}, "wrote more than 100 MiB" if os.geteuid() == 0 else "holds more than 16 deleted"),
        (FILES_ON_THEIR_WAY, {"folder": 100 * MIB}, "leaves open files waiting in a socket"),
        (NO_FIRST_THREAD, {"memory": 200 * MIB}, "used more than 200 MiB of memory"),
        (TABLES, {"memory": 200 * MIB}, "used more than 200 MiB of memory"),
        (MAPPINGS, {}, "divided its memory into more than 200,000 pieces"),
        ("while True: print('x' * 10**6)", {"output": MIB}, "wrote more than 1 MiB of output"),
    ],
    ids=[
        *("loop", "sleep", "processor", "fork bomb", "memory bomb", "memory in tmp", "disk"),
        *("disk without a name", "files", "files in tmp", "long paths", "depth", "memory that is hardly mapped"),
        *("files that are hardly mapped", "files on their way", "no first thread", "page tables", "mappings", "output"),
    ],
)  # fmt: skip
def test_what_passes_a_limit_is_killed_and_told_which(folder, code, limits, reason):
    ended = python(folder, f"MARK = {str(folder)!r}\n{code}", **limits)
    assert ended.breach.startswith(reason)
    assert ended.seconds < 15
    assert len(ended.output) <= Limits(**limits).output
    assert not alive(f"MARK = {str(folder)!r}")
    subprocess.run(["rm", "-rf", folder], check=True)  # pytest's own way fails at deep folders


@pytest.fixture
def not_root(monkeypatch):
    """A grader that may not look at what others have mapped, whoever runs the tests."""

    def stat(path: Path, **options) -> os.stat_result:
        if path.parent.name == "map_files":
            raise PermissionError(errno.EPERM, "Operation not permitted", str(path))
        return os.stat(path, **options)  # noqa: PTH116 (this is what replaces it)

    monkeypatch.setattr(Path, "stat", stat)


@needs_bwrap
def test_memory_whose_size_cannot_be_seen_is_not_allowed(folder, not_root):
    one = HIDDEN_MEMORY.replace("30", "1")
    assert python(folder, one).breach.startswith("shares memory between processes without a file")


@needs_bwrap
def test_a_gpus_driver_may_share_memory(folder, not_root, monkeypatch):
    monkeypatch.setattr(limits, "UNKNOWN_MEMORY", 256)
    assert python(folder, HIDDEN_MEMORY.replace("60", "1")).breach == ""


@needs_bwrap
def test_deleted_files_whose_size_cannot_be_seen_are_allowed_in_a_small_number(folder, not_root):
    """A notebook may have replaced a file that it still has mapped."""
    assert python(folder, HIDDEN_FILES).breach.startswith("holds more than 16 deleted files")
    assert python(folder, HIDDEN_FILES.replace("30", "9").replace("60", "1")).breach == ""


@needs_bwrap
def test_open_files_may_be_handed_over(folder):
    """As torch's workers do it, all the time: sent, and received at once."""
    code = f"""{LIBC}
one, other = socket.socketpair()
until = time.monotonic() + 4
while time.monotonic() < until:
    socket.send_fds(one, [b"x"], [0])
    os.close(socket.recv_fds(other, 1, 1)[1][0])
    time.sleep(0.001)
"""
    assert python(folder, code).breach == ""


# What is sent and never received lies in the kernel, and no process has it.
FULL_SOCKETS = """
import socket, time
kept = []
for _ in range(400):
    one, other = socket.socketpair()
    one.setblocking(False)
    kept.append((one, other))
    try:
        while True: one.send(bytes(2**16))
    except BlockingIOError: pass
time.sleep(60)
"""


@needs_bwrap
def test_what_waits_in_sockets_is_memory(folder):
    assert python(folder, FULL_SOCKETS, memory=100 * MIB).breach == "used more than 100 MiB of memory"


@needs_bwrap
@pytest.mark.skipif(seccomp.program() is None, reason="no list of system calls for this machine")
def test_the_buffer_of_a_socket_cannot_be_made_larger_and_other_options_can_be_set(folder):
    code = """
import socket
with socket.socket(socket.AF_UNIX) as one:
    one.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    print("set", flush=True)
    for option in (socket.SO_SNDBUF, socket.SO_RCVBUF):
        try: one.setsockopt(socket.SOL_SOCKET, option, 10**7)
        except PermissionError: print("no")
"""
    assert python(folder, code).output == b"set\nno\nno\n"


# As torch's workers hand over their batches: through files in /dev/shm that are mapped, and that have no name any more.
SHARED_BATCHES = """
import mmap, os, time
kept = []
for _ in range(30):
    file = os.open("/dev/shm/x", os.O_CREAT | os.O_RDWR)
    os.unlink("/dev/shm/x")
    os.write(file, bytes(5 * 2**20))
    kept.append(mmap.mmap(file, 5 * 2**20))
    os.close(file)
time.sleep(1)
"""


@needs_bwrap
def test_batches_that_workers_share_are_no_hidden_memory(folder, not_root):
    assert python(folder, SHARED_BATCHES).breach == ""


@needs_bwrap
def test_unlinked_files_in_shared_memory_count_once(folder):
    ended = python(folder, SHARED_BATCHES, memory=250 * MIB)
    assert ended.breach == "" and ended.memory > 150 * MIB


@needs_bwrap
def test_memory_that_processes_share_counts_once(folder):
    """Eight processes that look at the same 100 MiB use little more than 100 MiB."""
    code = "import os, time\nx = b'1' * (100 * 2**20)\nfor i in range(3): os.fork()\ntime.sleep(0.7)\nprint(len(x))"
    ended = python(folder, code, memory=300 * MIB)
    assert ended.breach == "" and 100 * MIB < ended.memory < 300 * MIB


@needs_bwrap
def test_one_file_cannot_be_larger_than_allowed(folder):
    ended = python(folder, "open('x', 'wb').write(bytes(3 * 2**20))", file=MIB)
    assert b"File too large" in ended.output
    assert (folder / "x").stat().st_size <= MIB


@needs_bwrap
def test_a_process_that_detaches_itself_does_not_outlive_the_command(folder):
    ended = python(folder, "import subprocess; subprocess.Popen(['setsid', '--fork', 'sleep', '4217.125'])")
    assert ended.status == 0 and ended.breach == ""
    assert not alive("4217.125")


@needs_bwrap
def test_a_sandbox_ends_with_the_grader_that_made_it(folder):
    code = f"""
from grader.sandbox import bubblewrap
from pathlib import Path
bubblewrap.run(["bash", "-c", "setsid sleep 4218.125 & setsid sleep 4218.125"], Path({str(folder)!r}))
"""
    grader = subprocess.Popen([sys.executable, "-c", code], cwd=ROOT)
    until = time.monotonic() + 40
    while not alive("sleep 4218.125") and time.monotonic() < until:
        time.sleep(0.1)
    assert alive("4218.125")
    grader.send_signal(signal.SIGKILL)
    grader.wait()
    assert gone("4218.125")


@needs_bwrap
def test_what_is_shown_can_be_read_and_not_changed(folder, tmp_path):
    model = tmp_path / "model"
    model.mkdir()
    (model / "config.json").write_text("{}")
    tmp_path.chmod(0o700)
    code = "print(open('/models/own/config.json').read()); open('/models/own/new', 'w')"
    ended = python(folder, code, {model: "/models/own"})
    assert b"{}\n" in ended.output and b"Read-only file system" in ended.output


@pytest.mark.parametrize("private", [Path.home(), Path("/"), ROOT, ROOT / "grader", ROOT / "grader" / "evaluation"])
@needs_bwrap
def test_what_holds_the_grader_or_the_home_is_never_shown(folder, private):
    with pytest.raises(SandboxMissing, match="would have to be shown"):
        python(folder, "pass", {private: "/shown"})


@pytest.fixture
def programs(tmp_path, monkeypatch) -> Path:
    """The only folder in which programs are looked for."""
    path = tmp_path / "bin"
    path.mkdir()
    monkeypatch.setenv("PATH", str(path))
    bubblewrap.available.cache_clear()
    bubblewrap._no_namespaces.cache_clear()
    yield path
    bubblewrap.available.cache_clear()
    bubblewrap._no_namespaces.cache_clear()


def test_without_bubblewrap_it_is_said_how_to_get_it_and_what_to_do_without(programs, folder):
    reason = bubblewrap.available()
    assert "apt install bubblewrap" in reason and "--artifacts-only" in reason and "--no-sandbox" in reason
    assert "\n" not in reason
    with pytest.raises(SandboxMissing, match="not installed"):
        bubblewrap.run(["true"], folder)


@needs_bwrap
def test_on_a_processor_whose_system_calls_are_not_known_nothing_is_run(folder, monkeypatch):
    monkeypatch.setattr(platform, "machine", lambda: "s390x")
    bubblewrap.available.cache_clear()
    try:
        reason = bubblewrap.available()
    finally:
        bubblewrap.available.cache_clear()
    assert "no filter of system calls is known for this processor (s390x)" in reason and "--artifacts-only" in reason
    with pytest.raises(SandboxMissing, match="s390x"):
        python(folder, "open('ran', 'w')")
    assert list(folder.iterdir()) == []


SYSTEMD_RUN = """#!/bin/sh
while [ "$1" != -- ]; do case "$1" in --property=MemoryMax=*) limit=${1#*Max=};; esac; shift; done
shift
for last; do :; done
case "$*" in *memory.max*) echo "$limit" > "/proc/self/fd/$last"; exit;; esac
echo "$limit $USER" >> MARK
exec "$@"
"""


@pytest.fixture
def systemd(tmp_path, monkeypatch):
    """Puts a program in the place of systemd-run, and gives the file that it may write to."""

    def put(script: str) -> Path:
        (tmp_path / "bin").mkdir()
        (tmp_path / "bin" / "systemd-run").write_text(script.replace("MARK", str(tmp_path / "mark")))
        (tmp_path / "bin" / "systemd-run").chmod(0o755)
        monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:{os.environ['PATH']}")
        monkeypatch.setattr(os, "defpath", f"{tmp_path / 'bin'}:{os.defpath}")
        return tmp_path / "mark"

    kernel_limits._available.cache_clear()
    yield put
    kernel_limits._available.cache_clear()


@needs_bwrap
def test_where_systemd_can_limit_a_command_the_sandbox_is_started_by_it(folder, systemd, monkeypatch):
    monkeypatch.setenv("XDG_RUNTIME_DIR", "/run/user/of-the-grader")
    mark = systemd(SYSTEMD_RUN)
    ended = python(folder, ENVIRONMENTS, memory=400 * MIB)
    assert (ended.status, ended.breach) == (0, ""), ended.output
    assert b"of-the-grader" not in ended.output
    assert mark.read_text().split()[0] == str(500 * MIB)


@pytest.mark.parametrize("script", ["#!/bin/sh\nexit 1\n", "#!/bin/sh\necho max\n", "no program"])
def test_where_systemd_cannot_limit_a_command_the_watch_does_it_alone(systemd, script):
    systemd(script)
    assert kernel_limits.prefix(GIB, 16) == []


def test_where_namespaces_are_forbidden_it_is_said_how_to_allow_them(programs, folder):
    fake(programs, "bwrap: No permissions to create new namespace")
    reason = bubblewrap.available()
    assert "No permissions to create new namespace" in reason and "sysctl" in reason
    assert "--artifacts-only" in reason and "--no-sandbox" in reason and "\n" not in reason


def test_a_bubblewrap_that_breaks_otherwise_is_the_graders_failure(programs, folder):
    fake(programs, "bwrap: Can't mkdir /x: No space left on device")
    with pytest.raises(SandboxFailed, match="No space left"):
        bubblewrap.run(["true"], folder)


def fake(programs: Path, complaint: str) -> None:
    (programs / "bwrap").write_text(f"#!/bin/sh\necho {json.dumps(complaint)} >&2\nexit 1\n")
    (programs / "bwrap").chmod(0o755)


def test_sizes_are_told_in_units_that_people_use():
    assert [size(MIB), size(GIB), size(3 * GIB // 2)] == ["1 MiB", "1 GiB", "1.5 GiB"]
