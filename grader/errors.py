"""Every error of the grader whose message is for a person: what is wrong, where, and what to do, in one line.

The command line prints these and exits with status 2. Any other exception is a defect, and keeps its traceback.
"""

from __future__ import annotations

from loralab.errors import LoralabError


class GraderError(LoralabError):
    """An error that the instructor can correct."""


class LedgerError(GraderError):
    """A ledger that cannot be used."""


class GradebookError(GraderError):
    """A gradebook that cannot be written."""


class UnusableName(GraderError):
    """A student's name that nbgrader's gradebook or pages cannot hold."""


class ReleaseError(GraderError):
    """A solution that nbgrader makes no student notebook of."""


class SandboxMissing(GraderError):
    """Nothing can be run safely on this machine; the message says what to install or to enable."""


class SandboxFailed(GraderError):
    """The sandbox itself failed, through no fault of what was to run in it."""


class SubmissionError(GraderError):
    """Something that the student can correct; the message is shown to them."""


class BadSubmission(SubmissionError):
    """A submission that cannot be read."""


class NotebookFailed(SubmissionError):
    """A notebook that did not run to its end; the message says in which cell and why, with the error's last lines below."""


class Refused(SubmissionError):
    """A run that cannot be evaluated."""
