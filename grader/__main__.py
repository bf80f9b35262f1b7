"""`python -m grader`."""

import sys
from multiprocessing import forkserver, get_context

PRELOADED = "grader.pipeline"  # the module of what the processes that grade are given to do


def load_ahead() -> None:
    """Start the process that `loralab.pool` forks from: it loads torch while the command itself still does."""
    if sys.platform != "win32":
        get_context("forkserver").set_forkserver_preload([PRELOADED])
        forkserver.ensure_running()


if __name__ == "__main__":  # the processes that run notebooks import this file too, and need nothing of it
    if sys.argv[1:2] in (["grade"], ["regrade"]):
        load_ahead()
    from .cli import app

    app()
