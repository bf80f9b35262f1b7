"""The operating gate: nine points that a finished run must pass before its adapter is used.

They check that the run is complete, that it describes itself correctly, and that the adapter learned to answer the
question it is asked. Whether its answers are good enough for a use, people must decide.
"""

from __future__ import annotations

from pathlib import Path

from ..errors import LoralabError
from .points import Point, judge
from .run import DECISIONS, read_run, with_choices
from .show import show
from .trial import try_on_base

__all__ = ["Point", "gate", "show"]


def gate(
    folder: str | Path,
    *,
    base: str | None = None,
    decision: str | None = None,
    licence: str | None = None,
    data: str | None = None,
    eval_file: str | Path | None = None,
    recompute: bool = False,
) -> list[Point]:
    """Judge the finished run in `folder`, write its model card, and return the nine points in order.

    A run that passes is complete, describes itself correctly and answers the question it is asked; whether its answers
    are good enough is for people to decide. An adapter that was trained elsewhere, without `run.json`, is judged by what
    its folder holds and by what can be measured.

    `base` names the base where the run's own name for it cannot be found; `decision` (keep, merge or swap), `licence`
    (the base's) and `data` (what the pairs are) are kept in `gate.json` for later calls. `eval_file` has the held-out
    pairs; they must be those that the run was measured on, by default the course's. With `recompute` perplexities and
    scores are measured again on them. Raises `LoralabError` with one line if the folder does not hold a LoRA adapter, or
    if the pairs are others.
    """
    folder = Path(folder)
    if decision is not None and decision not in DECISIONS:
        raise LoralabError(f"the decision is {', '.join(DECISIONS)}, not {decision!r}")
    run = read_run(folder, eval_file)
    given = {"decision": decision, "licence": licence, "data": data}
    if known := {name: value for name, value in given.items() if value is not None}:
        run = with_choices(run, known)
    return judge(run, try_on_base(run, base, recompute), recompute)
