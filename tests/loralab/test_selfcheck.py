"""The self-checks of the exercises."""

import numpy as np
import pytest
import torch

from loralab.selfcheck import NotYet, SelfCheck, brief, close, same_tensor


def raises(error):
    raise error


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
    with SelfCheck("Task 1") as check:
        check.need(False, "no dict was returned", "return a dict")
    assert "not yet  no dict was returned" in capsys.readouterr().out
    with pytest.raises(NotYet, match="KeyError"), SelfCheck("Task 1") as check:
        check.call(raises, KeyError("labels"))
    with pytest.raises(NotYet, match="still empty"), SelfCheck("Task 1"):
        raise NotImplementedError


def test_an_empty_task_is_not_a_crash_and_torch_may_raise_the_same_kind():
    with pytest.raises(NotYet, match="Task 1 is still empty"), SelfCheck("Task 1") as check:
        check.call(raises, NotImplementedError())
    with pytest.raises(NotYet, match="your code raised NotImplementedError: no forward"), SelfCheck("Task 1") as check:
        check.call(raises, NotImplementedError("no forward"))


def test_an_error_of_the_students_code_is_one_line():
    with pytest.raises(NotYet, match="your code raised KeyError: 'labels'"), SelfCheck("Task 1") as check:
        check.call(raises, KeyError("labels"))


def test_an_error_of_a_check_is_not_called_the_students():
    with pytest.raises(NotYet, match="your result cannot be checked \\(TypeError"), SelfCheck("Task 1") as check:
        check(None + 1, "", "", "")


def test_what_the_others_need_ends_the_checks_of_a_task():
    with pytest.raises(NotYet) as error, SelfCheck("Task 1") as check:
        check.need(True, "", "")
        check.need(False, "it returned None", "return a list")
        check(False, "", "not reached", "")
    shown = "Task 1\n  not yet  it returned None\n  hint     return a list\nTask 1 is not right yet."
    assert str(error.value) == shown


class Rude:
    """Raises whatever is asked of it."""

    def __float__(self):
        raise RuntimeError("no number")

    def __repr__(self):
        raise RuntimeError("no text")


@pytest.mark.parametrize("found", [None, "2", True, [2.0], 10**400, float("nan"), torch.ones(2), Rude()])
def test_what_is_not_the_number_is_not_close_to_it(found):
    assert not close(found, 2.0)


def test_numbers_of_all_kinds_are_close():
    assert all(close(found, 2.0) for found in (2, 2.0, np.float32(2), torch.tensor(2.0), torch.tensor([2.0])))


def test_tensors_are_the_same_in_shape_and_values():
    wanted = torch.tensor([1.0, -3.0])
    assert same_tensor(wanted + 1e-5, wanted) and same_tensor(wanted.double(), wanted)
    assert not any(same_tensor(found, wanted) for found in (None, [1.0, -3.0], wanted[None], wanted + 0.1, wanted / 0))


def test_a_value_is_quoted_in_one_short_line():
    assert brief(torch.ones(2, 3)) == "a tensor of shape (2, 3)"
    assert brief(Rude()) == "a Rude"
    assert len(brief("a" * 500)) == 60
    assert "\n" not in brief(np.ones((3, 3)))


def test_an_interrupt_stays_an_interrupt():
    with pytest.raises(KeyboardInterrupt), SelfCheck("Task 1"):
        raise KeyboardInterrupt
