"""The command line."""

import json

import pytest
from typer.testing import CliRunner

from loralab import read_pairs
from loralab.cli import app
from loralab.errors import LoralabError
from tests.verdicts import claim


@pytest.fixture
def run():
    return lambda *words: CliRunner().invoke(app, [str(word) for word in words])


def test_heldout_writes_the_pairs_of_a_seed(run, tmp_path):
    result = run("heldout", "--seed", 7, "--count", 20, "--out", tmp_path / "fresh.jsonl")
    assert result.exit_code == 0, result.output
    assert len(read_pairs(tmp_path / "fresh.jsonl")) == 20


def test_heldout_refuses_an_impossible_count(run, tmp_path):
    result = run("heldout", "--count", 100_000, "--out", tmp_path / "fresh.jsonl")
    assert result.exit_code == 2
    assert not (tmp_path / "fresh.jsonl").exists()


@pytest.mark.parametrize("out", ["folder", "file/x.jsonl", "file/deeper/x.jsonl"])
def test_heldout_to_where_no_file_can_be_is_one_line_and_leaves_nothing(run, tmp_path, out):
    (tmp_path / "folder").mkdir()
    (tmp_path / "file").write_text("mine")
    result = run("heldout", "--count", 5, "--out", tmp_path / out)
    assert result.exit_code == 2
    assert result.output.startswith(f"Error: {tmp_path / out} cannot be written") and result.output.count("\n") == 1
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["file", "folder"]
    assert (tmp_path / "file").read_text() == "mine"


def test_check_names_the_bad_line_of_my_own_file(run, tmp_path):
    (tmp_path / "mine.jsonl").write_text('{"instruction": "a", "output": "b"}\n{"instruction": "a"}\n')
    result = run("check", tmp_path / "mine.jsonl")
    assert result.exit_code == 1
    assert "mine.jsonl:2: the field 'output' is missing" in result.output


def test_what_the_encoding_of_a_pipe_lacks_is_replaced(tmp_path):
    """On Windows a pipe has the encoding of the system's language, such as cp1252."""
    (tmp_path / "mine.jsonl").write_text('{"instruction": "a", "output": "b"}\n')
    result = CliRunner(charset="cp1252").invoke(app, ["check", str(tmp_path / "mine.jsonl")])
    assert result.exit_code == 0 and "tokens per pair" in result.output


def test_check_with_an_unknown_base_is_one_line(run, tmp_path):
    (tmp_path / "mine.jsonl").write_text('{"instruction": "a", "output": "b"}\n')
    result = run("check", tmp_path / "mine.jsonl", "--base", "embeded")
    assert result.exit_code == 2
    assert result.output.startswith("Error: --base: unknown base 'embeded'") and result.output.count("\n") == 1


def test_check_of_a_good_file_tells_its_lengths(run, tmp_path):
    (tmp_path / "mine.jsonl").write_text('{"instruction": "a", "output": "b"}\n')
    assert "1 good pairs" in run("check", tmp_path / "mine.jsonl").output


@pytest.mark.parametrize("content", ['{"name": ', "{}", "impossible"], ids=["cut", "empty", "impossible"])
def test_a_record_that_cannot_be_is_one_line_in_every_command(run, tmp_path, content):
    job = tmp_path / "sweep" / "lora-qv-r1-s0"
    for folder in (job, tmp_path / "sound"):
        claim().save(folder)
    record = json.loads((job / "run.json").read_text()) | {"parameters": 0}
    (job / "run.json").write_text(json.dumps(record) if content == "impossible" else content)
    commands = [
        ("compare", job, tmp_path / "sound"),
        ("gate", job),
        ("chat", job, "--once", "Where?"),
        ("export", job, "--to", "merged"),
        ("sweep", "--ranks", 1, "--targets", "qv", "--seeds", 1, "--out", job.parent),
    ]
    for command in commands:
        result = run(*command)
        assert result.exit_code == 2, command
        assert result.output.startswith(f"Error: {job / 'run.json'}: ") and result.output.count("\n") == 1


def test_a_defect_keeps_its_traceback(run, monkeypatch):
    monkeypatch.setattr("loralab.compare.read_runs", lambda runs: int("a defect"))
    result = run("compare", "one", "two")
    assert isinstance(result.exception, ValueError) and not isinstance(result.exception, LoralabError)
