"""What `loralab env` reports."""

import socket

import pytest
from huggingface_hub import constants
from typer.testing import CliRunner

from loralab import environment
from loralab.cli import app
from loralab.environment import examine


@pytest.fixture
def silent(monkeypatch):
    """Fails at the first attempt to reach a network."""

    def refuse(*_):
        raise AssertionError("the network was used")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)


def found(online=False):
    return {finding.name: finding for finding in examine(online)}


def test_a_sound_environment_passes_without_the_network(silent, monkeypatch):
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    result = CliRunner().invoke(app, ["env"])
    assert result.exit_code == 0, result.output
    lines = result.output.splitlines()
    assert all(line.startswith(("[OK]   ", "[--]   ")) for line in lines)
    for part in ("torch: ", "CPU: ", "memory: ", "precision: ", "cache of loralab: ", "not asked: add --online"):
        assert part in result.output


def test_an_old_and_a_missing_package_fail_with_what_to_do(monkeypatch):
    def version(name):
        if name == "peft":
            raise environment.PackageNotFoundError(name)
        return "0.0.1" if name == "torch" else "99"

    monkeypatch.setattr(environment, "version", version)
    lines = {name: str(finding) for name, finding in found().items()}
    assert lines["peft"].startswith("[FAIL] peft: missing: pip install 'peft>=")
    assert lines["torch"].startswith("[FAIL] torch: 0.0.1, but >=")
    assert lines["transformers"].startswith("[FAIL] transformers: 99, but <6,>=")
    assert CliRunner().invoke(app, ["env"]).exit_code == 1


def test_a_cache_that_cannot_be_written_fails(monkeypatch, tmp_path):
    (tmp_path / "file").touch()
    monkeypatch.setenv("LORALAB_CACHE", str(tmp_path / "file" / "cache"))
    assert str(found()["cache of loralab"]).endswith("cannot be written: make it writable, or choose another folder")


def test_a_part_that_raises_is_reported_and_the_others_follow(monkeypatch):
    monkeypatch.setattr("loralab.data.data_path", lambda name: 1 / 0)
    findings = found()
    assert str(findings["data"]) == "[FAIL] data: ZeroDivisionError: division by zero"
    assert findings["cache of the Hub"].passed


@pytest.mark.parametrize("answers", [True, False])
def test_the_hub_is_asked_only_on_request(answers, monkeypatch):
    asked = []

    def ask(url, timeout):
        asked.append(url)
        if not answers:
            raise ConnectionError("no route to host")

    monkeypatch.setattr("huggingface_hub.get_hf_file_metadata", ask)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    assert found()["Hub"].passed is None and not asked
    finding = found(online=True)["Hub"]
    assert finding.passed is answers and len(asked) == 1
    assert answers or "does not answer (no route to host)" in str(finding)


def test_the_version_is_printed():
    result = CliRunner().invoke(app, ["--version"])
    assert result.exit_code == 0
    assert result.output.startswith("loralab 0.")
