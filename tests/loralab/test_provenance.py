"""Where results come from: two machines are the same if code, data and packages are."""

import os
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from loralab import data_path, provenance
from loralab.provenance import describe


def test_the_description_knows_a_changed_source(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "errands.py").write_text("def go(job): return 1\n")
    before = describe("errands")
    (tmp_path / "errands.py").write_text("def go(job): return 2\n")
    describe.cache_clear()
    assert describe("errands") != before
    assert before.startswith(f"Python 3.{sys.version_info.minor}, loralab 0")


@pytest.fixture
def fresh():
    """The description of loralab, worked out anew at each call."""

    def ask():
        describe.cache_clear()
        return describe("loralab")

    yield ask
    describe.cache_clear()


def test_the_description_knows_changed_data(tmp_path, monkeypatch, fresh):
    monkeypatch.setattr(
        provenance, "data_path", lambda name: data_path(name) if name != "pairs" else tmp_path / "pairs"
    )
    shutil.copytree(data_path("pairs"), tmp_path / "pairs")
    before = fresh()
    (tmp_path / "pairs" / ".DS_Store").touch()
    train = tmp_path / "pairs" / "train.jsonl"
    train.write_bytes(train.read_bytes().replace(b"\n", b"\r\n"))  # as git writes it on Windows
    assert fresh() == before
    train.write_bytes(train.read_bytes() + b"{}\n")
    assert fresh() != before


def test_the_description_knows_other_versions_but_not_what_torch_was_built_for(monkeypatch, fresh):
    def with_versions(**changed):
        monkeypatch.setattr(provenance, "versions", lambda: {"torch": "2.9.0+cpu", "peft": "0.20.0"} | changed)
        return fresh()

    before = with_versions()
    assert before.endswith("torch 2.9.0, peft 0.20.0")
    assert with_versions(torch="2.9.0+cu128") == before
    assert with_versions(torch="2.9.1+cpu") != before
    assert with_versions(peft="0.21.0") != before


def test_a_clone_and_a_wheel_have_the_same_description(tmp_path, fresh):
    installed = tmp_path / "loralab"
    shutil.copytree(Path(provenance.__file__).parent, installed, ignore=shutil.ignore_patterns("__pycache__"))
    clone = Path(__file__).parents[2]
    wheel = tomllib.loads((clone / "pyproject.toml").read_text())["tool"]["hatch"]["build"]["targets"]["wheel"]
    for source, place in wheel["force-include"].items():
        shutil.copytree(clone / source, tmp_path / place)
    code = "import loralab; from loralab.provenance import describe; print(loralab.__file__, describe('loralab'), sep='\\n')"
    environment = os.environ | {"PYTHONPATH": str(tmp_path)}
    told = subprocess.run(
        [sys.executable, "-c", code], env=environment, cwd=tmp_path, capture_output=True, text=True, check=True
    )
    assert told.stdout.splitlines() == [str(installed / "__init__.py"), fresh()]
