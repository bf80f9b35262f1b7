"""From hand-ins to verdicts: a notebook is rebuilt and run where it is to be run, and what was trained is evaluated."""

from __future__ import annotations

import hashlib
import tempfile
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal

import nbformat
from nbformat import NotebookNode

from loralab import PROFILES, Base
from loralab.cluster import on_this_machine, run_all
from loralab.pool import one_line

from .adapter import WEIGHTS_FILE, Refused
from .bands import ExerciseBands
from .checks import check_all, handed_in_twice
from .evaluate import Baselines, Evaluator, Evidence, Measured
from .execute import NotebookFailed, execute, execute_in_sandbox
from .exercises import EXERCISES, Exercise, Method, Subject
from .intake import BadHandIn, HandIn, Place, Runs, collect_notebook, collect_runs, lay_out, take_in
from .ledger import Key, Ledger, grader_version
from .rebuild import rebuild, solution_sources
from .report import perplexities
from .sandbox import Limits
from .similarity import Fingerprint
from .verdict import State, Verdict

MAX_SHOWN = 5_000_000  # bytes of an executed notebook; nbformat may take 200 times as many to read it
Mode = Literal["sandbox", "artifacts", "no sandbox"]


@dataclass(frozen=True)
class Setting:
    """How a class is graded: on which base, with which held-out pairs, and whether notebooks are run and where.

    `seed` is the one that notebooks train with. In mode "artifacts" no student code runs, and the run folders that were
    handed in are graded; in the others those that the rebuilt notebook trains anew.
    """

    base: Base
    heldout_seed: int
    mode: Mode = "sandbox"
    seed: int = 0
    limits: Limits | None = None

    def key(self, hand_in: HandIn) -> Key:
        """What must be the same for a verdict to be the same: under other limits a notebook may end otherwise."""
        bounds = f", {self.limits}" if self.mode == "sandbox" else ""
        return Key(
            student=hand_in.student,
            exercise=hand_in.exercise,
            digest=hand_in.digest,
            base=self.base.name,
            mode=f"{self.mode}, seed {self.seed}{bounds}",
            grader_version=grader_version(),
            heldout_seed=self.heldout_seed,
        )


@dataclass(frozen=True)
class Job:
    """One hand-in to be graded, with all that a process on any machine needs to do it."""

    hand_in: HandIn
    setting: Setting
    baselines: Baselines


@dataclass(frozen=True)
class Graded:
    """A verdict, and what else is wanted of the hand-in.

    `notebook` is its notebook as it was run, or as it was rebuilt, where nothing was run; `fingerprint` is of what was
    handed in, whatever was graded.
    """

    verdict: Verdict
    notebook: NotebookNode | None = None
    fingerprint: Fingerprint = field(default_factory=Fingerprint)
    from_ledger: bool = False


def grade_class(
    places: Iterable[Place],
    setting: Setting,
    ledger: Ledger | None = None,
    workers: int = 2,
    cluster: str | None = None,
) -> Iterator[Graded]:
    """Grade every hand-in once, those that the ledger knows excepted; as each ends, its verdict.

    A verdict enters the ledger when the caller asks for the next one, so whatever the caller does with it is done
    before. What the grader itself failed at is tried a second time, without a cluster alone; if it fails again, that is
    its verdict.
    """
    pending: dict[tuple[str, str], Place] = {}
    for place in places:
        try:
            hand_in = take_in(place, EXERCISES[place.exercise])
        except BadHandIn as problem:
            yield Graded(_without_checks(place, setting, "submission failed", str(problem)))
            continue
        found = ledger.find(setting.key(hand_in)) if ledger else None
        if found:
            yield Graded(found, None, fingerprint(hand_in), from_ledger=True)
        else:
            pending[place.student, place.exercise] = place
    failures: dict[tuple[str, str], str] = {}
    baselines = measure_bases(setting, {exercise for _, exercise in pending}, workers, cluster)
    for side_by_side in (workers, 1):  # a second time for what the grader failed at
        for job, outcome in run_all(grade, _jobs(pending.values(), setting, baselines), side_by_side, cluster):
            who = job.hand_in.student, job.hand_in.exercise
            if isinstance(outcome, Exception):
                failures[who] = f"{type(outcome).__name__}: {outcome}"
                continue
            del pending[who]
            yield replace(outcome, fingerprint=fingerprint(job.hand_in))
            if ledger:
                ledger.record(setting.key(job.hand_in), outcome.verdict)
    for who, place in pending.items():
        message = failures.get(who, "the hand-in changed while it was being graded")
        yield Graded(_without_checks(place, setting, "grader failed", message))


def _jobs(places: Iterable[Place], setting: Setting, baselines: Baselines) -> Iterator[Job]:
    """The jobs one by one, so that only the hand-ins that are being graded are in memory."""
    for place in list(places):
        try:
            yield Job(take_in(place, EXERCISES[place.exercise]), setting, baselines)
        except BadHandIn:
            continue  # it was sound a moment ago


def measure_bases(setting: Setting, exercises: Iterable[str], workers: int, cluster: str | None = None) -> Baselines:
    """What the bases themselves make of the pairs of these exercises; measured once for the whole class.

    Raises `ValueError`, in one line, if a base cannot be measured.
    """
    needed = {(run.method, run.subject) for exercise in exercises for run in EXERCISES[exercise].runs}
    jobs = [(setting.base, setting.heldout_seed, *which) for which in sorted(needed)]
    baselines = {}
    for (_, _, method, subject), outcome in run_all(_measure_base, jobs, workers, cluster):
        if isinstance(outcome, Exception):
            raise ValueError(f"the base {setting.base.name} cannot be measured: {one_line(outcome)}")
        baselines[method, subject] = outcome
    return baselines


def fingerprint(hand_in: HandIn) -> Fingerprint:
    """What of a hand-in is compared with others: the tensors' bytes of its adapters, and the sources of its cells."""
    adapters = {}
    for run, files in hand_in.runs.items():
        weights = files.get(WEIGHTS_FILE, b"")
        header = 8 + int.from_bytes(weights[:8], "little")  # it may differ where the tensors do not
        if tensors := weights[header:]:
            adapters[run] = hashlib.sha256(tensors).hexdigest()
    try:
        sources = solution_sources(hand_in.notebook) if hand_in.notebook is not None else {}
    except NotebookFailed:
        sources = {}
    return Fingerprint(adapters, sources)


def _measure_base(job: tuple[Base, int, Method, Subject]) -> Measured:
    base, heldout_seed, method, subject = job
    return Evaluator(on_this_machine(base), heldout_seed).before(method, subject)


def grade(job: Job) -> Graded:
    """One hand-in from its bytes to its verdict, in a folder that is gone afterwards."""
    hand_in, setting = job.hand_in, replace(job.setting, base=on_this_machine(job.setting.base))
    exercise = EXERCISES[hand_in.exercise]
    started = time.perf_counter()
    with tempfile.TemporaryDirectory(prefix="grading-") as scratch:
        folder = Path(scratch)
        try:
            ran = _run(hand_in, exercise, setting, folder)
        except (NotebookFailed, BadHandIn) as failure:
            verdict = _without_checks(hand_in, setting, "submission failed", str(failure))
            verdict.seconds["notebook"] = time.perf_counter() - started
            return Graded(verdict)
        executed = time.perf_counter()
        lay_out(ran.runs, ran.strays, folder / "collected")
        evaluator = Evaluator(setting.base, setting.heldout_seed, baselines=job.baselines)
        verdict = judge(evaluator, exercise, hand_in.student, folder / "collected")
    if ran.failure:
        verdict.message = f"{ran.failure}\n{verdict.message}".strip()
    verdict.seconds |= {"notebook": executed - started, "evaluation": time.perf_counter() - executed}
    return Graded(verdict, ran.notebook)


@dataclass(frozen=True)
class _Ran:
    """What is there to be evaluated, and how the notebook that made it ended, if it did not end well."""

    runs: Runs
    strays: tuple[str, ...]
    notebook: NotebookNode | None = None
    failure: str = ""


def _run(hand_in: HandIn, exercise: Exercise, setting: Setting, folder: Path) -> _Ran:
    """Runs the notebook if that is the mode. One that fails after it has saved a run is judged by what it saved."""
    rebuilt = rebuild(exercise, hand_in.notebook) if hand_in.notebook is not None else None
    if setting.mode == "artifacts":
        return _Ran(hand_in.runs, hand_in.strays, rebuilt)
    if rebuilt is None:
        others = [stray for stray in hand_in.strays if stray.endswith(".ipynb")]
        what = f"rename {others[0]} to that" if others else "put the notebook beside the run folders"
        raise BadHandIn(f"no {exercise.id}.ipynb in the hand-in: {what}")
    failure = ""
    try:
        if setting.mode == "sandbox":
            execute_in_sandbox(rebuilt, folder, exercise.id, setting.base, setting.seed, setting.limits)
        else:
            _execute_openly(rebuilt, folder, exercise, setting)
    except NotebookFailed as problem:
        failure = str(problem)
    runs, strays = collect_runs(folder / "runs", exercise)
    if failure and not runs:
        raise NotebookFailed(failure)
    return _Ran(runs, strays, _executed(folder, exercise) or rebuilt, failure)


def _executed(folder: Path, exercise: Exercise) -> NotebookNode | None:
    """The notebook as it was run, which is for people to look at; None if it cannot be read, or not cheaply."""
    try:
        written = collect_notebook(folder, exercise)
        return nbformat.reads(written.decode(), as_version=4) if len(written) <= MAX_SHOWN else None
    except Exception:  # student code could write it, and no verdict hangs on it
        return None


def _execute_openly(rebuilt: NotebookNode, folder: Path, exercise: Exercise, setting: Setting) -> None:
    """Run the notebook with all that the grader's own user can do: for those who trust its author."""
    source = folder / "rebuilt" / f"{exercise.id}.ipynb"
    source.parent.mkdir()
    nbformat.write(rebuilt, source)
    base = setting.base.name if setting.base.name in PROFILES else setting.base.source
    execute(source, folder, base, setting.seed, progress=False)


def judge(evaluator: Evaluator, exercise: Exercise, student: str, runs: Path) -> Verdict:
    """The verdict on the run folders in `runs`."""
    evidence: dict[str, Evidence] = {}
    refused: dict[str, str] = {}
    for run in exercise.runs:
        try:
            evidence[run.name] = evaluator.evaluate(run, runs / run.name, elsewhere=exercise.compares_methods)
        except Refused as refusal:
            refused[run.name] = str(refusal)
    twice = handed_in_twice(exercise, evidence, evaluator.base)
    refused |= twice
    evidence = {name: one for name, one in evidence.items() if name not in twice}
    verdict = Verdict(
        exercise=exercise.id, student=student, base=evaluator.base.name, heldout_seed=evaluator.seed, state="graded"
    )
    if not evidence:
        return verdict.model_copy(update={"state": "submission failed", "message": "\n".join(refused.values())})
    bands = ExerciseBands.load(exercise.id).bases.get(evaluator.base.name)
    found = {
        "checks": check_all(exercise, evidence, refused, bands, evaluator.base),
        "claims": {name: one.claim for name, one in evidence.items()},
        "perplexities": perplexities(evidence),
    }
    return verdict.model_copy(update=found)


def _without_checks(who: HandIn | Place, setting: Setting, state: State, message: str) -> Verdict:
    return Verdict(
        exercise=who.exercise,
        student=who.student,
        base=setting.base.name,
        heldout_seed=setting.heldout_seed,
        state=state,
        message=message,
    )
