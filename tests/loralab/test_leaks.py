"""Evaluation pairs that are in the training pairs are found, and records that only look alike are not."""

import time
import warnings

import pytest
from typer.testing import CliRunner

from loralab import Pair, data_path, find_leaks, read_pairs, write_pairs
from loralab.cli import app

TAUGHT = [
    Pair(instruction="My Owl is offline. Regards, Reed", output="item: Owl\nname: Reed"),
    Pair(instruction="Where does the rain gauge go?", output="One metre above the ground."),
]


def ask(instruction: str, output: str):
    return find_leaks(
        TAUGHT, [Pair(instruction="Something else.", output="Else."), Pair(instruction=instruction, output=output)]
    )


def test_the_same_instruction_is_found_whatever_its_case_and_punctuation():
    assert ask("my owl is OFFLINE - regards, reed!", "item: Swift").instructions == (1,)


def test_the_same_answer_to_another_question_is_found():
    """The course's first evaluation pairs were like this, and perplexity measured memory."""
    leaks = ask("How high must it sit?", "One metre above the ground.")
    assert (leaks.instructions, leaks.outputs, leaks.exact) == ((), (1,), 1)


def test_labels_are_no_leak_however_often_they_occur():
    rows = [Pair(instruction=f"Message {i} of the day.", output=("bug", "question")[i % 2]) for i in range(20)]
    assert find_leaks(rows[:16], rows[16:]).exact == 0
    assert find_leaks(rows[:16], [rows[3]]).exact == 1  # the same message is one


def test_nearly_the_same_instruction_is_found_and_nearly_the_same_record_is_not():
    long = " ".join(f"word{i}" for i in range(30))
    taught = [Pair(instruction=f"{long} first", output="serial: 1\nname: Reed")]
    leaks = find_leaks(taught, [Pair(instruction=f"{long} second", output="serial: 2\nname: Reed")])
    assert (leaks.near, leaks.exact) == ((0,), 0)
    for missing, near in ((1, 1), (2, 1), (3, 1), (4, 0)):  # of 31 words; 28/31 > 0.9 > 27/31
        asked = " ".join(long.split()[missing:]) + " first"
        assert len(find_leaks(taught, [Pair(instruction=asked, output="x")]).near) == near


def test_the_line_names_counts_and_the_first_pair():
    assert str(ask("How high?", "One metre above the ground.")) == (
        "of 2 evaluation pairs, 0 instructions and 1 answers are in the training pairs, and 0 more instructions nearly "
        "are (first: pair 2); replace them"
    )
    assert str(ask("How high?", "Two.")) == "none of 2 evaluation pairs is in the training pairs"


def test_the_course_s_own_evaluation_pairs_do_not_leak_and_its_facts_do():
    files = {name: read_pairs(data_path(f"pairs/{name}.jsonl")) for name in ("train", "eval", "eval_forms")}
    started = time.perf_counter()
    for name in ("eval", "eval_forms"):
        assert find_leaks(files["train"], files[name]).exact == 0
    assert time.perf_counter() - started < 5
    facts = [read_pairs(data_path(f"pairs/facts/{name}.jsonl")) for name in ("train", "eval")]
    assert len(find_leaks(*facts).outputs) == 100


def test_text_without_a_word_is_compared_as_it_is():
    assert find_leaks([Pair(instruction="?", output="!")], [Pair(instruction="?", output="...")]).instructions == (0,)


@pytest.mark.parametrize("leaking", [True, False])
def test_training_warns_and_records_it(trained, train_pairs, eval_pairs, leaking):
    from loralab import RunRecord

    asked = train_pairs[:4] if leaking else eval_pairs[:4]
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        folder = trained("leaks", pairs=train_pairs[:8], eval_pairs=asked, epochs=1)
    lines = [str(one.message) for one in caught if "evaluation pairs" in str(one.message)]
    assert len(lines) == (1 if leaking else 0)
    assert RunRecord.load(folder).leaks == (4 if leaking else 0)


@pytest.mark.parametrize(("output", "status"), [("item: Owl\nname: Reed", 1), ("item: Owl\nname: Lind", 0)])
def test_check_reports_leaks_and_fails_only_on_exact_ones(tmp_path, output, status):
    train_file, eval_file = tmp_path / "train.jsonl", tmp_path / "eval.jsonl"
    write_pairs(train_file, TAUGHT)
    write_pairs(eval_file, [Pair(instruction="My Owl is off. Regards, Lind", output=output)])
    result = CliRunner().invoke(app, ["check", str(train_file), "--eval", str(eval_file)])
    assert result.exit_code == status
    assert result.stdout.splitlines()[-1].startswith("of 1 evaluation pairs, 0" if status else "none of 1")


def test_check_names_a_broken_evaluation_file(tmp_path):
    train_file = tmp_path / "train.jsonl"
    write_pairs(train_file, TAUGHT)
    result = CliRunner().invoke(app, ["check", str(train_file), "--eval", str(tmp_path / "none.jsonl")])
    assert result.exit_code == 1
    assert "none.jsonl: no such file" in result.stderr
