"""Finished runs are reused only by the code that measured them, and a failed process is reported."""

import runpy

import pytest

from benchmarks import measured
from benchmarks.ranks_and_targets import Run

SCRIPT = """
from benchmarks.measured import kept

calls = []


@kept
def measure(run):
    calls.append(run)
    return {}
"""


def measured_by(script, *runs):
    """Call `measure` of a fresh copy of the script on each of `runs`, and return those that it really measured."""
    module = runpy.run_path(str(script))
    for run in runs:
        assert module["measure"](run) == {"rank": run.rank}
    return module["calls"]


def test_a_finished_run_is_reused_until_the_code_changes(tmp_path, monkeypatch):
    monkeypatch.setattr(measured, "KEPT", tmp_path / "build")
    script, one, other = tmp_path / "script.py", Run("embedded", 0, rank=4), Run("embedded", 0, rank=16)
    script.write_text(SCRIPT.format('{"rank": run.rank}'))
    assert measured_by(script, one) == [one]
    assert measured_by(script, one, other) == [other]
    script.write_text(SCRIPT.format('{"rank": run.rank + 0}'))
    assert measured_by(script, one) == [one]
    monkeypatch.setattr(measured, "describe", lambda module: "another version of loralab")
    assert measured_by(script, one, other) == [one, other]


def test_a_process_returns_the_json_that_it_prints_last(tmp_path, monkeypatch):
    monkeypatch.setattr(measured, "ROOT", tmp_path)
    script = tmp_path / "script.py"
    script.write_text("import json, os, sys\nprint('loading')\nprint(json.dumps([sys.argv[1:], os.environ['SEED']]))\n")
    assert measured.in_a_process("script", "--only", "one", SEED="3") == [["--only", "one"], "3"]
    script.write_text("raise MemoryError('too much')")
    with pytest.raises(RuntimeError, match=r"(?s)^script --only one failed:\n.*\nMemoryError: too much$"):
        measured.in_a_process("script", "--only", "one")
