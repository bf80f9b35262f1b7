"""The pretraining recipe: what text becomes, and that packing loses nothing."""

import random
from pathlib import Path

import pytest


@pytest.fixture(autouse=True)
def recipes(monkeypatch):
    monkeypatch.syspath_prepend(str(Path(__file__).parents[2] / "data" / "recipes"))


def test_held_out_files_share_no_text_with_training():
    from corpus import Entry, split

    entries = [Entry(f"file{i}.py", "m", "n", "function", f"Docstring number {i} about things.") for i in range(400)]
    entries += [
        Entry(f"copy{i}.py", "m", "n", "function", f"Docstring number {i} about things.\nMore.") for i in range(200)
    ]
    train, held = split(entries)
    assert held
    assert not {e.source for e in train} & {e.source for e in held}
    lines = {line for e in train for line in e.text.splitlines()}
    assert all(e.text.splitlines()[0] not in lines for e in held)


def test_packing_keeps_every_token_once_and_restarts_positions():
    from pretrain import ROW, pack

    rng = random.Random(0)
    documents = [[rng.randint(3, 4000) for _ in range(rng.randint(1, 600))] for _ in range(300)]
    tokens, positions = pack(documents)
    assert tokens.shape == positions.shape
    assert tokens.shape[1] == ROW
    assert sorted(tokens[tokens > 0].tolist()) == sorted(t for document in documents for t in document)
    starts = (positions == 0) & (tokens > 0)
    assert starts.sum() == sum(-(-len(document) // ROW) for document in documents)


def test_the_learning_rate_warms_up_and_falls_to_zero_twice():
    from pretrain import TUNING_LR, WARMUP, schedule

    assert schedule(0, 2200, 200) == 1 / WARMUP
    assert schedule(WARMUP, 2200, 200) == pytest.approx(1, abs=0.01)
    assert schedule(1999, 2200, 200) == pytest.approx(0, abs=0.001)
    assert schedule(2000, 2200, 200) == pytest.approx(TUNING_LR)
    assert schedule(2199, 2200, 200) == pytest.approx(0, abs=0.001)
