"""The fact tables, the committed pairs and the fresh held-out pairs drawn from them."""

import re
import sys
from pathlib import Path

import pytest

from loralab import data_path, desk, encode_all, read_pairs

COMMITTED = ("train", "eval", "eval_new", "general")


def plain(text: str) -> str:
    """Only the words of a text, for comparing wordings."""
    return " ".join(re.findall(r"\w+", text.lower()))


@pytest.fixture(scope="module")
def committed():
    return {name: read_pairs(data_path(f"pairs/{name}.jsonl")) for name in COMMITTED}


def test_the_files_have_the_stated_sizes(committed):
    assert {name: len(pairs) for name, pairs in committed.items()} == {
        "train": 400, "eval": 100, "eval_new": 60, "general": 100,
    }  # fmt: skip


def test_each_fact_is_asked_in_seven_wordings_and_no_wording_twice():
    assert len(desk.trained_facts()) >= 150
    wordings = [plain(wording) for fact in desk.facts() for wording in fact.ask]
    assert len(wordings) == 7 * len(desk.facts())
    assert len(set(wordings)) == len(wordings)
    assert len({fact.id for fact in desk.facts()}) == len(desk.facts())
    assert len({fact.answer for fact in desk.facts()}) == len(desk.facts())


def test_answers_have_15_to_60_words(committed):
    for name in ("train", "eval", "eval_new"):
        for pair in committed[name]:
            assert 15 <= len(pair.output.split()) <= 60, pair.output


def test_the_training_file_asks_every_trained_fact_and_no_new_one(committed):
    answers = {pair.output for pair in committed["train"]}
    assert answers == {fact.answer for fact in desk.trained_facts()}
    assert {pair.output for pair in committed["eval"]} == {pair.output for pair in committed["train"][:100]}
    assert not answers & {pair.output for pair in committed["eval_new"]}


def test_fresh_pairs_never_repeat_a_committed_wording(committed):
    """Not by luck of the seed: no held-out wording stands in any committed instruction, framed or not."""
    seen = " | ".join(plain(pair.instruction) for name in COMMITTED for pair in committed[name])
    for fact in desk.facts():
        for wording in fact.ask[desk.FRESH]:
            assert plain(wording) not in seen, wording


def test_every_fresh_pair_is_built_on_a_held_out_wording():
    held_out = {fact.answer: fact.ask[desk.FRESH] for fact in desk.facts()}
    for seed in range(20):
        for pair in desk.draw(seed, 100):
            assert any(wording in pair.instruction for wording in held_out[pair.output])


def test_drawing_is_repeatable_and_differs_by_seed():
    assert desk.draw(7, 50) == desk.draw(7, 50)
    assert desk.draw(7, 50) != desk.draw(8, 50)
    assert len({pair.instruction for pair in desk.draw(7, 300)}) == 300


def test_drawing_more_than_there_is_says_how_much_there_is():
    with pytest.raises(ValueError, match="1000 pairs asked for, but 100 facts have 300 held-out wordings"):
        desk.draw(0, 1000, among=desk.first_facts())


def test_every_pair_fits_the_embedded_base(committed, tokenizer, base):
    for pairs in committed.values():
        encode_all(pairs, tokenizer, base.max_length)


def test_the_far_language_keeps_order_numbers_and_case():
    text = "The Wren runs 14 months. The wren!"
    far = desk.far_text(text)
    assert [word.istitle() for word in re.findall(r"[^\W\d]+", far)] == [True, True, False, False, True, False]
    assert "14" in far
    assert far.endswith("!")
    words = far.replace(".", "").replace("!", "").split()
    assert words[0] == words[5]
    assert words[1].lower() == words[6]


def test_the_far_language_tells_words_apart(committed):
    words = {word for pair in committed["train"] for word in re.findall(r"[a-z']+", pair.output.lower())}
    assert len({desk.far_word(word) for word in words}) > 0.97 * len(words)


def test_the_committed_pairs_are_what_the_recipe_writes(tmp_path, monkeypatch, committed):
    monkeypatch.syspath_prepend(str(Path(__file__).parents[2] / "data" / "recipes"))
    import pairs as recipe

    monkeypatch.setattr(recipe, "PAIRS", tmp_path)
    recipe.main()
    sys.modules.pop("pairs")
    for name in ("train", "eval", "eval_new", "far/train", "far/eval"):
        written, stored = tmp_path / f"{name}.jsonl", data_path(f"pairs/{name}.jsonl")
        assert written.read_bytes() == stored.read_bytes(), f"{name}.jsonl is stale: run `make pairs`"
