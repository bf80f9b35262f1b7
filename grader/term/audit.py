"""The audit of a class that was graded from its run folders: a random share of the notebooks is run after all."""

from __future__ import annotations

import math
import random
import re
from collections.abc import Generator, Sequence
from contextlib import closing
from dataclasses import dataclass

from ..errors import GraderError
from ..pipeline import Graded
from ..submission.find import SubmissionFolder
from ..text import display_line, listed
from ..verdict import Verdict


def share_of(text: str) -> float:
    """Return 0.1 for "10%" or "0.1". Raises `GraderError`."""
    found = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*(%?)\s*", text)
    share = float(found[1]) / (100 if found[2] else 1) if found else 0.0
    if not 0 < share <= 1:
        raise GraderError(f"--audit {display_line(text, 20)}: write a share as 10%")
    return share


def draw_sample(folders: Sequence[SubmissionFolder], share: float, heldout_seed: int) -> list[SubmissionFolder]:
    """Return the submissions to audit, at least one: the same each time, and unpredictable without the secret seed."""
    ordered = sorted(folders, key=lambda folder: (folder.exercise, folder.student))
    count = math.ceil(share * len(ordered) - 1e-9)  # 0.07 * 100 is a little more than 7
    return random.Random(f"audit {heldout_seed}").sample(ordered, count)


@dataclass(frozen=True)
class Audited:
    """One audited submission: in words what its notebook makes other than its run folders, "" if nothing."""

    student: str
    exercise: str
    difference: str


def differences(rerun: Generator[Graded, None, None], graded: Sequence[Graded]) -> Generator[Audited, None, None]:
    """Compare each audited verdict, as it ends, with the one from the run folders."""
    before = {(one.verdict.student, one.verdict.exercise): one.verdict for one in graded}
    with closing(rerun):
        for one in rerun:
            who = one.verdict.student, one.verdict.exercise
            yield Audited(*who, _difference(before[who], one.verdict))


def _difference(submitted: Verdict, rerun: Verdict) -> str:
    if rerun.state == "grader failed":
        return f"the grader failed, so nothing is known: {rerun.message}"
    if rerun.state != submitted.state:
        return f"{submitted.state} from the run folders; when its notebook is run: {rerun.state}: {rerun.message}"
    passed = {(one.run, one.name): one.passed for one in rerun.checks}
    other = [one.label for one in submitted.checks if passed.get((one.run, one.name)) is not one.passed]
    if not other:
        return ""
    return (
        f"{submitted.points:g} points from the run folders, {rerun.points:g} when its notebook is run; "
        f"other outcome of {listed(other)}"
    )
