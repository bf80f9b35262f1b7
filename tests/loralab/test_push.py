"""`loralab push`: a run goes to a stand-in for the Hub on loopback, through the real client."""

from __future__ import annotations

import base64
import json
import os
import re
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import huggingface_hub
import pytest
from huggingface_hub import constants
from typer.testing import CliRunner

from loralab import push as command
from loralab.cli import app
from loralab.push import FILES, prepare_push, upload

REPO, TOKEN, CARD = "kim/desk-adapter", "hf_secret", "---\nlicense: apache-2.0\n---\nA card.\n"


class Hub(ThreadingHTTPServer):
    """The few endpoints that an upload needs. `refuse` maps a path to the status it is refused with."""

    daemon_threads = True

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Answers)
        self.address = f"http://127.0.0.1:{self.server_port}"
        self.repos: dict[str, dict] = {}  # by name: whether it is private, and its files
        self.stored: dict[str, bytes] = {}  # large files by their SHA-256
        self.tokens: set[str | None] = set()
        self.refuse: dict[str, int] = {}


class Answers(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_POST(self):
        status = next((code for path, code in self.server.refuse.items() if path in self.path), None)
        return self._send({"error": "refused"}, status) if status else self._send(*self._answer(self._body()))

    do_GET = do_POST  # noqa: N815

    def do_PUT(self):
        self.server.stored[self.path.rpartition("/")[2]] = self._body()
        self._send({})

    def _answer(self, body):
        repos = self.server.repos
        if self.path == "/api/validate-yaml":
            bad = "license: [" in body.decode()
            return ({"errors": [{"message": "bad\nlicence"}], "warnings": []}, 400) if bad else ({"errors": []}, 200)
        if self.path == "/api/repos/create":
            asked = json.loads(body)
            name = f"{asked['organization']}/{asked['name']}"
            if name in repos:
                return {"error": "exists", "url": f"{self.server.address}/{name}"}, 409
            repos[name] = {"private": asked["visibility"] == "private", "files": {}}
            return {"url": f"{self.server.address}/{name}"}, 200
        if self.path.endswith("/info/lfs/objects/batch"):
            return {"objects": [self._place(one) for one in json.loads(body)["objects"]], "transfer": "basic"}, 200
        if not (found := re.match(r"/api/models/([^/]+/[^/]+)", self.path)):
            return {"error": "not found"}, 404  # the client also asks for what it can do without
        name = found[1]
        if "/preupload/" in self.path:
            files = json.loads(body)["files"]
            return {"files": [self._mode(file["path"]) for file in files]}, 200
        if "/commit/" in self.path:
            self.server.tokens.add(self.headers["Authorization"])
            for line in map(json.loads, body.splitlines()):
                self._commit(repos[name]["files"], line["key"], line["value"])
            return {"commitUrl": f"{self.server.address}/{name}/commit/{'0' * 40}", "commitOid": "0" * 40}, 200
        return {"id": name, "private": repos[name]["private"], "siblings": [], "tags": []}, 200

    def _place(self, one):
        return one | {"actions": {"upload": {"href": f"{self.server.address}/store/{one['oid']}"}}}

    @staticmethod
    def _mode(path):
        mode = "lfs" if path.endswith(".safetensors") else "regular"
        return {"path": path, "uploadMode": mode, "shouldIgnore": False}

    def _commit(self, files, kind, value):
        if kind == "lfsFile":
            files[value["path"]] = self.server.stored[value["oid"]]
        elif kind == "file":
            files[value["path"]] = base64.b64decode(value["content"])

    def _body(self):
        return self.rfile.read(int(self.headers["Content-Length"] or 0))

    def _send(self, answer, status=200):
        content = json.dumps(answer).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, *_):
        pass


@pytest.fixture
def hub(monkeypatch):
    server = Hub()
    threading.Thread(target=server.serve_forever, daemon=True).start()
    for name, value in {"ENDPOINT": server.address, "HF_HUB_OFFLINE": False, "HF_HUB_DISABLE_XET": True}.items():
        monkeypatch.setattr(constants, name, value)
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    yield server
    server.shutdown()
    server.server_close()


@pytest.fixture
def finished(honest):
    """A run with a card, and with files that are nobody else's business."""
    (honest / "README.md").write_text(CARD)
    (honest / "eval.jsonl").write_text("mine")
    (honest / "checkpoint-1").mkdir()
    (honest / "checkpoint-1" / "README.md").write_text("mine")
    return honest


def name_base(folder, base):
    path = folder / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"base_model_name_or_path": base}))


def failure(call, *arguments) -> str:
    with pytest.raises(ValueError) as error:
        call(*arguments)
    assert "\n" not in str(error.value)
    return str(error.value)


def test_a_run_is_uploaded_whole_and_nothing_else_and_again(hub, finished):
    upload(prepare_push(finished, REPO))
    there = hub.repos[REPO]
    assert there["files"] == {name: (finished / name).read_bytes() for name in FILES}
    assert not there["private"] and hub.tokens == {f"Bearer {TOKEN}"}
    (finished / "README.md").write_text(CARD + "more")
    upload(prepare_push(finished, REPO))
    assert there["files"]["README.md"].endswith(b"more")


def test_the_command_uses_the_endpoint_and_the_token_of_the_environment(hub, finished):
    environment = os.environ | {
        "HF_ENDPOINT": hub.address, "HF_HUB_OFFLINE": "0", "HF_HUB_DISABLE_XET": "1",
        "PYTHONPATH": os.pathsep.join(sys.path),
    }  # fmt: skip
    words = ["-c", "from loralab.cli import app; app()", "push", str(finished), "--to", REPO, "--private"]
    done = subprocess.run([sys.executable, *words], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[0] == f"{hub.address}/{REPO} (private)"
    assert done.stdout.splitlines()[-1] == "uploaded"
    assert hub.repos[REPO]["private"] and set(hub.repos[REPO]["files"]) == set(FILES)


def test_a_dry_run_lists_the_files_and_needs_neither_token_nor_network(finished, monkeypatch):
    monkeypatch.setattr(command, "HfApi", None)
    result = CliRunner().invoke(app, ["push", str(finished), "--to", REPO, "--dry-run"])
    assert result.exit_code == 0, result.output
    lines = result.output.splitlines()
    assert lines[0] == f"{constants.ENDPOINT}/{REPO}" and lines[-1] == "nothing was uploaded (--dry-run)"
    listed = {line.split()[0]: int(line.split()[1].replace(",", "")) for line in lines[1:5]}
    assert listed == {name: (finished / name).stat().st_size for name in FILES}
    assert lines[5] == "note: the base embedded is not on the Hub, so the adapter can be loaded with loralab only"


@pytest.mark.parametrize(
    "to", ["desk", "kim/desk/adapter", "kim/de sk", "/desk", "kim/", "kim/a--b", "kim/" + 99 * "a"]
)
def test_a_wrong_name_is_one_line(finished, to):
    assert "is not the name of a repository: give owner/name" in failure(prepare_push, finished, to)


def test_a_run_without_a_card_is_sent_to_the_gate(honest):
    assert failure(prepare_push, honest, REPO).endswith(f"run `loralab gate {honest}` first")


@pytest.mark.parametrize("named", ["/home/kim/models/tiny", "./tiny", "tiny", "models/tiny", ""])
def test_a_base_that_others_do_not_have_is_refused(finished, tmp_path, monkeypatch, named):
    (tmp_path / "models" / "tiny").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    name_base(finished, named)
    assert "is a local model, which others do not have: push it, too" in failure(prepare_push, finished, REPO)


def test_a_base_of_the_hub_needs_no_note(finished):
    name_base(finished, "Qwen/Qwen2.5-0.5B-Instruct")
    assert "note" not in str(prepare_push(finished, REPO))


@pytest.mark.parametrize(
    ("refused", "status", "message"),
    [
        ("/api/repos/create", 401, "the Hub does not accept your token"),
        ("/api/", 403, "your token may not write there: take one with write access"),
        ("/api/models/", 404, "the Hub has no such owner, or hides it from your token: check --to"),
        ("/info/lfs/", 403, "your token may not write there"),
        ("/commit/", 413, "the Hub answers 413"),
    ],
)
def test_what_the_hub_refuses_is_one_line(hub, finished, refused, status, message):
    hub.refuse[refused] = status
    assert failure(upload, prepare_push(finished, REPO)).startswith(f"{REPO}: {message}")


def test_a_card_that_the_hub_does_not_accept_is_one_line(hub, finished):
    (finished / "README.md").write_text("---\nlicense: [\n---\n")
    assert failure(upload, prepare_push(finished, REPO)).endswith("Invalid metadata in README.md. - bad licence")


def test_private_files_do_not_go_to_a_public_repository(hub, finished):
    upload(prepare_push(finished, REPO))
    hub.repos[REPO]["files"].clear()
    message = failure(upload, prepare_push(finished, REPO, private=True))
    assert message == f"{REPO}: it exists and is public: make it private on the Hub, or give another --to"
    assert hub.repos[REPO]["files"] == {}


def test_without_a_network_or_a_token_it_is_one_line(hub, finished, monkeypatch):
    prepared = prepare_push(finished, REPO)
    hub.shutdown()
    hub.server_close()
    assert f"the Hub at {hub.address} cannot be reached" in failure(upload, prepared)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    huggingface_hub.close_session()
    assert failure(upload, prepared) == f"{REPO}: HF_HUB_OFFLINE is set: unset it to push"
    monkeypatch.setattr(command, "get_token", lambda: None)
    assert failure(upload, prepared).startswith("no token for the Hub: run `hf auth login`")
