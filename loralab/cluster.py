"""Running jobs here or on many machines: `loralab.pool`, or the same over a dask scheduler.

Jobs and results travel as pickled bytes, so the machines need no disk in common. They need the same code.
"""

from __future__ import annotations

import itertools
import multiprocessing
import pickle
import queue
import socket
import uuid
import warnings
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import CancelledError
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from . import pool
from .bases import PROFILES, Base, choose_base
from .errors import LoralabError
from .pool import Died, Job
from .provenance import describe

if TYPE_CHECKING:
    from dask.typing import Key
    from distributed import Client, Future, Worker

CONNECT_SECONDS = 10
WORKER_SECONDS = 30  # how long the first worker may take to join
QUIET_SECONDS = 60  # without a result, before somebody looks whether there are workers at all
AHEAD = 2  # jobs in flight for each thread of the workers: one that runs, one that waits beside it


def run_all(
    function: Callable[[Job], Any], jobs: Iterable[Job], workers: int = 1, cluster: str | None = None, gpu: bool = False
) -> Iterator[tuple[Job, Any]]:
    """Call `function` on each job in a process of its own; as each ends, the job and its result, or the exception.

    Without `cluster` that is `loralab.pool.run_all` with so many `workers`. `cluster` is the address of a dask
    scheduler, such as "tcp://10.0.0.1:8786": then each thread of its workers takes a job at a time and, with `gpu`,
    each job one unit of the resource "GPU". A job whose worker dies goes to another one; when that has happened several
    times its outcome is `Died`. If the caller stops early, what still runs ends with it. Raises `LoralabError`, in one
    line, when no scheduler answers, or it is lost, or a worker cannot do this work; `docs/cluster.md` has the rest.
    """
    if cluster is None:
        return pool.run_all(function, jobs, workers)
    return _run_on(cluster, function, jobs, gpu)


def on_this_machine(base: Base) -> Base:
    """Return `base`, which came from another machine, with its folder here; a profile that is not here is fetched."""
    profile = PROFILES.get(base.name)
    if profile and not profile.source and replace(base, source="", reason="", max_length=profile.max_length) == profile:
        return replace(choose_base(base.name), max_length=base.max_length)
    return base


def _run_on(address: str, function: Callable[[Job], Any], jobs: Iterable[Job], gpu: bool) -> Iterator[tuple[Job, Any]]:
    waiting = iter(jobs)
    done: queue.SimpleQueue[Future[Any]] = queue.SimpleQueue()
    running: dict[Key, tuple[Job, Future[Any]]] = {}
    with _connected(address) as client:
        _check_workers(client, address, function.__module__, gpu)
        try:
            while True:
                for job in itertools.islice(waiting, max(0, _wanted(client, address) - len(running))):
                    future = _submit(client, function, job, gpu)
                    running[future.key] = job, future
                    future.add_done_callback(done.put)
                    del job, future  # nothing but `running` holds them: they may be large
                if not running:
                    return
                key = _next(done, client, address)
                job, future = running.pop(key)
                outcome = _outcome(future, address)
                del future  # so that the cluster forgets it, too
                yield job, outcome
                del job, outcome
        finally:
            with suppress(OSError, CancelledError):
                client.cancel([future for _, future in running.values()], force=True)


def at_once(address: str, gpu: bool = False) -> int:
    """Return how many jobs the busiest worker does at a time, at least 1; with `gpu`, of those that take a GPU.

    Raises `LoralabError`, in one line, if the scheduler cannot be reached.
    """
    with _connected(address) as client:
        workers = _ask(address, client.scheduler_info)["workers"].values()
    counts: list[int] = [
        min(one["nthreads"], int(one["resources"].get("GPU", 0))) if gpu else one["nthreads"] for one in workers
    ]
    return max([1, *counts])


@contextmanager
def _connected(address: str) -> Iterator[Client]:
    try:
        from distributed import Client
    except ImportError:
        raise LoralabError("a cluster needs dask, which is not installed: pip install distributed") from None
    from distributed.comm.addressing import get_address_host_port

    try:
        # dask itself would try again and again, and wait for ever for one that accepts and says nothing
        with socket.create_connection(get_address_host_port(address, strict=True), CONNECT_SECONDS) as knock:
            if not address.startswith("tls:") and not knock.recv(1):
                raise ConnectionError("it closed the connection")
        client = Client(address, timeout=CONNECT_SECONDS, set_as_default=False)
    except (OSError, ValueError):
        raise LoralabError(
            f"no dask scheduler answers at {address}: start one there with `dask scheduler`, and give the address that "
            "it prints, such as tcp://10.0.0.1:8786"
        ) from None
    with client:
        yield client


def _check_workers(client: Client, address: str, module: str, gpu: bool) -> None:
    try:
        client.wait_for_workers(1, timeout=WORKER_SECONDS)
    except TimeoutError:
        raise LoralabError(
            f"no worker has joined {address}: start `dask worker {address} --no-nanny` on each machine"
        ) from None
    reports = _ask(address, lambda: client.run(_report, describe(module), module, on_error="return"))
    for worker, report in reports.items():
        if isinstance(report, Exception):
            raise LoralabError(f"worker {worker} cannot run loralab ({report}): install the same there as here")
        if report.problem:
            raise LoralabError(report.problem)
    if gpu and not any(report.gpus for report in reports.values()):
        raise LoralabError(f'no worker at {address} offers a GPU: start those that have one with --resources "GPU=1"')


def _wanted(client: Client, address: str) -> int:
    """Return how many jobs should be in flight; workers come and go, so it is computed each time."""
    threads: dict[str, int] = _ask(address, client.nthreads)
    return max(1, AHEAD * sum(threads.values()))


def _submit(client: Client, function: Callable[[Job], Any], job: Job, gpu: bool) -> Future[Any]:
    task = _Task(function.__module__, describe(function.__module__), pickle.dumps((function, job)))
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Sending large graph")  # a job carries its files with it, and few are sent
        return client.submit(
            pickle.loads,
            pickle.dumps(task),
            key=f"{function.__name__}-{uuid.uuid4().hex}",
            resources={"GPU": 1} if gpu else None,
        )


def _next(done: queue.SimpleQueue[Future[Any]], client: Client, address: str) -> Key:
    """Return the key of the next job to end."""
    while True:
        try:
            return done.get(timeout=QUIET_SECONDS).key
        except queue.Empty:
            if not _ask(address, client.nthreads):
                warnings.warn(f"no worker is left at {address}; waiting for one", stacklevel=2)


def _outcome(future: Future[Any], address: str) -> Any:
    from distributed import KilledWorker

    error = _ask(address, future.exception)
    if isinstance(error, KilledWorker):
        return Died(f"{error.allowed_failures + 1} workers died that had it; was there enough memory?")
    if isinstance(error, _Unfit | ImportError):
        raise LoralabError(str(error))
    if error is not None:
        return error
    packed = _ask(address, future.result)
    try:
        return pickle.loads(packed)
    except Exception as error:
        return error


def _ask(address: str, question: Callable[[], Any]) -> Any:
    try:
        return question()
    except (OSError, CancelledError):  # when the connection breaks, dask's client cancels what it waits for
        raise LoralabError(
            f"the scheduler at {address} was lost: start it and its workers again, then repeat the command"
        ) from None


# From here on in a worker.


class _Task:
    """A task that is done by unpickling it: the scheduler looks into each task, and so needs no loralab to do so."""

    def __init__(self, *arguments: Any) -> None:
        self._arguments = arguments

    def __reduce__(self) -> tuple[Callable[..., bytes], tuple[Any, ...]]:
        return _work, self._arguments


class _Unfit(RuntimeError):
    """This worker cannot do the work; another one may."""


@dataclass(frozen=True)
class _Report:
    problem: str
    gpus: float


def _report(wanted: str, module: str, dask_worker: Worker) -> _Report:
    return _Report(_problem(wanted, module, dask_worker), dask_worker.state.total_resources.get("GPU", 0))


def _problem(wanted: str, module: str, worker: Worker) -> str:
    """Return why `worker`, in whose process this runs, cannot do the work; empty if it can."""
    if (found := describe(module)) != wanted:
        return f"worker {worker.address} has {found}, but here is {wanted}: install the same there as here"
    if multiprocessing.current_process().daemon:
        return f"worker {worker.address} may not start processes: start it with `dask worker ... --no-nanny`"
    return ""


def _work(module: str, wanted: str, job: bytes) -> bytes:
    """Return the pickled outcome of a job, which has a process of its own: the worker outlives it, and its memory."""
    from distributed import Reschedule, get_worker
    from distributed.core import Status

    worker = get_worker()
    key = worker.get_current_task()
    if problem := _problem(wanted, module, worker):
        raise _Unfit(problem)

    def stopped() -> bool:
        task = worker.state.tasks.get(key)
        return task is None or task.state == "cancelled" or worker.status in (Status.closing, Status.closed)

    for _, outcome in pool.run_all(_call, [job], worker.state.nthreads, preload=module, stopped=stopped):
        return outcome if isinstance(outcome, bytes) else pickle.dumps(outcome)
    raise Reschedule  # if anybody still wants it


def _call(packed: bytes) -> bytes:
    function, job = pickle.loads(packed)
    try:
        return pickle.dumps(function(job))
    except Exception as error:
        return pickle.dumps(pool.portable(error))
