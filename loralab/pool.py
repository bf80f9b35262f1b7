"""Run jobs in processes of their own, so that one that dies takes nothing with it."""

from __future__ import annotations

import itertools
import os
import pickle
import sys
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from multiprocessing import get_context, parent_process
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from multiprocessing.reduction import ForkingPickler
from typing import Any, TypeVar

from .errors import one_line

Job = TypeVar("Job")
END_SECONDS = 2  # for a process to end after its result


class Died(RuntimeError):
    """A process that ended without a result: killed from outside, or out of memory."""


def processors() -> int:
    """Return how many processors this process may use; Slurm and containers allow it fewer than the machine has."""
    if hasattr(os, "sched_getaffinity"):  # Linux
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def allowed_threads() -> int:
    """Return how many threads may compute at once: OMP_NUM_THREADS, or else one for each of `processors`."""
    first = os.environ.get("OMP_NUM_THREADS", "").partition(",")[0].strip()  # "4,2" is 4, and 2 inside each of these
    return int(first) if first.isdecimal() and int(first) else processors()


def run_all(
    function: Callable[[Job], Any],
    jobs: Iterable[Job],
    workers: int = 1,
    *,
    preload: str | None = None,
    stopped: Callable[[], bool] | None = None,
) -> Iterator[tuple[Job, Any]]:
    """Call `function` on each job, `workers` at a time; yield each job as it ends, with its result or the exception.

    Jobs are taken from `jobs` as they are begun, so a generator of large ones keeps few of them in memory. Every job
    has a fresh process. Where the system can fork, it is forked from one that has imported loralab and `preload` (by
    default the function's module) already, so that torch and its like are loaded once. The processors, or as many of
    them as OMP_NUM_THREADS allows, are divided evenly among the workers, or among the jobs where these are fewer. A
    process that does not end within `END_SECONDS` of its result is killed. If the caller stops early, or is killed, or
    `stopped`, asked every second, says so, what still runs ends with it.
    """
    if sys.platform == "win32":
        context = get_context("spawn")
    else:
        context = get_context("forkserver")
        context.set_forkserver_preload(["loralab.training", preload or function.__module__])
    waiting = iter(jobs)
    first = deque(itertools.islice(waiting, workers))
    threads = max(1, allowed_threads() // max(1, len(first)))
    waiting = itertools.chain((first.popleft() for _ in range(len(first))), waiting)
    running: dict[Connection, tuple[Job, BaseProcess]] = {}
    try:
        while True:
            for job in itertools.islice(waiting, workers - len(running)):
                receiver, sender = context.Pipe(duplex=False)
                process: BaseProcess = context.Process(
                    target=_call, args=(function, job, dict(os.environ), threads, sender)
                )
                process.start()
                sender.close()  # so that the end of the process is the end of the pipe
                running[receiver] = job, process
                del job  # nothing but `running` holds it: it may be large
            if not running or (stopped and stopped()):
                return
            ended = wait(running, timeout=1 if stopped else None)
            for receiver in [one for one in running if one in ended]:
                job, process = running.pop(receiver)
                yield job, _outcome(receiver, process)
                del job
    finally:
        for _, process in running.values():
            process.kill()


def _call(
    function: Callable[[Job], Any], job: Job, environment: dict[str, str], threads: int, sender: Connection
) -> None:
    threading.Thread(target=_end_with_parent, daemon=True).start()
    os.environ |= environment | {"OMP_NUM_THREADS": str(threads)}  # the fork server's is that of when it began
    if torch := sys.modules.get("torch"):
        torch.set_num_threads(threads)
    try:
        outcome = function(job)
    except Exception as error:
        outcome = portable(error)
    try:
        packed = ForkingPickler.dumps(outcome)
    except Exception as error:  # a result may run any code, and raise anything, when it is pickled
        what = f"a result of {function.__module__}.{function.__qualname__} cannot be sent: {error}"
        packed = ForkingPickler.dumps(TypeError(what))
    sender.send_bytes(packed)


def portable(error: Exception) -> Exception:
    """Return `error`, or one with the same message if it would not survive the way to another process."""
    try:
        pickle.loads(pickle.dumps(error))
    except Exception:  # many a library's exceptions cannot be made again from their message
        return RuntimeError(f"{type(error).__name__}: {error}")
    return error


def _end_with_parent() -> None:
    if (parent := parent_process()) is None:
        return  # not a worker
    parent.join()
    os._exit(1)  # no process is left to take the result, and the same job may soon run again


def _outcome(receiver: Connection, process: BaseProcess) -> Any:
    try:
        return receiver.recv()
    except (EOFError, OSError):  # before a byte of the result, or in the middle of it
        _end(process)
        return Died(f"its process was killed (exit status {process.exitcode}); was there enough memory?")
    except Exception as error:  # a result may run any code, and raise anything, when it is unpickled
        return RuntimeError(f"the result cannot be unpickled here: {one_line(error)}")
    finally:
        _end(process)
        receiver.close()


def _end(process: BaseProcess) -> None:
    """Wait until a process that has sent its result ends; kill it if threads that it left behind keep it alive."""
    process.join(END_SECONDS)
    if process.exitcode is None:
        process.kill()
        process.join()
