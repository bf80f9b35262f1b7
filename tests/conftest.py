"""Fixtures that several rooms share. Nothing here needs a network, a GPU or an account."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["PIP_NO_INDEX"] = "1"  # nothing is fetched, unless a test has an index of its own
os.environ["TOKENIZERS_PARALLELISM"] = "false"

import pytest
import torch
from filelock import FileLock
from peft import LoraConfig, PeftModel, get_peft_model

from grader.evaluation.evaluator import Evaluator
from loralab import Base, Pair, choose_base, data_path, load_model, load_tokenizer, read_pairs, train

ATTENTION = ["q_proj", "k_proj", "v_proj", "o_proj"]
CONFIGS = data_path("configs")


@pytest.fixture(scope="session")
def base() -> Base:
    return choose_base("embedded")


@pytest.fixture(scope="session")
def tokenizer(base):
    return load_tokenizer(base)


@pytest.fixture
def model(base):
    return load_model(base)


@pytest.fixture(scope="session")
def train_pairs() -> list[Pair]:
    return read_pairs(data_path("pairs/train.jsonl"))[:100]


@pytest.fixture(scope="session")
def eval_pairs() -> list[Pair]:
    return read_pairs(data_path("pairs/eval.jsonl"))


class Remembering(Evaluator):
    """An evaluator for tests: it draws half as many pairs, and measures the same weights once.

    Many tests change nothing but the record beside them.
    """

    def pairs(self, subject):
        drawn = super().pairs(subject)
        return drawn | {"fresh": drawn["fresh"][:50], "general": drawn["general"][:50]}

    def after(self, adapter, method, subject):
        self.known = getattr(self, "known", {})
        weights = b"".join(adapter.weights[name].numpy().tobytes() for name in sorted(adapter.weights))
        key = hash((weights, adapter.settings.lora_alpha)), method, subject
        if key not in self.known:
            self.known[key] = super().after(adapter, method, subject)
        return self.known[key]


@pytest.fixture(scope="session")
def evaluator(base) -> Evaluator:
    return Remembering(base, seed=123)


def with_adapter(
    model,
    rank: int = 16,
    targets: list[str] | None = None,
    alpha: float | None = None,
    dropout: float = 0.0,
    **settings,
) -> PeftModel:
    """The model with a LoRA adapter as exercise 1 asks for, unless told otherwise, but without dropout: its masks take time."""
    torch.manual_seed(0)
    config = LoraConfig(
        r=rank,
        lora_alpha=2 * rank if alpha is None else alpha,
        lora_dropout=dropout,
        target_modules=targets or ATTENTION,
        task_type="CAUSAL_LM",
        **settings,
    )
    return get_peft_model(model, config)


@pytest.fixture(scope="session")
def trained(base, tokenizer, train_pairs, eval_pairs, tmp_path_factory) -> Callable[..., Path]:
    """Trains an adapter as exercise 1 does, with what a test changes about it, and gives its run folder."""

    def make(name: str, pairs=None, adapter: dict | None = None, run="first-adapter", on=base, **settings) -> Path:
        folder = tmp_path_factory.mktemp(name) / run
        model = with_adapter(settings.pop("model", None) or load_model(on), **(adapter or {}))
        options = {"eval_pairs": eval_pairs, "eval_answers": 0, "quiet": True} | settings
        train(model, tokenizer, pairs or train_pairs, folder, on, **options)
        return folder

    return make


@pytest.fixture(scope="session")
def _honest(trained, tmp_path_factory) -> Path:
    if "PYTEST_XDIST_WORKER" not in os.environ:
        return trained("honest")
    shared = tmp_path_factory.getbasetemp().parent / "honest"  # the workers' own folders lie beside it
    with FileLock(f"{shared}.lock"):
        return shared if shared.exists() else shutil.copytree(trained("honest"), shared)


@pytest.fixture
def honest(_honest, tmp_path) -> Path:
    """A copy of an honest run of exercise 1, to be spoilt at will."""
    return shutil.copytree(_honest, tmp_path / "first-adapter")
