"""Questions and answers from docstrings: the rules that make them, and what a draw holds."""

import pytest

from loralab import data_path, docstrings, encode, read_pairs
from loralab.docstrings import arguments, draw_general, third_person
from loralab.errors import LoralabError


def test_a_draw_is_the_same_for_one_seed_and_shares_next_to_nothing_with_another():
    first, again, other = draw_general(2**128 - 1, 100), draw_general.__wrapped__(2**128 - 1, 100), draw_general(2, 100)
    assert first == again
    questions = {pair.instruction for pair in first}
    assert len(questions) == 100
    assert len(questions & {pair.instruction for pair in other}) < 10


def test_no_drawn_question_is_in_the_public_pairs_and_all_of_them_fit(base, tokenizer):
    public = {pair.instruction for pair in read_pairs(data_path("pairs/general.jsonl"))}
    for pair in draw_general(3, 100):
        assert pair.instruction not in public
        assert len(encode(pair, tokenizer, base.max_length)["input_ids"]) <= base.max_length


def test_a_library_without_sources_is_one_line(monkeypatch):
    monkeypatch.setattr(docstrings, "standard_library", lambda: [])
    with pytest.raises(LoralabError, match="docstrings for 0 questions, not 100"):
        draw_general.__wrapped__(1, 100)


def test_docstrings_are_found_with_their_names(tmp_path):
    path = tmp_path / "tool.py"
    path.write_text(
        '"""A module that does some sort of a useful thing."""\n'
        'def f():\n    """Return the whole of the answer to everything."""\n'
    )
    assert [(e.kind, e.name, e.module) for e in docstrings.docstrings("pkg/tool.py", path)] == [
        ("module", "pkg.tool", "pkg.tool"),
        ("function", "f", "pkg.tool"),
    ]


def test_a_file_that_does_not_parse_yields_nothing(tmp_path):
    (tmp_path / "bad.py").write_text("def (")
    assert list(docstrings.docstrings("bad.py", tmp_path / "bad.py")) == []


@pytest.mark.parametrize(
    ("sentence", "expected"),
    [
        ("Return the sum.", "returns the sum."),
        ("Copy a file.", "copies a file."),
        ("Pass it on.", None),
        ("Fetch it.", "fetches it."),
        ("The sum.", None),
    ],
)
def test_third_person(sentence, expected):
    assert third_person(sentence) == expected


@pytest.mark.parametrize(
    "text",
    [
        "Do.\n\n:param width: How wide the thing is.\n",
        "Do.\n\nArgs:\n    width (int): How wide the thing is.\n",
        "Do.\n\nParameters\n----------\nwidth : int\n    How wide the thing is.\n",
    ],
)
def test_arguments_are_read_in_three_styles(text):
    assert arguments(text) == [("width", "How wide the thing is.")]
