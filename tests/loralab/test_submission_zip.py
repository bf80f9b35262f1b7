"""Packing a submission."""

import json
import sys
import types
import zipfile

import pytest
import torch
from safetensors.torch import load, save_file

from grader.exercises import ABOUT, EXERCISES, ROOT
from loralab import pack, submission_zip


@pytest.fixture
def runs(tmp_path):
    for name in ("rank-4", "rank-16"):
        folder = tmp_path / "runs" / name
        folder.mkdir(parents=True)
        save_file({"a": torch.randn(64, 64)}, folder / "adapter_model.safetensors", metadata={"format": "pt"})
        (folder / "adapter_config.json").write_text("{}")
        (folder / "run.json").write_text("{}")
        (folder / "training_args.bin").write_bytes(b"not wanted")
    return tmp_path / "runs"


def names_in(path):
    with zipfile.ZipFile(path) as archive:
        return sorted(archive.namelist())


def test_three_files_of_each_run_and_the_notebook_are_packed(runs, tmp_path, capsys):
    notebook = tmp_path / "mine.ipynb"
    notebook.write_text("{}")
    path = pack("ex", runs, ["rank-4", "rank-16"], notebook)
    files = ("adapter_config.json", "adapter_model.safetensors", "run.json")
    assert names_in(path) == sorted(["ex.ipynb", *(f"{run}/{file}" for run in ("rank-4", "rank-16") for file in files)])
    assert "2 runs, the notebook" in capsys.readouterr().out


def test_the_notebook_keeps_the_version_of_its_exercise(runs):
    exercise = EXERCISES["ex1_first_adapter"]
    released = ROOT / "exercises" / exercise.id / exercise.solution.name
    with zipfile.ZipFile(pack(exercise.id, runs, ["rank-4"], released)) as archive:
        metadata = json.loads(archive.read(released.name))["metadata"]
    assert metadata[ABOUT] == {"exercise": exercise.id, "version": exercise.version}


def test_jupyter_tells_where_the_notebook_is(runs, tmp_path, monkeypatch):
    (tmp_path / "open.ipynb").write_text('{"here": 1}')
    monkeypatch.setenv("JPY_SESSION_NAME", str(tmp_path / "open.ipynb"))
    with zipfile.ZipFile(pack("ex", runs, ["rank-4"])) as archive:
        assert archive.read("ex.ipynb") == b'{"here": 1}'


def test_colab_hands_the_notebook_over(runs, monkeypatch):
    message = types.SimpleNamespace(blocking_request=lambda what, timeout_sec: {"ipynb": {"asked": what}})
    monkeypatch.setitem(sys.modules, "google.colab", types.SimpleNamespace(_message=message))
    with zipfile.ZipFile(pack("ex", runs, ["rank-4"])) as archive:
        assert json.loads(archive.read("ex.ipynb")) == {"asked": "get_ipynb"}


def test_without_a_notebook_it_says_what_to_do(runs, capsys, monkeypatch):
    monkeypatch.delenv("JPY_SESSION_NAME", raising=False)
    pack("ex", runs, ["rank-4"])
    assert "hand it in beside the zip" in capsys.readouterr().out


@pytest.mark.parametrize("file", submission_zip.RUN_FILES)
def test_an_incomplete_run_is_named_and_nothing_is_written(runs, file):
    (runs / "rank-16" / file).unlink()
    with pytest.raises(ValueError, match=rf"rank-16 has no {file}: run the cells"):
        pack("ex", runs, ["rank-4", "rank-16"])
    assert list(runs.glob("ex*")) == []


@pytest.mark.parametrize("given", ["missing.ipynb", "runs", "mine.py"])
@pytest.mark.parametrize("in_colab", [False, True])
def test_a_notebook_that_is_not_there_is_refused_before_anything_is_written(
    runs, tmp_path, monkeypatch, given, in_colab
):
    (tmp_path / "open.ipynb").write_text("{}")
    (tmp_path / "mine.py").write_text("")
    monkeypatch.setenv("JPY_SESSION_NAME", str(tmp_path / "open.ipynb"))  # another one is no substitute
    if in_colab:
        monkeypatch.setitem(sys.modules, "google.colab", types.SimpleNamespace())
    with pytest.raises(ValueError, match=rf"{given} is no notebook: give the path of your \.ipynb file"):
        pack("ex", runs, ["rank-4"], tmp_path / given)
    assert list(runs.glob("ex*")) == []


def test_large_adapters_are_stored_in_16_bits(runs, monkeypatch):
    monkeypatch.setattr(submission_zip, "MAX_BYTES", 20_000)
    with zipfile.ZipFile(pack("ex", runs, ["rank-4", "rank-16"])) as archive:
        tensor = load(archive.read("rank-4/adapter_model.safetensors"))["a"]
    assert (tensor.dtype, tensor.shape) == (torch.float16, (64, 64))


def test_a_hand_in_that_stays_too_large_is_not_written(runs, monkeypatch):
    monkeypatch.setattr(submission_zip, "MAX_BYTES", 1000)
    with pytest.raises(ValueError, match="more than 1,000"):
        pack("ex", runs, ["rank-4", "rank-16"])
    assert list(runs.glob("ex*")) == []
