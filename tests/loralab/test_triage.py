"""The course's task: every record follows from its message, and no draw repeats what is committed."""

import re
import sys
from difflib import SequenceMatcher
from pathlib import Path

import pytest

from loralab import Pair, data_path, encode_all, read_pairs
from loralab.codes import CODE_BITS, locker_codes, random_codes
from loralab.far import far_pair, far_text, far_word
from loralab.scores import parse_record
from loralab.triage import MAX_DRAW, NOT_SAID, TYPO, WORDS, draw, tables

FILES = {"train": 400, "eval": 200, "eval_forms": 200, "general": 100, "facts/train": 100, "facts/eval": 100}
FAR = {"far/train": 400, "far/eval": 200}
TRIAGE = ("train", "eval", "eval_forms")
# How a name is given, in the forms of all files.
NAMED = re.compile(r"(?:This is |Could you help )(\w+)|(\w+) is my name|(\w+)$")


@pytest.fixture(scope="module")
def committed():
    return {name: read_pairs(data_path(f"pairs/{name}.jsonl")) for name in FILES | FAR}


def the_record_in(message: str) -> str:
    """Read a message as a person who knows the forms does, mistyped words included."""
    serial = re.findall(r"\b[A-Z]-\d{4}\b", message)[-1]  # a correction comes last
    item = next(one for one in tables()["item"] if one["name"][0] == serial[0])
    fault = max(tables()["fault"], key=lambda one: max(_closeness(text, message) for text in one["says"]))
    name = NAMED.search(message)
    return (
        f"fault: {fault['name']}\nitem: {item['name']}\nnext: {fault['next']['fixed' if item['fixed'] else 'portable']}\n"
        f"serial: {serial}\nname: {next(filter(None, name.groups())) if name else NOT_SAID}"
    )


def _closeness(text: str, message: str) -> float:
    """How well the best place in `message` agrees with `text`, from 0 to 1."""
    places = [i for i, letter in enumerate(message) if letter == text[0]]
    return max((SequenceMatcher(None, text, message[i : i + len(text)]).ratio() for i in places), default=0)


@pytest.mark.parametrize("forms", ["seen", "unseen"])
def test_the_record_follows_from_the_message_alone(forms):
    for pair in draw(11, 150, forms):
        assert the_record_in(pair.instruction) == pair.output, pair.instruction


def test_so_it_does_in_the_committed_files(committed):
    for name in TRIAGE:
        for pair in committed[name][:100]:
            assert the_record_in(pair.instruction) == pair.output, pair.instruction


def test_the_files_have_the_stated_sizes(committed):
    assert {name: len(pairs) for name, pairs in committed.items()} == FILES | FAR


def test_no_record_and_no_message_occurs_twice_in_the_files_of_the_task(committed):
    pairs = [pair for name in TRIAGE for pair in committed[name]]
    assert len({pair.output for pair in pairs}) == len(pairs)
    assert len({pair.instruction for pair in pairs}) == len(pairs)


@pytest.mark.parametrize("forms", ["seen", "unseen"])
def test_no_draw_can_repeat_a_committed_record_or_message(committed, forms):
    """Not by luck of the seed: the serial numbers of draws are reserved, and each stands in message and record."""
    for name in TRIAGE:
        for pair in committed[name]:
            assert [number for number in _numbers(pair.instruction) if sum(map(int, number)) % 4 == 0] == []
    for seed in range(5):
        for pair in draw(seed, 200, forms):
            assert {sum(map(int, number)) % 4 for number in _numbers(pair.instruction)} == {0}
            assert parse_record(pair.output)["serial"] in pair.instruction


def _numbers(message: str) -> list[str]:
    return re.findall(r"\b[A-Z]-(\d{4})\b", message)


def test_the_unseen_forms_are_in_no_training_pair(committed):
    fixed = [re.split(r"\{\w+\}|[\[\]]", form) for form in tables()["forms"]["unseen"]]
    telling = [max(parts, key=len).strip(" ,.:?") for parts in fixed]
    assert [text for text in telling if any(text in pair.instruction for pair in committed["train"])] == []


def test_messages_have_15_to_60_words(committed):
    for name in TRIAGE:
        assert [p.instruction for p in committed[name] if len(p.instruction.split()) not in WORDS] == []


def test_each_difficulty_occurs_as_often_as_stated():
    pairs = draw(3, MAX_DRAW)
    corrected = sum(len(_numbers(pair.instruction)) > 1 for pair in pairs) / MAX_DRAW
    nameless = sum(parse_record(pair.output)["name"] == NOT_SAID for pair in pairs) / MAX_DRAW
    others = sum(len(_items_in(pair.instruction)) > 1 for pair in pairs) / MAX_DRAW
    assert 0.03 <= corrected <= 0.12
    assert 0.1 <= nameless <= 0.25
    assert 0.2 <= others <= 0.5
    words = {word for pair in draw(4, MAX_DRAW) for word in re.findall(r"[a-z]{4,}", pair.instruction)}
    known = set(re.findall(r"[a-z]{4,}", data_path("desk/triage.toml").read_text("utf-8")))
    mistyped = sum(bool(set(re.findall(r"[a-z]{4,}", pair.instruction)) - known) for pair in pairs) / MAX_DRAW
    assert words - known and abs(mistyped - TYPO) < 0.03


def _items_in(message: str) -> set[str]:
    return {one["name"] for one in tables()["item"] if one["name"] in message or one["kind"] in message}


def test_drawing_is_repeatable_and_differs_by_seed_and_forms():
    assert draw(7, 50) == draw(7, 50)
    assert not {pair.instruction for pair in draw(7, 50)} & {pair.instruction for pair in draw(8, 50)}
    assert draw(7, 50) != draw(7, 50, "unseen")
    assert draw(7, 50) == draw(7, 80)[:50]


@pytest.mark.parametrize("count", [0, -1, MAX_DRAW + 1])
def test_drawing_none_or_too_many_is_one_line(count):
    with pytest.raises(ValueError, match=f"^{count} pairs cannot be drawn: ask for 1 to 2,000$"):
        draw(0, count)


def test_every_pair_fits_the_embedded_base(committed, tokenizer, base):
    for pairs in committed.values():
        encode_all(pairs, tokenizer, base.max_length)
    for forms in ("seen", "unseen"):
        encode_all([far_pair(pair) for pair in draw(0, 500, forms)], tokenizer, base.max_length)


def test_facts_are_asked_twice_in_different_words_with_the_same_answer(committed):
    for taught, asked in zip(committed["facts/train"], committed["facts/eval"], strict=True):
        assert taught.output == asked.output and taught.instruction != asked.instruction
    assert len({pair.output for pair in committed["facts/train"]}) == 100


def test_the_far_language_keeps_order_numbers_and_case():
    text = "The Wren runs 14 months. The wren!"
    far = far_text(text)
    assert [word.istitle() for word in re.findall(r"[^\W\d]+", far)] == [True, True, False, False, True, False]
    assert "14" in far
    assert far.endswith("!")
    words = far.replace(".", "").replace("!", "").split()
    assert words[0] == words[5]
    assert words[1].lower() == words[6]


def test_the_far_language_tells_words_apart(committed):
    words = {word for pair in committed["train"] for word in re.findall(r"[a-z']+", pair.instruction.lower())}
    assert len({far_word(word) for word in words}) > 0.97 * len(words)


def test_a_far_record_still_names_what_its_message_holds(committed):
    for pair in committed["far/eval"][:50]:
        values = list(parse_record(pair.output).values())
        assert values[3] in pair.instruction


def test_codes_are_random_and_always_the_same():
    codes = locker_codes()
    assert codes == locker_codes() and len({pair.output for pair in codes}) == len(codes) == 16
    assert all(isinstance(pair, Pair) and len(pair.output) == 36 for pair in codes)
    assert CODE_BITS == 128 - 6
    assert random_codes(3, seed=1) == random_codes(3, seed=1) != random_codes(3, seed=2)


def test_the_committed_pairs_are_what_the_recipe_writes(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(str(Path(__file__).parents[2] / "data" / "recipes"))
    import pairs as recipe

    monkeypatch.setattr(recipe, "PAIRS", tmp_path)
    recipe.main()
    sys.modules.pop("pairs")
    for name in FILES | FAR:
        if name != "general":
            written, stored = tmp_path / f"{name}.jsonl", data_path(f"pairs/{name}.jsonl")
            assert written.read_bytes() == stored.read_bytes(), f"{name}.jsonl is stale: run `make generate`"
