"""From hand-ins to verdicts: a notebook is rebuilt and run where it is to be run, and what was trained is evaluated."""

from __future__ import annotations

import hashlib
import os
import time
from collections.abc import Generator, Iterable, Iterator, Mapping
from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal

import nbformat
from nbformat import NotebookNode

from loralab import Base
from loralab.cluster import on_this_machine, run_all
from loralab.errors import one_line
from loralab.measure import ADAPTER_FILE
from loralab.pool import processors

from .adapter import Refused
from .autograded import harmless
from .bands import ExerciseBands
from .checks import check_all, handed_in_twice
from .evaluate import Baselines, Evaluator, Evidence, Measured
from .execute import GRADED, NotebookFailed, execute, execute_in_sandbox
from .exercises import EXERCISES, Exercise, Method, Subject
from .identity import asked_for, weights_of
from .intake import BadHandIn, HandIn, Place, Runs, collect_notebook, collect_runs, lay_out, take_in
from .ledger import Key, Ledger, grader_version
from .rebuild import cells_of, rebuild, solution_sources
from .report import perplexities
from .scratch import folder_of_a_job, root_of_a_command
from .similarity import Fingerprint
from .verdict import State, Verdict
from .watch import Limits

Mode = Literal["sandbox", "artifacts", "no sandbox"]


@dataclass(frozen=True)
class Setting:
    """How a class is graded: on which base, with which held-out pairs, and whether notebooks are run and where.

    `seed` is the one that notebooks train with. In mode "artifacts" no student code runs, and the run folders that were
    handed in are graded; in the others those that the rebuilt notebook trains anew. The `cpu` of `limits` is not looked
    at: a notebook may use, for as long as it may run, the processors of the machine on which it does. `again` counts,
    by student and exercise, how often somebody asked for a new verdict on the same submission.
    """

    base: Base
    heldout_seed: int
    mode: Mode = "sandbox"
    seed: int = 0
    limits: Limits = field(default_factory=Limits)
    again: Mapping[tuple[str, str], int] = field(default_factory=dict)

    def key(self, hand_in: HandIn) -> Key:
        """What must be the same for a verdict to be the same: under other limits a notebook may end otherwise.

        Raises `ValueError`, in one line, if the base cannot be had.
        """
        bounds = f", {replace(self.limits, cpu=0)}" if self.mode == "sandbox" else ""
        again = self.again.get((hand_in.student, hand_in.exercise), 0)
        return Key(
            student=hand_in.student,
            exercise=hand_in.exercise,
            digest=hand_in.digest,
            base=f"{asked_for(self.base)}, {weights_of(self.base)}",
            mode=f"{self.mode}, seed {self.seed}{bounds}{f', again {again}' if again else ''}",
            grader_version=grader_version(),
            heldout_seed=self.heldout_seed,
        )

    def limits_here(self) -> Limits:
        """The limits on this machine, with at least two processors: a machine with one of them only takes longer."""
        return replace(self.limits, cpu=self.limits.wall * max(2, processors()))


@dataclass(frozen=True)
class Job:
    """One hand-in to be graded, with all that a process on any machine needs to do it.

    `origin` is that of its notebook, as in `Graded`; `root` is where its folder goes, on this machine.
    """

    hand_in: HandIn
    setting: Setting
    baselines: Baselines
    origin: str
    root: Path | None = None


@dataclass(frozen=True)
class Graded:
    """A verdict, and what else is wanted of the hand-in.

    `notebook` is its notebook as it may be shown: as it was run, or as it was rebuilt, where it was not run now; None
    where there is none to be shown. `origin` says which notebook that is. `fingerprint` is of what was handed in,
    whatever was graded.
    """

    verdict: Verdict
    notebook: bytes | None = None
    origin: str = ""
    fingerprint: Fingerprint = field(default_factory=Fingerprint)
    from_ledger: bool = False


def grade_class(
    places: Iterable[Place],
    setting: Setting,
    ledger: Ledger | None = None,
    workers: int = 2,
    cluster: str | None = None,
) -> Generator[Graded, None, None]:
    """Grade every hand-in once, those that the ledger knows excepted; as each ends, its verdict.

    A verdict enters the ledger when the caller asks for the next one, so whatever the caller does with it is done
    before. What the grader itself failed at is tried a second time, without a cluster alone; if it fails again, that is
    its verdict. Raises `ValueError`, in one line, if the base cannot be had or the cluster cannot be used.
    """
    pending: dict[tuple[str, str], Place] = {}
    for place in places:
        if known := _known(place, setting, ledger):
            yield known
        else:
            pending[place.student, place.exercise] = place
    if pending:  # else no cluster is asked, and no base measured
        yield from _grade_anew(pending, setting, ledger, workers, cluster)


def _known(place: Place, setting: Setting, ledger: Ledger | None) -> Graded | None:
    """What can be said without grading: that nothing can be graded, or what the ledger has."""
    try:
        hand_in = take_in(place, EXERCISES[place.exercise])
    except BadHandIn as problem:
        return Graded(_without_checks(place, setting, "submission failed", str(problem)))
    key = setting.key(hand_in)
    found = ledger.find(key) if ledger else None
    if found is None:
        return None
    try:
        rebuilt = _rebuilt(hand_in)
    except NotebookFailed:
        rebuilt = None
    notebook = rebuilt and harmless(EXERCISES[place.exercise], rebuilt, key.origin)
    return Graded(found, notebook, key.origin, fingerprint(hand_in), from_ledger=True)


def _grade_anew(
    pending: dict[tuple[str, str], Place], setting: Setting, ledger: Ledger | None, workers: int, cluster: str | None
) -> Generator[Graded, None, None]:
    failures: dict[tuple[str, str], str] = {}
    baselines = measure_bases(setting, {exercise for _, exercise in pending}, workers, cluster)
    with nullcontext() if cluster else root_of_a_command() as root:
        for side_by_side in (workers, 1):  # a second time for what the grader failed at
            jobs = _jobs(pending.values(), setting, baselines, root)
            for job, outcome in run_all(grade, jobs, side_by_side, cluster) if pending else ():
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


def _jobs(places: Iterable[Place], setting: Setting, baselines: Baselines, root: Path | None) -> Iterator[Job]:
    """The jobs one by one, so that only the hand-ins that are being graded are in memory."""
    for place in list(places):
        try:
            hand_in = take_in(place, EXERCISES[place.exercise])
        except BadHandIn:
            continue  # it was sound a moment ago
        yield Job(hand_in, setting, baselines, setting.key(hand_in).origin, root)


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
        weights = files.get(ADAPTER_FILE, b"")
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
    job = replace(job, setting=replace(job.setting, base=on_this_machine(job.setting.base)))
    with folder_of_a_job(job.root) as folder:
        try:
            rebuilt = _rebuilt(job.hand_in)
        except NotebookFailed as failure:
            return Graded(_without_checks(job.hand_in, job.setting, "submission failed", str(failure)))
        verdict = _verdict(job, rebuilt, folder)
        return Graded(verdict, rebuilt and _to_be_shown(job, rebuilt, folder), job.origin)


def _rebuilt(hand_in: HandIn) -> NotebookNode | None:
    """None where no notebook was handed in. Raises `NotebookFailed`."""
    return None if hand_in.notebook is None else rebuild(EXERCISES[hand_in.exercise], hand_in.notebook)


def _verdict(job: Job, rebuilt: NotebookNode | None, folder: Path) -> Verdict:
    started = time.perf_counter()
    try:
        ran = _run(job, rebuilt, folder)
    except (NotebookFailed, BadHandIn) as failure:
        verdict = _without_checks(job.hand_in, job.setting, "submission failed", str(failure))
        verdict.seconds["notebook"] = time.perf_counter() - started
        return verdict
    executed = time.perf_counter()
    lay_out(ran.runs, ran.strays, folder / "collected")
    evaluator = Evaluator(job.setting.base, job.setting.heldout_seed, baselines=job.baselines)
    verdict = judge(evaluator, EXERCISES[job.hand_in.exercise], job.hand_in.student, folder / "collected")
    if ran.failure:
        verdict.message = f"{ran.failure}\n{verdict.message}".strip()
    verdict.seconds |= {"notebook": executed - started, "evaluation": time.perf_counter() - executed}
    return verdict


@dataclass(frozen=True)
class _Ran:
    """What is there to be evaluated, and how the notebook that made it ended, if it did not end well."""

    runs: Runs
    strays: tuple[str, ...]
    failure: str = ""


def _run(job: Job, rebuilt: NotebookNode | None, folder: Path) -> _Ran:
    """Runs the notebook if that is the mode. One that fails after it has saved a run is judged by what it saved."""
    hand_in, setting, exercise = job.hand_in, job.setting, EXERCISES[job.hand_in.exercise]
    if setting.mode == "artifacts":
        return _Ran(hand_in.runs, hand_in.strays)
    if rebuilt is None:
        others = [stray for stray in hand_in.strays if stray.endswith(".ipynb")]
        what = f"rename {others[0]} to that" if others else "put the notebook beside the run folders"
        raise BadHandIn(f"no {exercise.id}.ipynb in the hand-in: {what}")
    failure = ""
    try:
        if setting.mode == "sandbox":
            execute_in_sandbox(rebuilt, folder, exercise.id, setting.base, setting.seed, setting.limits_here())
        else:
            _execute_openly(rebuilt, folder, exercise, setting)
    except NotebookFailed as problem:
        failure = str(problem)
    runs, strays = collect_runs(folder / "runs", exercise)
    if failure and not runs:
        raise NotebookFailed(failure)
    return _Ran(runs, strays, failure)


def _to_be_shown(job: Job, rebuilt: NotebookNode, folder: Path) -> bytes:
    """The notebook with the outputs of its run in `folder`, or without any if there are none that can be read."""
    exercise = EXERCISES[job.hand_in.exercise]
    try:
        return harmless(exercise, rebuilt, job.origin, cells_of(collect_notebook(folder, exercise)))
    except Exception:  # student code could write it, and no verdict hangs on it
        return harmless(exercise, rebuilt, job.origin)


def _execute_openly(rebuilt: NotebookNode, folder: Path, exercise: Exercise, setting: Setting) -> None:
    """Run the notebook with all that the grader's own user can do: for those who trust its author."""
    source = folder / "rebuilt" / f"{exercise.id}.ipynb"
    source.parent.mkdir()
    nbformat.write(rebuilt, source)
    os.environ.update(GRADED)  # of this hand-in's own process
    execute(source, folder, asked_for(setting.base), setting.seed, progress=False)


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
    verdict = Verdict(exercise=exercise.id, student=student, base=evaluator.base.name, state="graded")
    if not evidence:
        return verdict.model_copy(update={"state": "submission failed", "message": "\n".join(refused.values())})
    bands = ExerciseBands.load(exercise.id).of(evaluator.base)
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
        state=state,
        message=message,
    )
