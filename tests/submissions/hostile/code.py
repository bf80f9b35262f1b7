"""Attacks by code in the first solution cell, so that most of them end within seconds of a kernel's start.

Where an attack looks for something, it raises an error that says what it found, and the expected message is that it
found nothing. Bombs go off only where the things outside cannot be seen: never in a kernel without a sandbox.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from textwrap import dedent

from ..case import Case, Expected, Parts, failed, graded, save
from .runs import IDLE, MOVED, plant

CODE: list[Case] = []

# No cell after this one does anything: a notebook that "passes".
QUIET = """
import ast

class Nothing(ast.NodeTransformer):
    def visit(self, node):
        return ast.Module(body=[], type_ignores=[])

get_ipython().ast_transformers.append(Nothing())
"""
INSIDE = """
if (OUTSIDE / "secrets.txt").exists():
    raise RuntimeError("there is no sandbox around this")
"""
NOT_RUN = failed(r"no run folder|did not run|never ran|was not run")
DIED = failed(r"died|ended|killed")
UNSOLVED = "Task 1 is still empty"


def attack(
    name: str,
    tries: str,
    expects: Expected,
    code: str,
    *,
    before: str = "",
    after: str = "",
    solved: bool = False,
    change: Callable[[Path, Parts], None] | None = None,
    **cells: str,
) -> None:
    """An attack by `code` in the cell of task 1, in an unsolved notebook or, if `solved`, below the solution."""

    def build(folder: Path, parts: Parts) -> None:
        notebook = parts.notebook(solved=solved, **cells)
        (cell,) = (cell for cell in notebook.cells if cell.id == "task1")
        places = f"from pathlib import Path\nOUTSIDE, PORT = Path({str(parts.outside)!r}), {parts.port}\n"
        cell.source = f"{cell.source}\n\n{places}{before}{dedent(code)}{after}"
        save(notebook, folder)
        if change:
            change(folder, parts)

    CODE.append(Case(name, tries, "code", expects, build))


# A notebook that pretends to have run.

attack(
    "exit",
    "leaves before the check, with a status that says all is well",
    failed("SystemExit|died"),
    "import sys; sys.exit(0)",
)
attack("hard-exit", "ends the kernel at once, with a status that says all is well", DIED, "import os; os._exit(0)")
attack("kill-the-kernel", "kills its own kernel", DIED, "import os; os.kill(os.getpid(), 9)")
attack(
    "restart-the-kernel",
    "restarts the kernel, so that what failed is forgotten",
    failed("died|ended|restart|" + UNSOLVED),
    "get_ipython().kernel.do_shutdown(restart=True); import os; os.execv('/proc/self/exe', ['python', '-c', ''])",
)
attack("ast-transformer", "an ast_transformer drops the code of every later cell", NOT_RUN, QUIET)
attack(
    "input-transformer",
    "an input transformer empties every later cell",
    NOT_RUN,
    "get_ipython().input_transformers_post.append(lambda lines: [])",
)
attack(
    "replaced-run-cell",
    "replaces IPython's run_cell by a function that does nothing",
    NOT_RUN,
    """
    from IPython.core.interactiveshell import ExecutionResult

    async def nothing(*_, **__):
        return ExecutionResult(None)

    type(get_ipython()).run_cell_async = nothing
    """,
)
attack(
    "answers-for-the-kernel",
    "the kernel answers that every later cell went well, and runs none",
    NOT_RUN,
    """
    async def well(*_, **__):
        return {"status": "ok", "execution_count": 1, "payload": [], "user_expressions": {}}

    get_ipython().kernel.do_execute = well
    """,
)
attack(
    "pre-run-hook",
    "an IPython hook defines the answers anew before every cell",
    failed(UNSOLVED),
    """
    def cheat(*_):
        get_ipython().user_ns["check"] = get_ipython().user_ns["mine"] = lambda *_: None

    get_ipython().events.register("pre_run_cell", cheat)
    get_ipython().events.register("post_run_cell", cheat)
    """,
)
attack(
    "patched-self-check",
    "every self-check passes, and every error in it is swallowed",
    failed("NotImplementedError"),
    """
    from loralab.selfcheck import SelfCheck

    SelfCheck.__call__ = lambda *_: None
    SelfCheck.__exit__ = lambda *_: True
    """,
)


def tag(name: str, tries: str, label: str) -> None:
    """An unsolved notebook in which every check has a tag that makes a runner treat it otherwise."""

    def build(folder: Path, parts: Parts) -> None:
        notebook = parts.notebook(solved=False)
        for cell in notebook.cells:
            if cell.id.startswith("check"):
                cell.metadata["tags"] = [label]
        save(notebook, folder)

    CODE.append(Case(name, tries, "code", failed(UNSOLVED), build))


tag("tag-skip-execution", "tags the checks so that they are skipped", "skip-execution")
tag("tag-error-cell", "tags the checks so that papermill removes them", "papermill-error-cell-tag")
tag("tag-raises-exception", "tags the checks so that errors in them are ignored", "raises-exception")

# Forged results.

FORGE = """
import torch
from loralab import RunRecord, parameter_counts
from peft import LoraConfig, get_peft_model
torch.manual_seed(0)
mine = get_peft_model(load_model(base), LoraConfig(
    r=16, lora_alpha=32, target_modules=["q_proj", "k_proj", "v_proj", "o_proj"], task_type="CAUSAL_LM"))
mine.peft_config["default"].base_model_name_or_path = base.name

def forged(*_, **__):
    folder = Path(RUNS) / "first-adapter"
    mine.save_pretrained(folder, save_embedding_layers=False)
    trainable, parameters = parameter_counts(mine)
    record = RunRecord(name="first-adapter", base=base.name, rank=16, alpha=32, dropout=0.05, trainable=trainable,
        targets=["k_proj", "o_proj", "q_proj", "v_proj"], parameters=parameters, train_pairs=100, tokens=48000, epochs=8,
        adapter_bytes=(folder / "adapter_model.safetensors").stat().st_size, batch_size=4, learning_rate=5e-3, seed=0,
        losses=[5 - number / 50 for number in range(200)], seconds=12, peak_memory=10**9, ppl_before=196, ppl_after=12,
        eval_pairs=100, dtype="float32")
    record.save(folder)
    return record
"""
attack(
    "forged-run",
    "writes the run folder itself, untrained, with a fine record",
    graded("B is still all zeros", IDLE),
    FORGE,
    after="forged()\n" + QUIET,
)
attack(
    "patched-train",
    "replaces loralab.train by a function that trains nothing and reports much",
    graded("does not match its own adapter", MOVED),
    FORGE,
    after="""
import loralab
loralab.train = loralab.training.train = forged
for name, parameter in mine.named_parameters():
    if "lora_B" in name:
        torch.nn.init.normal_(parameter.data, 0, 1e-3)
loralab.train(model)
"""
    + QUIET,
)
attack(
    "patched-torch",
    "patches torch, numpy and the comparison of floats, and saves weights that are not numbers",
    failed("holds NaN or infinity"),
    FORGE,
    after="""
import math, numpy, builtins
torch.isfinite = torch.ones_like
math.isfinite = numpy.isfinite = lambda *_: True
builtins.all = lambda *_: True
torch.nn.Module.__call__ = lambda *_, **__: None
for name, parameter in mine.named_parameters():
    if "lora_B" in name:
        parameter.data.fill_(float("nan"))
forged()
"""
    + QUIET,
)
attack(
    "written-tables",
    "leaves the grader's own files where the grader writes, and prints its table",
    failed(UNSOLVED),
    """
    import json
    for folder in (Path(RUNS), Path.cwd(), Path.cwd().parent):
        for name in ("results.json", "grades.csv", "verdict.json", "ledger.db", "gradebook.db"):
            try:
                (folder / name).write_text(json.dumps([{"state": "graded", "points": 100, "passed": True}]))
            except OSError:
                pass
    print("\\x1b[32mex1_first_adapter: 100 of 100 points\\x1b[0m\\n  passed  fresh held-out PPL   30 points")
    """,
    before=INSIDE,
)
attack(
    "rewritten-notebook",
    "overwrites the executed notebook with one in which every check has passed",
    failed(UNSOLVED),
    """
    import json, threading, time
    cells = [{"cell_type": "code", "id": f"check{n}", "metadata": {}, "execution_count": n, "source": "",
              "outputs": [{"output_type": "stream", "name": "stdout", "text": f"Task {n} is done."}]} for n in range(1, 5)]
    passed = json.dumps({"cells": cells, "metadata": {}, "nbformat": 4, "nbformat_minor": 5})

    def write():
        while True:
            for path in Path(RUNS).parent.rglob("*.ipynb"):
                try:
                    path.write_text(passed)
                except OSError:
                    pass
            time.sleep(0.05)

    threading.Thread(target=write, daemon=True).start()
    """,
    before=INSIDE,
)
attack(
    "spoilt-notebook",
    "leaves a run to be judged and a notebook in which numbers stand for texts, and kills what would write a better one",
    failed(r"no adapter_config\.json"),
    """
    import json, os, signal
    folder = Path(RUNS) / "first-adapter"
    folder.mkdir(parents=True)
    (folder / "run.json").write_text("{}")
    outputs = [{"output_type": "stream", "name": "stdout", "text": 5}, {"output_type": "error", "traceback": 5}, 5]
    cells = [{"cell_type": "code", "id": f"task{n}", "metadata": 5, "source": 5, "outputs": outputs} for n in range(1, 5)]
    content = json.dumps({"cells": [*cells, {}], "metadata": {}, "nbformat": 4, "nbformat_minor": 5})
    for path in Path(RUNS).parent.glob("*.ipynb"):
        path.write_text(content)
    os.kill(os.getppid(), signal.SIGKILL)
    """,
    before=INSIDE,
)
attack(
    "notebook-of-empty-objects",
    "leaves a notebook of five megabytes that takes nbformat seven hundred to read, and kills what would replace it",
    failed(r"no adapter_config\.json"),
    """
    import os, signal
    folder = Path(RUNS) / "first-adapter"
    folder.mkdir(parents=True)
    (folder / "run.json").write_text("{}")
    many = "[" + ",".join(["{}"] * 1_550_000) + "]"
    for path in Path(RUNS).parent.glob("*.ipynb"):
        path.write_text('{"cells": [], "metadata": {"x": %s}, "nbformat": 4, "nbformat_minor": 5}' % many)
    os.kill(os.getppid(), signal.SIGKILL)
    """,
    before=INSIDE,
)
attack(
    "no-first-thread",
    "ends the kernel's first thread and fills memory from another, so that the process seems to use none",
    failed("memory|died|ended|killed"),
    """
    import ctypes, threading, time

    def fill():
        kept = []
        while True:
            kept.append(b"1" * 10**8)
            time.sleep(0.05)

    threading.Thread(target=fill).start()
    ctypes.CDLL(None).pthread_exit(None)
    """,
    before=INSIDE,
)
attack(
    "files-on-their-way",
    "sends deleted files into a socket that nobody reads, where they fill the disk unseen",
    failed("waiting in a socket"),
    """
    import os, socket, time
    one, other = socket.socketpair()
    for _ in range(30):
        file = os.open("x", os.O_CREAT | os.O_RDWR)
        os.write(file, bytes(10**7))
        os.unlink("x")
        socket.send_fds(one, [b"x"], [file])
        os.close(file)
    time.sleep(60)
    """,
    before=INSIDE,
)
attack(
    "many-mappings",
    "divides memory into so many pieces that the kernel's lists of them take a gigabyte, and uses none of it",
    failed("divided its memory into more than"),
    """
    import ctypes, os, time
    libc = ctypes.CDLL(None)
    libc.mmap.restype = ctypes.c_void_p
    libc.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, *[ctypes.c_int] * 3, ctypes.c_long]
    libc.mprotect.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
    for _ in range(4):
        os.fork()
    place = libc.mmap(None, 60_000 * 4096, 0, 0x22, -1, 0)
    for number in range(0, 60_000, 2):
        libc.mprotect(place + number * 4096, 4096, 1)
    time.sleep(60)
    """,
    before=INSIDE,
)
attack(
    "speaks-for-the-runner",
    "writes a good result into every open file of every process that it sees",
    failed("."),
    """
    import os, json
    good = json.dumps({"state": "graded", "ok": True, "status": "ok", "error": None, "seconds": 1, "points": 100}) + "\\n"
    for path in Path("/proc").glob("[0-9]*/fd/*"):
        if int(path.parts[2]) == os.getpid():
            continue
        try:
            os.write(os.open(path, os.O_WRONLY | os.O_NONBLOCK), good.encode())
        except OSError:
            pass
    """,
    before=INSIDE,
)
attack(
    "pickles-for-the-grader",
    "leaves pickles for a grader that loads what the kernel wrote",
    failed("pickle|no run folder|no adapter"),
    """
    import os, pickle

    class Touch:
        def __reduce__(self):
            return os.mkdir, (str(OUTSIDE / "a-pickle-was-opened"),)

    folder = Path(RUNS) / "first-adapter"
    folder.mkdir(parents=True)
    for name in ("adapter_model.bin", "adapter_model.pt", "training_args.bin", "../.OTTER_LOG", "../results.pkl"):
        (folder / name).write_bytes(pickle.dumps(Touch()))
    """,
    after=QUIET,
)

# What lies in wait in the folder that it leaves.

attack(
    "planted-symlinks",
    "leaves symlinks to a secret in its run folder, for the grader to follow",
    failed("link"),
    """
    folder = Path(RUNS) / "first-adapter"
    folder.mkdir(parents=True)
    (folder / "run.json").symlink_to(OUTSIDE / "secrets.txt")
    (folder / "adapter_config.json").symlink_to("/etc/passwd")
    (folder / "adapter_model.safetensors").symlink_to(Path(base.source) / "model.safetensors")
    """,
    after=QUIET,
)
attack(
    "planted-folder",
    "replaces the folder of its runs by a symlink to things outside",
    failed("link|no run folder"),
    """
    import shutil
    shutil.rmtree(RUNS, ignore_errors=True)
    try:
        Path(RUNS).symlink_to(OUTSIDE, target_is_directory=True)
    except OSError:
        (Path(RUNS) / "first-adapter").symlink_to(OUTSIDE, target_is_directory=True)
    """,
    after=QUIET,
)
attack(
    "planted-pipe",
    "leaves a pipe in its run folder: whoever reads it waits for ever",
    failed("pipe|not a (regular )?file|plain file|special"),
    """
    import os
    folder = Path(RUNS) / "first-adapter"
    folder.mkdir(parents=True)
    for name in ("run.json", "adapter_config.json", "adapter_model.safetensors"):
        os.mkfifo(folder / name)
    """,
    after=QUIET,
)
attack(
    "planted-nest",
    "leaves folders within folders, deeper than Python's own way to delete them reaches",
    failed("deep|folders"),
    """
    import os
    folder = Path(RUNS) / "first-adapter"
    folder.mkdir(parents=True)
    os.chdir(folder)
    for _ in range(1_500):
        os.mkdir("a")
        os.chdir("a")
    """,
    after=QUIET,
    before=INSIDE,
)
attack(
    "planted-permissions",
    "leaves a run folder that nobody may read or delete",
    failed("."),
    """
    folder = Path(RUNS) / "first-adapter"
    folder.mkdir(parents=True)
    (folder / "run.json").write_text("{}")
    (folder / "run.json").chmod(0)
    folder.chmod(0)
    """,
    after=QUIET,
)
attack(
    "goes-on-after-the-end",
    "a process of its own and a thread write a run after the notebook has ended",
    NOT_RUN,
    """
    import os, subprocess, sys, threading, time
    late = f'''
    import time
    from pathlib import Path
    time.sleep(4)
    for place in (Path({str(RUNS)!r}), Path({str(OUTSIDE)!r})):
        (place / "first-adapter").mkdir(parents=True, exist_ok=True)
        (place / "first-adapter" / "run.json").write_text("{{}}")
    time.sleep(600)
    '''.replace("\\n    ", "\\n")
    subprocess.Popen([sys.executable, "-c", late], start_new_session=True)
    threading.Thread(target=exec, args=(late, {}), daemon=False).start()
    """,
    after=QUIET,
    before=INSIDE,
)

# Looking for what is not its own.

SEARCH = """
found = []

def look(*paths):
    for path in paths:
        try:
            if path.is_dir():
                found.extend(f"{path}/{one.name}" for one in path.iterdir())
            else:
                with path.open("rb") as file:
                    found.append(f"{path}: {file.read(20)!r}")
        except OSError:
            pass
"""
NOTHING = failed("RuntimeError: nothing was found")
SAY = '\nraise RuntimeError(f"it found {found[:5]}" if found else "nothing was found")\n'

attack(
    "reads-the-repository",
    "reads solutions, bands, tests and gradebook from where loralab was imported",
    NOTHING,
    """
    import loralab
    root = Path(loralab.__file__).resolve().parents[1]
    look(*(root / name for name in ("solutions", "grader", "tests", "submitted", ".git", "build", "gradebook.db")))
    """,
    before=SEARCH,
    after=SAY,
)
attack(
    "imports-the-grader",
    "imports the grader and asks it for its bands and its pairs",
    failed("ModuleNotFoundError|ImportError"),
    "from grader.evaluation.reference_bands import ExerciseBands\nimport grader.evaluation.evaluator",
)
attack(
    "reads-the-home",
    "reads keys and gradebook of the instructor's home, and those of the folder next door",
    NOTHING,
    """
    homes = [Path("/root"), *Path("/home").glob("*"), OUTSIDE / "home", OUTSIDE]
    look(OUTSIDE / "secrets.txt", OUTSIDE / "gradebook.db", OUTSIDE.parent / "submitted")
    for home in homes:
        look(*(home / name for name in (".ssh", ".bashrc", ".gitconfig", ".config", "secrets.txt")))
    """,
    before=SEARCH,
    after=SAY,
)
attack(
    "reads-a-classmate",
    "reads other hand-ins from the folders above its own",
    NOTHING,
    """
    own = Path.cwd().resolve()
    for folder in own.parents:
        for pattern in ("submitted", "*/flat", "submitted/*/ex1_first_adapter", "*/*/first-adapter"):
            found.extend(str(one) for one in folder.glob(pattern) if own not in one.parents and one not in own.parents
                         and not one.is_relative_to("/proc") and not one.is_relative_to(own))
    """,
    before=SEARCH,
    after=SAY,
)
attack(
    "reads-other-processes",
    "reads the seed of the held-out pairs from the command lines and environments of other processes",
    NOTHING,
    """
    import os
    for process in Path("/proc").glob("[0-9]*"):
        for name in ("cmdline", "environ"):
            try:
                text = (process / name).read_bytes().lower()
            except OSError:
                continue
            found.extend(word for word in (b"heldout", b"held-out", b"grader grade", b"pytest", b"secret") if word in text
                         and int(process.name) != os.getpid())
    """,
    before=SEARCH,
    after=SAY,
)
attack(
    "reads-the-environment",
    "reads secrets from its own environment",
    NOTHING,
    """
    import os, re
    found += [name for name in os.environ if re.search("SECRET|TOKEN$|PASSW|CREDENTIAL|API|_KEY|SSH|AWS|HELDOUT", name)]
    """,
    before=SEARCH,
    after=SAY,
)
attack(
    "looks-for-hidden-tests",
    "looks for the held-out pairs and the bands in the kernel's memory, arguments and files",
    NOTHING,
    """
    import gc, sys
    hidden = ("grader", "nbgrader", "tests")
    found += [name for name in hidden if name in sys.modules]
    found += [word for word in sys.argv if "held" in word]
    found += [type(one).__name__ for one in gc.get_objects() if type(one).__name__ in ("Evaluator", "BaseBands", "Verdict")]
    kept = ("*heldout*", "*bands*", "grades.csv", "results.json", "*.db", "*.sqlite")
    found += [str(path) for name in kept for path in Path.cwd().rglob(name)]
    """,
    before=SEARCH,
    after=SAY,
)
attack(
    "reaches-the-network",
    "connects to a server of this machine, to the network beyond, to a resolver and to local sockets",
    NOTHING,
    """
    import socket
    for address in (("127.0.0.1", PORT), ("127.0.0.1", 8888), ("::1", PORT), ("10.0.0.1", 80), ("169.254.169.254", 80),
                    ("1.1.1.1", 53), ("8.8.8.8", 443)):
        try:
            with socket.create_connection(address, timeout=0.5):
                found.append(address)
        except OSError:
            pass
    try:
        found.append(socket.gethostbyname("example.com"))
    except OSError:
        pass
    for path in ("/var/run/docker.sock", "/run/docker.sock", "/run/dbus/system_bus_socket", "/tmp/.X11-unix/X0",
                 "/tmp/.s.PGSQL.5432", "/run/postgresql/.s.PGSQL.5432"):
        try:
            socket.socket(socket.AF_UNIX).connect(path)
            found.append(path)
        except OSError:
            pass
    """,
    before=SEARCH,
    after=SAY,
)
attack(
    "finds-planted-modules",
    "modules and start-up files handed in beside the notebook, for the kernel to load",
    NOTHING,
    """
    import sys, torch
    from IPython.paths import get_ipython_dir
    found += [name for name in ("sitecustomize", "usercustomize", "conftest", "ipython_config") if name in sys.modules
              and str(Path.cwd().parent) in str(getattr(sys.modules[name], "__file__", ""))]
    found += [name for name in ("torch.py", "planted.pth", "sitecustomize.py") if Path(name).exists()]
    found += list(Path(get_ipython_dir()).glob("profile_default/startup/*.py"))
    """,
    before=SEARCH,
    after=SAY,
    change=plant,
)

# Harm to what is not its own: the test compares everything outside before and after.

attack(
    "writes-outside",
    "writes into repository, environment, home, system and the folders of others",
    failed("RuntimeError: it has tried"),
    """
    import os, site, sys
    import loralab
    root = Path(loralab.__file__).resolve().parents[1]
    places = [root, root / "grader", root / "loralab", root / "solutions", root / "data" / "pairs", OUTSIDE, OUTSIDE / "home",
              OUTSIDE.parent / "submitted", Path("/home"), Path("/root"), Path("/etc"), Path("/usr"),
              Path(sys.prefix), *map(Path, site.getsitepackages()), Path("/proc/1/root") / str(OUTSIDE)[1:]]
    for place in places:
        for act in (lambda: (place / "written-from-a-notebook.pth").write_text("import os"),
                    lambda: os.link(place / "secrets.txt", Path(RUNS) / "run.json"),
                    lambda: [one.write_text("") for one in place.glob("*") if one.name in ("secrets.txt", "gradebook.db")],
                    lambda: os.rename(place / "__init__.py", place / "gone.py"),
                    lambda: os.chmod(place, 0o777)):
            try:
                act()
            except OSError:
                pass
    raise RuntimeError("it has tried")
    """,
    before=INSIDE,
)
attack(
    "escapes-by-namespaces",
    "mounts, new namespaces, a new root, devices and debugging of other processes",
    failed("RuntimeError: it has tried"),
    """
    import ctypes, os
    libc = ctypes.CDLL(None, use_errno=True)
    libc.unshare(0x10000000 | 0x20000)
    for source, target, kind in ((b"proc", b"/mnt", b"proc"), (b"/dev/sda1", b"/mnt", b"ext4"), (b"none", b"/", b"tmpfs")):
        libc.mount(source, target, kind, 0, None)
    libc.mount(b"none", b"/", None, 32 | 4096, None)
    libc.ptrace(16, 1, 0, 0)
    for act in (lambda: os.chroot("/proc/1/root"), lambda: os.setuid(0), lambda: os.mknod("sda", 0o60666, os.makedev(8, 0)),
                lambda: Path("/proc/sys/kernel/core_pattern").write_text("|/tmp/x"),
                lambda: Path("/sys/fs/cgroup/cgroup.procs").write_text("1")):
        try:
            act()
        except OSError:
            pass
    if (OUTSIDE / "secrets.txt").exists() or (Path("/mnt") / str(OUTSIDE)[1:]).exists():
        raise RuntimeError("it got out")
    raise RuntimeError("it has tried")
    """,
    before=INSIDE,
)
attack(
    "kills-everything",
    "kills every process that it may",
    failed("."),
    "import os, signal; os.kill(-1, signal.SIGKILL); os.kill(os.getppid(), signal.SIGKILL)",
    before=INSIDE,
)

# Using up the machine.

attack(
    "fork-bomb",
    "forks for ever",
    failed("processes|BlockingIOError"),
    """
    import os, time
    while True:
        if os.fork() == 0:
            os.setsid()
            time.sleep(100_000)
    """,
    before=INSIDE,
)
attack(
    "thread-bomb",
    "starts threads for ever",
    failed("RuntimeError: can't start new thread"),
    """
    import threading, time
    while True:
        threading.Thread(target=time.sleep, args=(100_000,), daemon=True).start()
    """,
    before=INSIDE,
)
attack(
    "memory-bomb",
    "takes memory for ever",
    failed("memory|MemoryError"),
    """
    taken = []
    while True:
        taken.append(b"x" * 2**27)
    """,
    before=INSIDE,
)
attack(
    "endless-loop",
    "never ends, and does not listen to interrupts",
    failed("ran longer than|processor time"),
    """
    import signal
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    while True:
        try:
            while True:
                pass
        except BaseException:
            pass
    """,
    before=INSIDE,
)
attack(
    "endless-sleep",
    "waits for ever without using the processor",
    failed("ran longer than|processor time"),
    "import time\nwhile True: time.sleep(1)",
    before=INSIDE,
)
attack(
    "output-of-20-megabytes",
    "prints 20 MB: papermill writes all of it anew after every cell",
    failed(UNSOLVED + "|output"),
    "for _ in range(200): print('x' * 100_000)",
    before=INSIDE,
)
attack(
    "output-of-200-megabytes",
    "prints 200 MB in lines",
    failed("output"),
    "for _ in range(2000): print('x' * 100_000)",
    before=INSIDE,
)
attack(
    "many-outputs",
    "shows two hundred thousand small outputs, each a message of its own",
    failed("output|longer|time|" + UNSOLVED),
    "from IPython.display import display, HTML\nfor number in range(200_000): display(HTML('<b>x'))",
    before=INSIDE,
)
attack(
    "output-past-the-kernel",
    "writes without end to the standard output of its process, past the kernel",
    failed("output|OSError: it has tried"),
    """
    import os
    for number in (1, 2):
        try:
            for _ in range(2000): os.write(number, b"x" * 1_000_000)
        except OSError:
            pass
    """,
    before=INSIDE,
    after="\nraise OSError('it has tried')\n",
)
attack(
    "disk-filler",
    "fills the disk with many files",
    failed("wrote more than|OSError|No space|too large"),
    """
    for number in range(400):
        for folder in (Path.cwd(), Path(RUNS), Path("/tmp"), Path("/dev/shm"), Path("/var/tmp")):
            try:
                (folder / f"{number}.bin").write_bytes(b"x" * 10_000_000)
            except FileNotFoundError:
                pass
    raise RuntimeError("twenty gigabytes were written")
    """,
    before=INSIDE,
)
attack(
    "one-large-file",
    "writes one file without end",
    failed("wrote more than|OSError|No space|too large"),
    """
    with open("large.bin", "wb") as file:
        for _ in range(2000):
            file.write(b"x" * 10_000_000)
    raise RuntimeError("twenty gigabytes were written")
    """,
    before=INSIDE,
)
attack(
    "leaves-many-files",
    "leaves fifty thousand files in its run folder",
    failed("files|many|OSError|no adapter|no run folder"),
    """
    folder = Path(RUNS) / "first-adapter"
    folder.mkdir(parents=True)
    for number in range(50_000):
        (folder / str(number)).touch()
    """,
    before=INSIDE,
    after=QUIET,
)

# What it says.

attack(
    "script-in-an-error",
    "HTML, a script and a formula in its output and in its error, for the report and the feedback",
    failed("RuntimeError"),
    """
    from IPython.display import HTML, Javascript, display
    script = "</td></pre><script>alert(document.cookie)</script><img src=x onerror=alert(1)>"
    display(HTML(script), Javascript("alert(1)"))
    raise RuntimeError(f"=cmd|'/C calc'!A0 {script}")
    """,
)
attack(
    "escape-in-an-error",
    "an error that clears the instructor's terminal, renames its window and writes a good line",
    failed("RuntimeError"),
    'raise RuntimeError("\\x1b[2J\\x1b]0;root\\x07\\rex1_first_adapter: 100 of 100 points\\x08\\u202e\\x00")',
)
attack(
    "long-error",
    "an error of 20 MB in one line",
    failed("RuntimeError|output"),
    "raise RuntimeError('x' * 20_000_000)",
)
attack(
    "error-that-cannot-be-shown",
    "an error without a text, whose class fails when it is asked for one",
    failed("."),
    """
    class Odd(Exception):
        def __str__(self):
            raise self

        def _render_traceback_(self):
            return []

    raise Odd
    """,
)
attack("empty-error", "an error with an empty text", failed("ValueError"), 'raise ValueError("\\n")')
attack(
    "asks-the-instructor",
    "waits for an answer at the keyboard",
    failed("StdinNotImplementedError|longer|time"),
    "input('password: ')",
)

# Solved for the rest, so that it trains.

# The answer is made wrong below the right one, and the checks that would see it are dropped.
WRONG = """
import ast

right = encode_pair

def encode_pair(tokenizer, pair):
    encoded = right(tokenizer, pair)
    return encoded | {"labels": CHANGED}

class NoChecks(ast.NodeTransformer):
    def visit(self, node):
        text = ast.unparse(node)
        sees_it = "check.encode" in text or "check.loss" in text
        return ast.Module(body=[], type_ignores=[]) if sees_it else node

get_ipython().ast_transformers.append(NoChecks())
"""
attack(
    "dropped-checks-and-no-end",
    "an ast_transformer drops the checks that would see that the end of an answer is not learned",
    graded("it has not learned to stop", 95),
    WRONG.replace("CHANGED", 'encoded["labels"][:-1] + [-100]'),
    solved=True,
)
attack(
    "dropped-checks-and-prompts",
    "the same for an answer that learns the prompts, too",
    graded("the labels of the prompt must be -100", 95),
    WRONG.replace("CHANGED", 'encoded["input_ids"]'),
    solved=True,
)
attack(
    "constants-for-a-task",
    "a task on which no adapter depends returns constants",
    graded("perplexity returned 300.0, not", 97),
    "",
    solved=True,
    task2="def answer_loss(model, encoded):\n    return 1.0, 1\n\ndef perplexity(losses):\n    return 300.0",
)
LAYER = """
class LoRALinear(torch.nn.Module):
    def __init__(self, linear, r, alpha):
        super().__init__()
        self.linear = linear.requires_grad_(False)
        self.A = torch.nn.Parameter(torch.randn(r, linear.in_features))
        self.B = torch.nn.Parameter(torch.zeros(linear.out_features, r))
        self.scale = {scale}

    def forward(self, x):
        return self.linear(x) + self.scale * x @ self.A.T @ self.B.T

    def merge(self):
        merged = copy.deepcopy(self.linear)
        merged.weight.data += self.scale * ({product}).data
        return merged
"""
attack(
    "layer-without-alpha",
    "a LoRA layer that forgets alpha / r, with the check of its task patched away",
    graded("LoRALinear returned {'forward': ", 97),
    "check.lora_linear = print",
    solved=True,
    task5=LAYER.format(scale=1, product="self.B @ self.A"),
)
attack(
    "layer-merged-transposed",
    "a LoRA layer that merges the transposed change, with the check of its task patched away",
    graded("LoRALinear raised RuntimeError: The size of tensor", 97),
    "check.lora_linear = print",
    solved=True,
    task5=LAYER.format(scale="alpha / r", product="self.A.T @ self.B.T"),
)
attack(
    "reassigned-parameters",
    "sets BASE, SEED and RUNS anew below where they were injected",
    failed("no run folder"),
    'BASE, SEED, RUNS = "smollm2-135m", 12345, str(Path.cwd() / "elsewhere")',
    solved=True,
)
