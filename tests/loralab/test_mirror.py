"""A base from a mirror of the Hub: $HF_ENDPOINT points at a stand-in on loopback."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from loralab import data_path
from tests.loralab.tiny_wheel import serving

COMMIT = "0123456789" * 4
CODE = """
from loralab import choose_base, load_model, load_tokenizer
from loralab.bases import find_base
from loralab.bases import asked_for, weights_of
base = find_base("someone/tiny")
assert base == choose_base("someone/tiny")
tokenizer, model = load_tokenizer(base), load_model(base)
print(asked_for(base), weights_of(base), tokenizer.eos_token, model.model.norm.weight.tolist())
"""


@pytest.fixture(scope="module")
def repository(tmp_path_factory):
    """A tiny Llama whose last norm is 1 to 8, with the embedded base's tokenizer."""
    folder = tmp_path_factory.mktemp("repository")
    config = LlamaConfig(
        vocab_size=4096, hidden_size=8, intermediate_size=8, num_hidden_layers=1, num_attention_heads=2
    )
    model = LlamaForCausalLM(config)
    with torch.no_grad():
        model.model.norm.weight.copy_(torch.arange(1.0, 9.0))
    model.save_pretrained(folder)
    for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        if (data_path("base") / name).is_file():
            (folder / name).write_bytes((data_path("base") / name).read_bytes())
    return folder


def mirror(folder):
    """Return the answers of a hub that has one model."""

    def answer(path):
        name = path.removeprefix("/someone/tiny/resolve/").partition("/")[2]
        file = folder / name
        if not path.startswith("/someone/tiny/resolve/") or not file.is_file():
            return None
        content = file.read_bytes()
        return content, {"ETag": f'"{hashlib.sha256(content).hexdigest()}"', "X-Repo-Commit": COMMIT}

    return answer


def test_a_hub_id_is_loaded_from_a_mirror(repository, tmp_path):
    with serving(mirror(repository)) as (address, requests):
        environment = os.environ | {
            "HF_ENDPOINT": address,
            "HF_HUB_OFFLINE": "0",
            "HF_HOME": str(tmp_path),
            "NO_PROXY": "127.0.0.1",
            "PYTHONPATH": os.pathsep.join(sys.path),
        }
        done = subprocess.run([sys.executable, "-c", CODE], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == f"someone/tiny {COMMIT} <|im_end|> {[float(i) for i in range(1, 9)]}"
    assert ("GET", f"/someone/tiny/resolve/{COMMIT}/model.safetensors") in requests or any(
        path.endswith("/model.safetensors") for method, path in requests if method == "GET"
    )
