"""Loading torch and its like for the processes that will grade, while the command itself still loads them."""

from __future__ import annotations

import sys
from multiprocessing import forkserver, get_context


def load_ahead() -> None:
    """Start the process that `loralab.pool` forks from, with what a hand-in needs; it loads on another processor."""
    if sys.platform != "win32":
        get_context("forkserver").set_forkserver_preload(["grader.judging"])
        forkserver.ensure_running()
