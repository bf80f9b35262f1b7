"""The self-checks of the exercises: what is right, what is not, and one hint without the answer."""

from __future__ import annotations

import math
import os
from collections.abc import Callable
from traceback import extract_tb
from types import TracebackType
from typing import Any

import torch

from .errors import one_line


class NotYet(Exception):
    """A task that is not right yet. Shown as its message alone, without a traceback."""

    def _render_traceback_(self) -> list[str]:  # how IPython asks an exception to show itself
        return [str(self)]


class _Unmet(Exception):
    """Ends the checks of a task: without what is missing, the others say nothing."""


class _Raised(Exception):
    """The student's code raised the exception that is the cause of this one."""


def _where(error: BaseException) -> str:
    """Return the last line of a notebook's own functions that an error passed through; "" if there is none."""
    frames = [frame for frame in extract_tb(error.__traceback__) if "ipykernel" in frame.filename]
    inner = [frame for frame in frames if frame.name != "<module>"]
    return f"\n           in {inner[-1].name}, line {inner[-1].lineno}: {inner[-1].line}" if inner else ""


class SelfCheck:
    """Collects the checks of one task and shows them all.

    >>> with SelfCheck("Task 1") as check:
    ...     found = check.call(add, 1, 1)
    ...     check.need(isinstance(found, int), f"add returned {brief(found)}", "return a number")
    ...     check(found == 2, "the sum is right", f"1 + 1 gave {found}", "count on your fingers")
    Task 1
      right    the sum is right
    Task 1 is done.

    If a check is not met, or the task's code raises, the block ends with `NotYet`, so that the notebook
    stops there. A grader runs the rest as well: with `LORALAB_SELFCHECK=tell` in the environment, a check that is not
    met is only printed.
    """

    def __init__(self, task: str) -> None:
        self.task = task
        self.lines: list[str] = []
        self.failed = False

    def __call__(self, met: object, right: str, wrong: str, hint: str) -> None:
        """Add one check: the line `right` if `met`, otherwise `wrong` and the `hint`."""
        if met:
            self.lines.append(f"  right    {right}")
        else:
            self.failed = True
            self.lines += [f"  not yet  {wrong}", f"  hint     {hint}"]

    def need(self, met: object, wrong: str, hint: str) -> None:
        """Go on only if `met`: otherwise add `wrong` and the `hint`, and skip the other checks of the task."""
        if not met:
            self(False, "", wrong, hint)
            raise _Unmet

    def call(self, function: Callable[..., Any], *arguments: Any, **named: Any) -> Any:
        """Return what the student's `function` returns; if it raises, say so and skip the other checks of the task."""
        try:
            return function(*arguments, **named)
        except Exception as error:
            if _is_empty(error):
                raise
            raise _Raised from error

    def __enter__(self) -> SelfCheck:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> bool:
        if _is_empty(error):
            raise NotYet(f"{self.task} is still empty: write its code in the cell above and run both cells.") from None
        if error is not None and not isinstance(error, Exception):
            return False  # an interrupt stays an interrupt
        if error is not None and not isinstance(error, _Unmet):
            self._add(error)
        shown = "\n".join([self.task, *self.lines])
        if not self.failed:
            print(f"{shown}\n{self.task} is done.")
        elif isinstance(error, _Unmet | None) and os.environ.get("LORALAB_SELFCHECK") == "tell":
            print(f"{shown}\n{self.task} is not right yet.")
        else:
            raise NotYet(f"{shown}\n{self.task} is not right yet.") from None
        return True

    def _add(self, error: Exception) -> None:
        """Add an exception: of the student's code, or of a check that a value of the wrong kind broke."""
        self.failed = True
        cause = error.__cause__ if isinstance(error, _Raised) else error
        assert isinstance(cause, Exception)
        if cause is not error or _where(error):
            self.lines.append(f"  not yet  your code raised {one_line(cause)}{_where(cause)}")
        else:
            self.lines.append(f"  not yet  your result cannot be checked ({one_line(error)})")
            self.lines.append("  hint     compare what your code returns with its docstring")


def _is_empty(error: BaseException | None) -> bool:
    """Tell whether this is the exception of a task without code; torch raises the same kind, with a message."""
    return isinstance(error, NotImplementedError) and not error.args


def close(found: object, wanted: float, tolerance: float = 1e-4) -> bool:
    """Tell whether `found` is a number within a relative `tolerance` of `wanted`; False for anything else."""
    if isinstance(found, str | bytes | bool | None):
        return False
    try:
        return math.isclose(float(found), wanted, rel_tol=tolerance)  # type: ignore[arg-type]
    except Exception:  # whatever an object of a student does when it is read as a number
        return False


def same_tensor(found: object, wanted: torch.Tensor) -> bool:
    """Tell whether `found` is a tensor of the same shape, within 0.01 % of the largest value of `wanted`."""
    if not isinstance(found, torch.Tensor) or found.shape != wanted.shape:
        return False
    reach = wanted.detach().abs().max().item() if wanted.numel() else 0.0
    return torch.allclose(found.detach().to(wanted), wanted.detach(), rtol=0, atol=1e-4 * max(reach, 1e-12))


def brief(value: object, most: int = 60) -> str:
    """Return a value as a message quotes it: its `repr` in one line, cut to `most` characters, a tensor by its shape."""
    if isinstance(value, torch.Tensor) and value.ndim:
        return f"a tensor of shape {tuple(value.shape)}"
    try:
        text = " ".join(repr(value).split())
    except Exception:  # whatever an object of a student does when it is printed
        text = f"a {type(value).__name__}"
    return text if len(text) <= most else f"{text[: most - 4]} ..."
