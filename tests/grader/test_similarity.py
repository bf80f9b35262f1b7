"""Which submissions are told to be identical, and which are not."""

import time

import pytest

from grader.submission.similarity import Fingerprint, Group, groups, normalised

LONG = "def f(a, b):\n    " + "\n    ".join(f"x{i} = a + {i} * b" for i in range(15)) + "\n    return x1\n"
RELAID = '"""Mine."""\n# my own work\n' + LONG.replace(" + ", "  +  ").replace("    ", "  ")
STUB = LONG.replace("return x1", "raise NotImplementedError")
SHORT = "y = 1\n"
EX = "ex1"


def of(*sources, **adapters):
    return Fingerprint(dict(adapters), {f"task{i}": source for i, source in enumerate(sources, 1)})


def test_equal_adapters_of_a_run_make_a_group():
    found = groups({("A", EX): of(run="1"), ("B", EX): of(run="1"), ("C", EX): of(run="2"), ("D", EX): of(other="1")})
    assert found == [Group(EX, "adapter", "run", ("A", "B"))]


def test_the_solutions_adapter_makes_a_group_of_one():
    assert groups({("A", EX): of(run="1"), ("B", EX): of(run="2")}, {EX: of(run="1")}) == [
        Group(EX, "adapter", "run", ("A",), reference=True)
    ]


def test_exercises_are_not_compared_with_one_another():
    assert groups({("A", "ex1"): of(run="1"), ("A", "ex2"): of(run="1")}) == []


def test_code_is_the_same_whatever_its_layout_and_comments():
    assert normalised(LONG) == normalised(RELAID)
    assert normalised(LONG) != normalised(LONG.replace("x3", "x33"))
    found = groups({("A", EX): of(LONG, "z = 1"), ("B", EX): of(RELAID, "z = 2")})
    assert found == [Group(EX, "cell", "task1", ("A", "B"))]


def test_a_whole_notebook_is_told_once():
    found = groups({("A", EX): of(LONG, SHORT), ("B", EX): of(RELAID, SHORT)})
    assert found == [Group(EX, "all cells", "", ("A", "B"))]


def test_short_cells_and_unanswered_ones_are_not_told():
    assert groups({("A", EX): of(SHORT, STUB), ("B", EX): of(SHORT, STUB)}) == []


def test_prose_is_compared_by_its_words():
    essay = "It's the rank that limits, " + "and I would count the bits first; " * 20
    assert groups({("A", EX): of(essay), ("B", EX): of(essay.replace(" ", "\n"))}) == [
        Group(EX, "cell", "task1", ("A", "B"))
    ]


@pytest.mark.parametrize(
    "source", ["(" * 99_000, "-" * 99_000 + "1", "'''" + "a" * 90_000, "x\n" * 50_000, "\x00\udcff", "  a\n b"]
)
def test_no_source_brings_the_comparison_down(source):
    started = time.process_time()
    groups({("A", EX): of(source, LONG), ("B", EX): of(source, SHORT)})
    assert time.process_time() - started < 5
