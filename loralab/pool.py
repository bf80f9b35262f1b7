"""Running jobs in processes of their own, so that one that dies takes nothing with it."""

from __future__ import annotations

import os
import sys
import threading
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from multiprocessing import get_context, parent_process
from multiprocessing.connection import Connection, wait
from typing import Any, TypeVar

Job = TypeVar("Job")


class Died(RuntimeError):
    """A process that ended without a result: killed from outside, or out of memory."""


def run_all(function: Callable[[Job], Any], jobs: Sequence[Job], workers: int = 1) -> Iterator[tuple[Job, Any]]:
    """Call `function` on each job, `workers` at a time; as each ends, the job and its result, or the exception.

    Every job has a fresh process. Where the system can fork, it is forked from one that has imported loralab and the
    function's module already, so that torch and its like are loaded once. The processors, or as many of them as
    OMP_NUM_THREADS allows, are divided evenly among the workers. If the caller stops early, or is killed, what still
    runs ends with it.
    """
    context = get_context("spawn" if sys.platform == "win32" else "forkserver")
    if sys.platform != "win32":
        context.set_forkserver_preload(["loralab", function.__module__])
    threads = max(1, int(os.environ.get("OMP_NUM_THREADS") or os.cpu_count() or 1) // workers)
    waiting, running = deque(jobs), {}
    try:
        while waiting or running:
            while waiting and len(running) < workers:
                job = waiting.popleft()
                receiver, sender = context.Pipe(duplex=False)
                process = context.Process(target=_call, args=(function, job, threads, sender))
                process.start()
                sender.close()  # so that the end of the process is the end of the pipe
                running[receiver] = job, process
            for receiver in wait(running):
                job, process = running.pop(receiver)
                yield job, _outcome(receiver, process)
    finally:
        for _, process in running.values():
            process.kill()


def _call(function: Callable[[Job], Any], job: Job, threads: int, sender: Connection) -> None:
    threading.Thread(target=_end_with_parent, daemon=True).start()
    os.environ["OMP_NUM_THREADS"] = str(threads)
    if torch := sys.modules.get("torch"):
        torch.set_num_threads(threads)
    try:
        outcome = function(job)
    except Exception as error:
        outcome = error
    sender.send(outcome)


def _end_with_parent() -> None:
    parent_process().join()
    os._exit(1)  # nobody is left to take the result, and the same job may soon run again


def _outcome(receiver: Connection, process: Any) -> Any:
    try:
        return receiver.recv()
    except EOFError:
        process.join()
        return Died(f"its process was killed (exit status {process.exitcode}); was there enough memory?")
    finally:
        process.join()
        receiver.close()
