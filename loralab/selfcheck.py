"""The self-checks of the exercises: what is right, what is not, and one hint without the answer."""

from __future__ import annotations

import os
from traceback import extract_tb
from types import TracebackType

from .errors import one_line


class NotYet(Exception):
    """A task that is not right yet. Shown as its message alone, without a traceback."""

    def _render_traceback_(self) -> list[str]:  # how IPython asks an exception to show itself
        return [str(self)]


def _where(error: Exception) -> str:
    """The last line of a notebook's own functions that an error went through; of the check itself nothing is said."""
    frames = [frame for frame in extract_tb(error.__traceback__) if "ipykernel" in frame.filename]
    inner = [frame for frame in frames if frame.name != "<module>"]
    return f"\n           in {inner[-1].name}, line {inner[-1].lineno}: {inner[-1].line}" if inner else ""


class SelfCheck:
    """Collects the checks of one task and shows them all.

    >>> with SelfCheck("Task 1") as check:
    ...     check(1 + 1 == 2, "the sum is right", "the sum is wrong", "count on your fingers")
    Task 1
      right    the sum is right
    Task 1 is done.

    If a check is not met, or the task's code raises, the block ends with `NotYet`, so that the notebook
    stops there. A grader wants to see what comes of it all the same: with `LORALAB_SELFCHECK=tell` in the environment
    a check that is not met is only told.
    """

    def __init__(self, task: str) -> None:
        self.task = task
        self.lines: list[str] = []
        self.failed = False

    def __call__(self, met: object, right: str, wrong: str, hint: str) -> None:
        """One check: says `right` if `met`, otherwise `wrong` and the `hint`."""
        if met:
            self.lines.append(f"  right    {right}")
        else:
            self.failed = True
            self.lines += [f"  not yet  {wrong}", f"  hint     {hint}"]

    def __enter__(self) -> SelfCheck:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        if isinstance(error, NotImplementedError):
            raise NotYet(f"{self.task} is still empty: write its code in the cell above and run both cells.") from None
        if error is not None:
            if not isinstance(error, Exception):
                return  # an interrupt stays an interrupt
            self.lines.append(f"  not yet  your code raised {one_line(error)}{_where(error)}")
            self.failed = True
        shown = "\n".join([self.task, *self.lines])
        if not self.failed:
            print(f"{shown}\n{self.task} is done.")
        elif error is None and os.environ.get("LORALAB_SELFCHECK") == "tell":
            print(f"{shown}\n{self.task} is not right yet.")
        else:
            raise NotYet(f"{shown}\n{self.task} is not right yet.") from None
