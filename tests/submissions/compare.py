"""`python -m tests.submissions.compare build/class`: whether every verdict on the class is as it must be."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Annotated

import typer

from grader.verdict import Verdict

from .case import Case, Mode
from .honest import HONEST
from .hostile import HOSTILE


def differences(case: Case, mode: Mode, verdict: Verdict) -> list[str]:
    """What about the verdict is not as the case expects."""
    must = case.expected(mode)
    messages = [verdict.message, *(check.message for check in verdict.checks if not check.passed)]
    wrong = []
    if verdict.state != must.state:
        wrong.append(f"{verdict.state}, not {must.state}: {verdict.message[:200]}")
    if verdict.points is not None and not must.least <= verdict.points <= must.most:
        wrong.append(f"{verdict.points:g} points, not {must.least:g} to {must.most:g}: {messages}")
    if not any(re.search(must.message, message) for message in messages):
        wrong.append(f"{must.message!r} is in none of {messages}")
    if any(not (letter.isprintable() or letter == "\n") for message in messages for letter in message):
        wrong.append(f"a message has characters that a terminal obeys: {messages!r}")
    if max(map(len, messages)) > 5_000:
        wrong.append(f"a message of {max(map(len, messages)):,} characters")
    return wrong


def main(
    course: Annotated[Path, typer.Argument(help="The folder that `python -m tests.submissions` wrote.")],
    artifacts_only: Annotated[bool, typer.Option("--artifacts-only", help="It was graded so.")] = False,
) -> None:
    """Compare the verdicts in grade/results.json with what must come of each hand-in; exit 1 if one differs."""
    mode = "artifacts" if artifacts_only else "sandbox"
    cases = {(case.shown_id, case.exercise): case for case in (*HONEST, *HOSTILE)}
    asked = set(json.loads((course / "expected.json").read_text("utf-8")))
    verdicts = [Verdict.model_validate(one) for one in json.loads((course / "grade/results.json").read_text("utf-8"))]
    graded = {f"{verdict.student}/{verdict.exercise}" for verdict in verdicts}
    wrong = [f"{who}: graded {'and not' if who in graded else 'not, but'} expected" for who in sorted(asked ^ graded)]
    for verdict in verdicts:
        if case := cases.get((verdict.student, verdict.exercise)):
            wrong += [f"{case.name}: {what}" for what in differences(case, mode, verdict)]
    print("\n".join([*wrong, f"{len(verdicts)} verdicts, {len(wrong)} differences from what must come of them"]))
    raise typer.Exit(1 if wrong else 0)


if __name__ == "__main__":
    typer.run(main)
