"""Grading a class, one folder or the solutions from the command line: what is graded, in which order, and what is said."""

from __future__ import annotations

import os
import secrets
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import closing, suppress
from dataclasses import dataclass, replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any

from tqdm.auto import tqdm

from loralab import PROFILES, Base, choose_base
from loralab.bases import asked_for, weights_of
from loralab.files import make_folder

from .console import console, private_files, say
from .errors import GradebookError, GraderError, SandboxMissing, UnusableName
from .evaluation.reference_bands import ExerciseBands
from .exercises import EXERCISES, ROOT, SEED_BITS, Exercise
from .pipeline import Graded, GradingSetup, Mode, grade_class
from .records.autograded import answers_differ, origin_of, remove_autograded, write_autograded
from .records.gradebook import ask_for_another_look, default_url, write_gradebook
from .records.ledger import Ledger
from .reports.class_report import FEW, write_report
from .reports.class_stats import in_order
from .reports.exports import write_grades, write_results, write_texts
from .reports.student_feedback import write_feedback
from .reports.terminal import print_class, print_verdict
from .sandbox.bubblewrap import available
from .sandbox.limits import GIB, Limits
from .submission.find import SubmissionFolder, doubtful_names, find, left_out
from .submission.intake import Submission
from .submission.similarity import fingerprint
from .term.audit import Audited, differences, draw_sample, share_of
from .term.term import Term
from .text import display_line, display_name, printable
from .verdict import Verdict


@dataclass(frozen=True)
class Options:
    """The options of `grade` as they were given; `exercises` is empty for all of them."""

    exercises: list[str]
    course: Path
    artifacts_only: bool
    no_sandbox: bool
    artifacts: Path | None
    base_name: str
    seed: int
    audit: str | None
    heldout_seed: int | None
    minutes: float | None
    memory: float
    workers: int
    cluster: str | None
    gradebook: str | None
    out: Path

    @cached_property
    def base(self) -> Base:
        """The base to grade on. Raises `LoralabError` if it is unavailable."""
        return find_base(self.base_name)

    @property
    def chosen(self) -> list[Exercise]:
        """The exercises to grade."""
        return [EXERCISES[name] for name in self.exercises or EXERCISES]

    def setup(self, mode: Mode, heldout_seed: int, again: Mapping[tuple[str, str], int] | None = None) -> GradingSetup:
        """Return how to grade in this mode, with this secret seed."""
        minutes = self.minutes or (15 if asked_for(self.base) == "embedded" else 60)
        limits = Limits(wall=60 * minutes, memory=round(self.memory * GIB))
        return GradingSetup(self.base, heldout_seed, mode, self.seed, limits, again or {})

    def remembered(self) -> dict[str, Any]:
        """Return what a later `regrade` grades with, by the names of the command's options."""
        names = "artifacts_only", "no_sandbox", "seed", "minutes", "memory", "workers", "gradebook"
        same = {name: getattr(self, name) for name in names}
        return {"exercise": self.exercises or None, "base": asked_for(self.base)} | same


def grade(options: Options) -> bool:
    """Grade the class of the course, one folder, or the solutions where there is no class; tell whether all went well.

    For a class that is: everything was graded and entered. Otherwise: everything passed. Raises `LoralabError`.
    """
    a_class = options.artifacts is None and ((options.course / "submitted").exists() or options.course != ROOT)
    with private_files():
        share = _audited_share(options.audit, options.artifacts_only and a_class)
        make_folder(options.out)
        if options.artifacts is not None:
            return _grade_folders(options, [_one_folder(options.artifacts, options.chosen)], "artifacts")
        if not a_class:
            mode = _mode_of_solutions(options.artifacts_only, options.no_sandbox)
            solutions = [SubmissionFolder("solution", one.id, one.solution.parent) for one in options.chosen]
            return _grade_folders(options, solutions, mode)
        return _grade_submitted(options, _mode(options.artifacts_only, options.no_sandbox), share)


def find_base(name: str) -> Base:
    """Return the base of this name or in this folder. Raises `LoralabError` if it is unavailable."""
    # A folder by its absolute path, so that its name does not depend on where the command is started.
    base = choose_base(name if name in PROFILES or not Path(name).is_dir() else str(Path(name).resolve()))
    weights_of(base)
    if Path(base.source).is_dir():
        os.environ["HF_HUB_OFFLINE"] = "1"  # nothing is fetched, so nothing should try
    return base


def _grade_folders(options: Options, folders: list[SubmissionFolder], mode: Mode) -> bool:
    """Grade what is no class, and tell whether all of it passed."""
    _warn_about_missing_bands(options.base, folders)
    seed = secrets.randbits(SEED_BITS) if options.heldout_seed is None else options.heldout_seed
    verdicts = _in_order(_each_as_it_ends(_grade(options, folders, options.setup(mode, seed)), len(folders)))
    _report(verdicts, [], options.out)
    return all(verdict.passed for verdict in verdicts)


def _grade_submitted(options: Options, mode: Mode, share: float) -> bool:
    """Grade the class, write the results, and tell whether everything was graded and entered.

    Of the notebooks a `share` is audited.
    """
    url = options.gradebook or default_url(options.course)
    folders = _class(options.course, options.chosen)
    _warn_about_missing_bands(options.base, folders)
    with Ledger(options.out / "ledger.db", options.heldout_seed) as ledger:
        term = Term(options.course, ledger)
        write_gradebook([], url)  # fail early if it cannot be opened
        term.history.remember(options.remembered())
        setup = options.setup(mode, ledger.heldout_seed, term.history.again())
        grading = term.adjusted(_grade(options, folders, setup, ledger))
        graded = _each_as_it_ends(
            grading, len(folders), partial(_write_back, course=options.course, out=options.out, url=url)
        )
        verdicts = _in_order(graded)
        _report(verdicts, graded, options.out, term.names)
        _say_what_changed(term.publish(verdicts, options.out), options.out)
        entered = _into_gradebook(verdicts, url)
        if share:
            _audit(options, draw_sample(folders, share, setup.heldout_seed), setup, ledger, graded)
    missed = left_out(options.course / "submitted")
    for what in missed:
        say("left out", what)
    for what in doubtful_names(options.course / "submitted"):
        say("check the name", what)
    failed = any(verdict.state == "grader failed" for verdict in verdicts)
    return entered and not missed and not failed


def _grade(
    options: Options, folders: list[SubmissionFolder], setup: GradingSetup, ledger: Ledger | None = None
) -> Generator[Graded, None, None]:
    # The longest first: one that is begun last would run alone.
    folders = sorted(folders, key=lambda one: -len(EXERCISES[one.exercise].runs))
    return grade_class(folders, setup, ledger, min(options.workers, len(folders)), options.cluster)


def _audited_share(audit: str | None, from_run_folders: bool) -> float:
    """Return the share to audit, 0 for none. Raises `SandboxMissing` if notebooks cannot be run."""
    if audit is None:
        return 0.0
    if not from_run_folders:
        raise GraderError("--audit runs notebooks of a class that is graded with --artifacts-only: add that option")
    _mode(artifacts_only=False, no_sandbox=False)
    return share_of(audit)


def _audit(
    options: Options, sample: list[SubmissionFolder], setup: GradingSetup, ledger: Ledger, graded: Sequence[Graded]
) -> None:
    """Run the notebooks of the sample, and report which of them make other runs than those that were graded."""
    rerun = _grade(options, sample, replace(setup, mode="sandbox"), ledger)
    audited = list(tqdm(differences(rerun, graded), total=len(sample), desc="audit", unit="submission"))
    for one in audited:
        if one.difference:
            what = f"{display_name(one.student)}, {one.exercise}: {display_line(one.difference)}"
            say("audit", what)
    differ = sum(bool(one.difference) for one in audited)
    path = write_texts(options.out / "audit.csv", Audited, audited)
    console.print(f"audited {len(sample)}, of which {differ} differ ({path}); no points were changed by it")


def _say_what_changed(lines: Sequence[str], out: Path) -> None:
    for line in lines[:FEW]:
        say("changed", line)
    if lines:
        more = f"and {len(lines) - FEW} more; " if len(lines) > FEW else ""
        console.print(f"{more}all changes are in {out / 'changes.csv'} and changes.json")


def _in_order(graded: Sequence[Graded]) -> list[Verdict]:
    return sorted((one.verdict for one in graded), key=lambda one: (in_order(one.student), one.exercise))


def _warn_about_missing_bands(base: Base, folders: Sequence[SubmissionFolder]) -> None:
    missing = sorted({one.exercise for one in folders if ExerciseBands.load(one.exercise).of(base) is None})
    if missing:
        say(
            "no bands",
            f"{', '.join(missing)}: nothing was measured on these weights of the base {base.name}, so any improvement "
            f"beyond chance counts: make bands BASE={asked_for(base)}",
        )


def _into_gradebook(verdicts: Sequence[Verdict], url: str) -> bool:
    """Enter the verdicts, and tell whether that worked; students with unusable names are skipped."""
    try:
        for unusable in write_gradebook(verdicts, url):
            say("not in the gradebook", unusable)
    except GradebookError as problem:
        say("Error", f"{problem}; then repeat the command: nothing is graded again", "red")
        return False
    return True


def _one_folder(artifacts: Path, chosen: list[Exercise]) -> SubmissionFolder:
    if len(chosen) != 1:
        raise GraderError("--artifacts grades one exercise; name it")
    if not artifacts.is_dir():
        raise GraderError(f"--artifacts {artifacts}: no such folder: name the one with your run folders")
    return SubmissionFolder(printable(artifacts.resolve().name), chosen[0].id, artifacts)


def _class(course: Path, chosen: list[Exercise]) -> list[SubmissionFolder]:
    """Return the submissions to these exercises; if there are none, `GraderError` says where they belong."""
    submitted = course / "submitted"
    folders = [folder for folder in find(submitted) if EXERCISES[folder.exercise] in chosen]
    if not folders:
        what = "; ".join(left_out(submitted)[:3]) or "put them into submitted/<student>/<exercise>/"
        raise GraderError(f"no submissions to {', '.join(one.id for one in chosen)} in {submitted}: {what}")
    return folders


def _mode(artifacts_only: bool, no_sandbox: bool) -> Mode:
    """Return the mode of a class. Raises `SandboxMissing` if notebooks should run and cannot run safely."""
    if artifacts_only and no_sandbox:
        raise GraderError("--artifacts-only runs nothing, so there is nothing for --no-sandbox to do")
    if artifacts_only or no_sandbox:
        return "artifacts" if artifacts_only else "no sandbox"
    if problem := available():
        raise SandboxMissing(problem)
    return "sandbox"


def _mode_of_solutions(artifacts_only: bool, no_sandbox: bool) -> Mode:
    """Return the mode of the solutions: the instructor's own code may run unprotected without a sandbox."""
    if artifacts_only:
        raise GraderError("--artifacts-only grades what was submitted, and there is no folder submitted/")
    return "no sandbox" if no_sandbox or available() else "sandbox"


def _each_as_it_ends(
    grading: Generator[Graded, None, None], total: int, write_back: Callable[[Graded], None] | None = None
) -> list[Graded]:
    graded = []
    with closing(grading):  # so that what still runs ends, and its folder is gone, however this is left
        try:
            for one in tqdm(grading, total=total, desc="grading", unit="submission", disable=total == 1):
                if write_back:
                    write_back(one)
                graded.append(replace(one, notebook=None))  # it is written, and may be large
        except KeyboardInterrupt:
            say("stopped", f"{len(graded)} of {total} are graded; the same command does the rest")
            raise
    return graded


def _write_back(one: Graded, course: Path, out: Path, url: str) -> None:
    """Write the feedback and the notebook of one verdict as soon as it is there."""
    write_feedback(one.verdict, out)
    if one.verdict.state != "grader failed":  # then all stays as it is, as in the gradebook
        # A student whom the gradebook cannot have, or a gradebook that is lost meanwhile, is told at the end; then the
        # notebook stays as it is, so that the next run finds what has changed.
        with suppress(UnusableName, GradebookError):
            _bring_up_to_date(one, course, url)


def _bring_up_to_date(one: Graded, course: Path, url: str) -> None:
    """Sync the displayed notebook with this submission; the outputs of its run are kept as long as they belong to it."""
    where = one.verdict.student, EXERCISES[one.verdict.exercise]
    if answers_differ(*where, one.notebook, course):  # from those that were graded by hand
        ask_for_another_look(*where, url)
    if one.notebook is None:
        remove_autograded(*where, course)
    elif not (one.from_ledger and origin_of(*where, course) == one.origin):
        write_autograded(*where, one.notebook, course)


def _report(
    verdicts: Sequence[Verdict], compared: Sequence[Graded], out: Path, names: Mapping[str, str] | None = None
) -> None:
    """Report all verdicts in the terminal and as files in `out`; `compared` are searched for identical ones."""
    if len(verdicts) <= FEW:
        for verdict in verdicts:
            print_verdict(verdict, console)
    else:
        print_class(verdicts, console)
    write_results(verdicts, out)
    write_grades(verdicts, out)
    solutions = {
        name: fingerprint(Submission("", name, exercise.solution.read_bytes(), {}, ()))
        for name, exercise in EXERCISES.items()
    }
    found = {(one.verdict.student, one.verdict.exercise): one.fingerprint for one in compared}
    report = write_report(verdicts, out, found, solutions, names)
    pages = f"{report.name}, feedback/" if compared else report.name
    console.print(f"results.json, grades.csv and {pages} are in {out}")
