"""From submissions to verdicts: read, rebuild the notebook, run it if it is to be run, evaluate what it trained, record."""

from __future__ import annotations

import json
import os
import time
from collections import deque
from collections.abc import Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from itertools import chain
from pathlib import Path
from typing import Literal

import nbformat
from nbformat import NotebookNode
from torch.linalg import LinAlgError  # type: ignore[attr-defined]  # torch's annotations leave it out

from loralab import Base
from loralab.bases import asked_for, weights_of
from loralab.cluster import on_this_machine, run_all
from loralab.errors import LoralabError, one_line
from loralab.pool import processors

from .errors import BadSubmission, GraderError, NotebookFailed, Refused
from .evaluation.checks import check_all, submitted_twice
from .evaluation.effect import sketch
from .evaluation.evaluator import Baselines, Evaluator, Evidence, Measured, perplexities
from .evaluation.functions import SCRIPT, Outcome, compare, draw_calls
from .evaluation.reference_bands import ExerciseBands
from .exercises import EXERCISES, Exercise, Method, Subject
from .records.ledger import Key, Ledger, decisive_code
from .sandbox.execute import GRADED, Afterwards, execute, execute_in_sandbox, read_answers
from .sandbox.limits import Limits
from .sandbox.workdir import folder_of_a_job, root_of_a_command
from .submission.find import SubmissionFolder
from .submission.intake import Runs, Submission, collect_notebook, collect_runs, lay_out, take_in
from .submission.rebuild import cells_of, other_version, rebuild
from .submission.sanitize import harmless
from .submission.similarity import Fingerprint, fingerprint
from .verdict import State, Verdict

Mode = Literal["sandbox", "artifacts", "no sandbox"]


@dataclass(frozen=True)
class GradingSetup:
    """How a class is graded: on which base, with which held-out pairs, and whether notebooks are run and where.

    `seed` is the one that notebooks train with. In mode "artifacts" no student code runs, and the run folders that were
    submitted are graded; in the others those that the rebuilt notebook trains. The `cpu` of `limits` is not looked
    at: a notebook may use, for as long as it may run, the processors of the machine on which it does. `again` counts,
    by student and exercise, how often somebody asked for a new verdict on the same submission.
    """

    base: Base
    heldout_seed: int
    mode: Mode = "sandbox"
    seed: int = 0
    limits: Limits = field(default_factory=Limits)
    again: Mapping[tuple[str, str], int] = field(default_factory=dict)

    def key(self, submission: Submission) -> Key:
        """Return all that the verdict depends on: under other limits a notebook may end differently.

        Raises `LoralabError` if the base is unavailable.
        """
        bounds = "" if self.mode == "artifacts" else f", {replace(self.limits, cpu=0)}"
        again = self.again.get((submission.student, submission.exercise), 0)
        return Key(
            student=submission.student,
            exercise=submission.exercise,
            digest=submission.digest,
            base=f"{asked_for(self.base)}, {weights_of(self.base)}",
            mode=f"{self.mode}, seed {self.seed}{bounds}{f', again {again}' if again else ''}",
            grader_version=decisive_code(),
            heldout_seed=self.heldout_seed,
        )

    def limits_here(self) -> Limits:
        """Return the limits for this machine; with one processor a notebook gets the time of two."""
        return replace(self.limits, cpu=self.limits.wall * max(2, processors()))


@dataclass(frozen=True)
class GradingJob:
    """One submission to be graded, with all that a process on any machine needs to do it.

    `origin` is that of its notebook, as in `Graded`; `root` is where its folder goes, on this machine.
    """

    folder: SubmissionFolder
    submission: Submission
    setup: GradingSetup
    baselines: Baselines
    origin: str
    root: Path | None = None


@dataclass(frozen=True)
class Graded:
    """A verdict, and what else is wanted of the submission.

    `notebook` is its notebook as it may be shown: as it was run, or as it was rebuilt, where it was not run now; None
    where there is none to be shown. `origin` says which notebook that is. `fingerprint` is of what was submitted,
    whatever was graded.
    """

    verdict: Verdict
    notebook: bytes | None = None
    origin: str = ""
    fingerprint: Fingerprint = field(default_factory=Fingerprint)
    from_ledger: bool = False


def grade_class(
    folders: Iterable[SubmissionFolder],
    setup: GradingSetup,
    ledger: Ledger | None = None,
    workers: int = 2,
    cluster: str | None = None,
) -> Generator[Graded, None, None]:
    """Grade every submission once, except those that the ledger knows, and give each verdict as soon as it is reached.

    A verdict is in the ledger before it is given. What the grader itself failed at is tried a second time, without a
    cluster alone; if it fails again, that is its verdict. Raises `LoralabError` if the base or the cluster is unavailable.
    """
    return _Class(setup, ledger, workers, cluster).grade(folders)


@dataclass
class _Class:
    """A class while it is graded: each submission is read once, when it is its turn, so that few are in memory."""

    setup: GradingSetup
    ledger: Ledger | None
    workers: int
    cluster: str | None
    baselines: dict[tuple[Method, Subject], Measured] = field(default_factory=dict)
    known: deque[Graded] = field(default_factory=deque)  # found between jobs, and not given yet
    failures: dict[SubmissionFolder, str] = field(default_factory=dict)

    def grade(self, folders: Iterable[SubmissionFolder]) -> Generator[Graded, None, None]:
        looked_up = self._look_up(folders)
        for first in looked_up:
            if isinstance(first, Graded):
                yield first
                continue
            with nullcontext() if self.cluster else root_of_a_command() as root:
                yield from self._run(self._jobs(chain([first], looked_up), root), self.workers)
                if self.failures:  # a second time, one by one
                    again, self.failures = self._look_up(self.failures), {}
                    yield from self._run(self._jobs(again, root), 1)
        for folder, message in self.failures.items():
            yield Graded(_without_checks(folder, self.setup, "grader failed", message))

    def _look_up(self, folders: Iterable[SubmissionFolder]) -> Iterator[Graded | tuple[SubmissionFolder, Submission]]:
        """Read each submission; give what is known without grading it, or else what must be graded."""
        for folder in folders:
            try:
                submission = take_in(folder, EXERCISES[folder.exercise])
            except BadSubmission as problem:
                yield Graded(_without_checks(folder, self.setup, "submission failed", str(problem)))
            else:
                yield self._recorded(submission) or (folder, submission)

    def _recorded(self, submission: Submission) -> Graded | None:
        key = self.setup.key(submission)
        found = self.ledger.find(key) if self.ledger else None
        if found is None:
            return None
        try:
            rebuilt = _rebuilt(submission)
        except NotebookFailed:
            rebuilt = None
        notebook = None if rebuilt is None else harmless(EXERCISES[submission.exercise], rebuilt, key.origin)
        return Graded(found, notebook, key.origin, fingerprint(submission), from_ledger=True)

    def _jobs(
        self, looked_up: Iterable[Graded | tuple[SubmissionFolder, Submission]], root: Path | None
    ) -> Iterator[GradingJob]:
        for one in looked_up:
            if isinstance(one, Graded):
                self.known.append(one)
            else:
                folder, submission = one
                baselines = self._baselines(submission)
                yield GradingJob(folder, submission, self.setup, baselines, self.setup.key(submission).origin, root)

    def _baselines(self, submission: Submission) -> Baselines:
        """Measure the base for the runs that can be evaluated: those that were submitted, or that a notebook trains."""
        runs = EXERCISES[submission.exercise].runs
        if self.setup.mode == "artifacts":
            runs = tuple(run for run in runs if run.name in submission.runs)
        elif submission.notebook is None:
            runs = ()
        needed = {(run.method, run.subject) for run in runs}
        self.baselines |= measure_bases(self.setup, needed - self.baselines.keys(), self.workers, self.cluster)
        return {which: self.baselines[which] for which in needed}

    def _run(self, jobs: Iterable[GradingJob], workers: int) -> Iterator[Graded]:
        for job, outcome in run_all(grade, jobs, workers, self.cluster):
            if isinstance(outcome, Exception):
                self.failures[job.folder] = f"{type(outcome).__name__}: {outcome}"
            else:
                if self.ledger:
                    self.ledger.record(self.setup.key(job.submission), outcome.verdict)
                yield replace(outcome, fingerprint=fingerprint(job.submission))
            while self.known:
                yield self.known.popleft()
        while self.known:
            yield self.known.popleft()


def measure_bases(
    setup: GradingSetup, needed: Iterable[tuple[Method, Subject]], workers: int, cluster: str | None = None
) -> Baselines:
    """Measure what the bases themselves make of these pairs; once is enough for a whole class.

    Raises `LoralabError` if a base cannot be measured.
    """
    jobs = [(setup.base, setup.heldout_seed, *which) for which in sorted(needed)]
    baselines = {}
    for (_, _, method, subject), outcome in run_all(_measure_base, jobs, workers, cluster) if jobs else ():
        if isinstance(outcome, Exception):
            why = str(outcome) if isinstance(outcome, LoralabError) else one_line(outcome)
            raise GraderError(f"the base {setup.base.name} cannot be measured: {why}")
        baselines[method, subject] = outcome
    return baselines


def _measure_base(job: tuple[Base, int, Method, Subject]) -> Measured:
    base, heldout_seed, method, subject = job
    return Evaluator(on_this_machine(base), heldout_seed).before(method, subject)


def grade(job: GradingJob) -> Graded:
    """Grade one submission, from its bytes to its verdict, in a temporary folder."""
    graded, submission = _grade(job), job.submission
    if submission.notebook is not None:
        graded.verdict.other_version = other_version(EXERCISES[submission.exercise], submission.notebook)
    return graded


def _grade(job: GradingJob) -> Graded:
    job = replace(job, setup=replace(job.setup, base=on_this_machine(job.setup.base)))
    with folder_of_a_job(job.root) as folder:
        try:
            rebuilt = _rebuilt(job.submission)
        except NotebookFailed as failure:
            return Graded(_without_checks(job.submission, job.setup, "submission failed", str(failure)))
        verdict = _run_and_judge(job, rebuilt, folder)
        return Graded(verdict, None if rebuilt is None else _to_be_shown(job, rebuilt, folder), job.origin)


def _rebuilt(submission: Submission) -> NotebookNode | None:
    """Rebuild the notebook; None if none was submitted. Raises `NotebookFailed`."""
    return None if submission.notebook is None else rebuild(EXERCISES[submission.exercise], submission.notebook)


def _run_and_judge(job: GradingJob, rebuilt: NotebookNode | None, folder: Path) -> Verdict:
    started = time.perf_counter()
    try:
        ran = _run(job, rebuilt, folder)
    except (NotebookFailed, BadSubmission) as failure:
        verdict = _without_checks(job.submission, job.setup, "submission failed", str(failure))
        verdict.seconds["notebook"] = time.perf_counter() - started
        return verdict
    executed = time.perf_counter()
    lay_out(ran.runs, ran.unexpected, folder / "collected")
    evaluator = Evaluator(job.setup.base, job.setup.heldout_seed, baselines=job.baselines)
    exercise = EXERCISES[job.submission.exercise]
    verdict = judge(evaluator, exercise, job.submission.student, folder / "collected", ran.functions)
    if ran.failure:
        verdict.message = f"{ran.failure}\n{verdict.message}".strip()
    verdict.seconds |= {"notebook": executed - started, "evaluation": time.perf_counter() - executed}
    return verdict


@dataclass(frozen=True)
class _Ran:
    """What is there to be evaluated, and how the notebook that made it ended, if it did not end well.

    `functions` says how the functions of its tasks answered; None if they were not asked.
    """

    runs: Runs
    unexpected: tuple[str, ...]
    failure: str = ""
    functions: list[Outcome] | None = None


def _run(job: GradingJob, rebuilt: NotebookNode | None, folder: Path) -> _Ran:
    """Run the notebook if that is the mode. If it fails after saving a run, what it saved is graded."""
    submission, setup, exercise = job.submission, job.setup, EXERCISES[job.submission.exercise]
    if setup.mode == "artifacts":
        return _Ran(submission.runs, submission.unexpected)
    if rebuilt is None:
        others = [name for name in submission.unexpected if name.endswith(".ipynb")]
        what = f"rename {others[0]} to that" if others else "put the notebook beside the run folders"
        raise BadSubmission(f"no {exercise.id}.ipynb in the submission: {what}")
    failure, functions = "", None
    try:
        if setup.mode == "sandbox":
            calls = draw_calls(exercise, setup.base, setup.heldout_seed, submission.digest)
            asked = Afterwards(SCRIPT, json.dumps([call.text for call in calls]))
            execute_in_sandbox(rebuilt, folder, exercise.id, setup.base, setup.seed, setup.limits_here(), asked)
        else:
            _execute_openly(rebuilt, folder, exercise, setup)
    except NotebookFailed as problem:
        failure = str(problem)
    runs, unexpected = collect_runs(folder / "runs", exercise)
    if failure and not runs:
        raise NotebookFailed(failure)
    if setup.mode == "sandbox":
        functions = compare(exercise, calls, read_answers(folder))
    return _Ran(runs, unexpected, failure, functions)


def _to_be_shown(job: GradingJob, rebuilt: NotebookNode, folder: Path) -> bytes:
    """Return the notebook with the outputs of its run in `folder`, or without outputs if they cannot be read."""
    exercise = EXERCISES[job.submission.exercise]
    try:
        return harmless(exercise, rebuilt, job.origin, cells_of(collect_notebook(folder, exercise)))
    except Exception:  # student code could write it, and no verdict hangs on it
        return harmless(exercise, rebuilt, job.origin)


def _execute_openly(rebuilt: NotebookNode, folder: Path, exercise: Exercise, setup: GradingSetup) -> None:
    """Run the notebook with all that the grader's own user can do: for those who trust its author."""
    source = folder / "rebuilt" / f"{exercise.id}.ipynb"
    source.parent.mkdir()
    nbformat.write(rebuilt, source)
    os.environ.update(GRADED)  # of this submission's own process
    execute(source, folder, asked_for(setup.base), setup.seed, setup.limits.wall)


def judge(
    evaluator: Evaluator, exercise: Exercise, student: str, runs: Path, functions: Sequence[Outcome] | None = None
) -> Verdict:
    """Return the verdict on the run folders in `runs`, and on the functions of its tasks if they were called."""
    evidence: dict[str, Evidence] = {}
    refused: dict[str, str] = {}
    for run in exercise.runs:
        try:
            evidence[run.name] = evaluator.evaluate(run, runs / run.name, elsewhere=exercise.compares_methods)
        except Refused as refusal:
            refused[run.name] = str(refusal)
        except (ArithmeticError, LinAlgError) as error:
            refused[run.name] = f"{run.name}: its values are unusable ({one_line(error)}): train it again"
    effects = evaluator.effects(evidence)
    twice = submitted_twice(exercise, evidence, effects, evaluator.base)
    refused |= twice
    evidence = {name: one for name, one in evidence.items() if name not in twice}
    verdict = Verdict(exercise=exercise.id, student=student, base=evaluator.base.name, state="graded")
    if not evidence:
        return verdict.model_copy(update={"state": "submission failed", "message": "\n".join(refused.values())})
    bands = ExerciseBands.load(exercise.id).of(evaluator.base)
    found = {
        "sketches": {name: sketch(effects[name]) for name in evidence} if functions is None else {},
        "checks": check_all(exercise, evidence, refused, bands, evaluator.base, functions),
        "claims": {name: one.claim for name, one in evidence.items()},
        "perplexities": perplexities(evidence),
    }
    return verdict.model_copy(update=found)


def _without_checks(who: Submission | SubmissionFolder, setup: GradingSetup, state: State, message: str) -> Verdict:
    return Verdict(exercise=who.exercise, student=who.student, base=setup.base.name, state=state, message=message)
