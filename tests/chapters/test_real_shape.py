"""The same cells on a base of true size: random weights in SmolLM2-135M's config, behind a local hub folder.

Minutes a chapter, so it is not part of `make test`: `make proof` runs it.
"""

from __future__ import annotations

import shutil

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from loralab import data_path
from tests.chapters.test_chapters import blemishes
from tools.notebooks import chapters, run

COMMIT = "0" * 40
SOURCE = "HuggingFaceTB/SmolLM2-135M"


@pytest.fixture(scope="module")
def hub(tmp_path_factory):
    """A hub cache that holds SmolLM2-135M's shape, with the embedded tokenizer without its chat template."""
    home = tmp_path_factory.mktemp("hub")
    model = home / "hub" / f"models--{SOURCE.replace('/', '--')}"
    snapshot = model / "snapshots" / COMMIT
    torch.manual_seed(0)
    config = AutoConfig.from_pretrained(data_path("configs/smollm2-135m"))
    AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16).save_pretrained(snapshot)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(data_path("base") / name, snapshot)
    (model / "refs").mkdir()
    (model / "refs" / "main").write_text(COMMIT)
    return home


@pytest.mark.slow
@pytest.mark.parametrize("start", ["02", "05"])
def test_a_chapter_runs_on_the_true_shape_of_smollm2(hub, start, tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HOME", str(hub))
    path = next(path for path in chapters() if path.name.startswith(start))
    notebook = run(path, tmp_path, SOURCE)
    assert blemishes(notebook) == []
    printed = "".join(o.get("text", "") for c in notebook.cells if c.cell_type == "code" for o in c.outputs)
    assert "base: SmolLM2-135M" in printed
    assert "no chat template of its own, so ChatML is set" in printed
