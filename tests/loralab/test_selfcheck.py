"""The self-checks of the exercises."""

import pytest

from loralab.selfcheck import NotYet, SelfCheck


def test_a_task_that_is_right_says_so(capsys):
    with SelfCheck("Task 1") as check:
        check(True, "the sum is right", "the sum is wrong", "count again")
    assert capsys.readouterr().out == "Task 1\n  right    the sum is right\nTask 1 is done.\n"


def test_a_task_that_is_wrong_shows_what_is_right_what_is_not_and_a_hint():
    with pytest.raises(NotYet) as error, SelfCheck("Task 1") as check:
        check(True, "the length is right", "", "")
        check(False, "", "the sum is 3", "count again")
    shown = "\n".join(error.value._render_traceback_())
    assert shown == (
        "Task 1\n  right    the length is right\n  not yet  the sum is 3\n  hint     count again\nTask 1 is not right yet."
    )


def test_where_it_is_graded_a_check_that_is_not_met_is_told_and_does_not_stop(monkeypatch, capsys):
    monkeypatch.setenv("LORALAB_SELFCHECK", "tell")
    with SelfCheck("Task 1") as check:
        check(False, "", "the sum is 3", "count again")
    told = capsys.readouterr().out
    assert told == "Task 1\n  not yet  the sum is 3\n  hint     count again\nTask 1 is not right yet.\n"
    with pytest.raises(NotYet, match="KeyError"), SelfCheck("Task 1"):
        {}["labels"]
    with pytest.raises(NotYet, match="still empty"), SelfCheck("Task 1"):
        raise NotImplementedError


def test_an_empty_task_is_not_a_crash():
    with pytest.raises(NotYet, match="Task 1 is still empty"), SelfCheck("Task 1"):
        raise NotImplementedError


def test_an_error_of_the_students_code_is_one_line():
    with pytest.raises(NotYet, match="your code raised KeyError: 'labels'"), SelfCheck("Task 1"):
        {}["labels"]


def test_an_interrupt_stays_an_interrupt():
    with pytest.raises(KeyboardInterrupt), SelfCheck("Task 1"):
        raise KeyboardInterrupt
