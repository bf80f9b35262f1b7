"""Jobs over a dask scheduler: the contract of the pool, on machines that come and go."""

import itertools
import json
import multiprocessing
import os
import signal
import subprocess
import sys
import threading
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import psutil
import pytest
from distributed import KilledWorker, LocalCluster
from typer.testing import CliRunner

from loralab import RunRecord, choose_base, cluster, write_pairs
from loralab.cli import app
from loralab.cluster import on_this_machine, run_all
from loralab.pool import Died
from loralab.split import read_split
from loralab.sweep import FAILURE_FILE, check_memory_there, plan, sweep, table
from tests.loralab.cluster_jobs import linger, save_or_fail, wait_until, work, write_place

THREADS = 2


@pytest.fixture(scope="module")
def address():
    with LocalCluster(
        n_workers=1, threads_per_worker=THREADS, processes=False, protocol="tcp", host="127.0.0.1",
        dashboard_address=":0", resources={"GPU": 1},
    ) as workers:  # fmt: skip
        yield workers.scheduler_address


def test_each_job_ends_in_its_own_way_in_a_process_of_its_own(address):
    outcomes = dict(run_all(work, ["a", "die", "raise", "b"], cluster=address))
    assert str(outcomes["raise"]) == "no good"
    assert isinstance(outcomes["die"], Died)
    assert "exit status 3" in str(outcomes["die"])
    assert len({outcomes["a"][0], outcomes["b"][0], os.getpid()}) == 3


def test_only_as_many_jobs_are_taken_as_the_workers_will_soon_begin(address):
    taken = []
    jobs = (taken.append(job) or job for job in range(8))
    for ended, _ in enumerate(run_all(work, jobs, cluster=address), start=1):
        assert len(taken) < ended + 2 * THREADS
    assert len(taken) == 8


def test_a_worker_with_one_gpu_takes_one_job_at_a_time_that_wants_it(address):
    spans = sorted((started, ended) for _, (_, started, ended) in run_all(work, "abcd", cluster=address, gpu=True))
    assert len(spans) == 4
    assert all(before[1] <= after[0] for before, after in itertools.pairwise(spans))


def test_a_caller_that_stops_leaves_nothing_running(address, tmp_path):
    told = tmp_path / "pid"
    stop = threading.Timer(0, lambda: wait_until(told.exists) or os.kill(os.getpid(), signal.SIGINT))
    # Python does not heed interrupts where it was started to ignore them, as in the background of a script.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        stop.start()
        with pytest.raises(KeyboardInterrupt):
            list(run_all(linger, [told], cluster=address))
    finally:
        signal.signal(signal.SIGINT, before)
    wait_until(lambda: not psutil.pid_exists(int(told.read_text())))


@pytest.mark.parametrize("nowhere", ["nonsense", "tcp://127.0.0.1", "tcp://127.0.0.1:1"])
def test_a_scheduler_that_is_not_there_is_one_line(nowhere):
    with pytest.raises(ValueError, match=f"no dask scheduler answers at {nowhere}: start one") as raised:
        list(run_all(work, "a", cluster=nowhere))
    assert "\n" not in str(raised.value)


def test_a_scheduler_without_workers_is_one_line(monkeypatch):
    monkeypatch.setattr(cluster, "WORKER_SECONDS", 0.1)
    with (
        LocalCluster(n_workers=0, protocol="tcp", host="127.0.0.1", dashboard_address=":0") as empty,
        pytest.raises(ValueError, match="no worker has joined tcp://.*: start `dask worker tcp://.*--no-nanny`"),
    ):
        list(run_all(work, "a", cluster=empty.scheduler_address))


def test_without_dask_it_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "distributed", None)
    with pytest.raises(ValueError, match="not installed: pip install distributed$"):
        list(run_all(work, "a", cluster="tcp://127.0.0.1:1"))


@pytest.mark.parametrize("joined_late", [False, True])
def test_a_worker_with_other_code_gets_no_job(address, monkeypatch, joined_late):
    here = threading.current_thread()
    monkeypatch.setattr(cluster, "describe", lambda _: "old" if threading.current_thread() is here else "new")
    if joined_late:
        monkeypatch.setattr(cluster, "_check_workers", lambda *_: None)
    with pytest.raises(ValueError, match="worker tcp://.* has new, but here is old: install the same"):
        list(run_all(work, "a", cluster=address))


def test_how_many_jobs_a_worker_does_at_a_time(address):
    assert cluster.at_once(address) == THREADS
    assert cluster.at_once(address, gpu=True) == 1


def test_the_memory_of_a_worker_is_shared_by_its_jobs(address, base, tmp_path, monkeypatch):
    jobs = plan(base, [4], ["qv"], ["lora"], 1, tmp_path)
    check_memory_there(jobs, address)
    monkeypatch.setattr("loralab.sweep.at_once", lambda *_: 10**6)  # more than any machine has room for
    with pytest.raises(ValueError, match="lora-qv-r4-s0 does not fit 1000000 times: .*; take fewer at a time"):
        check_memory_there(jobs, address)


def test_a_worker_that_may_not_start_processes_is_told_how_it_may(address, monkeypatch):
    monkeypatch.setitem(multiprocessing.current_process()._config, "daemon", True)
    with pytest.raises(ValueError, match="may not start processes: start it with `dask worker ... --no-nanny`"):
        list(run_all(work, "a", cluster=address))


def test_a_job_that_several_workers_died_of_has_died():
    future = SimpleNamespace(exception=lambda: KilledWorker("work", None, 3))
    outcome = cluster._outcome(future, "tcp://127.0.0.1:1")
    assert isinstance(outcome, Died)
    assert "4 workers died" in str(outcome)


def test_the_embedded_base_is_found_on_every_machine():
    base = choose_base("embedded")
    assert on_this_machine(replace(base, source="/elsewhere/data/base")).source == base.source
    assert on_this_machine(replace(base, source="/elsewhere", max_length=99)) == replace(base, max_length=99)
    mine = replace(base, source="/models/embedded", licence="unknown: check it")
    assert on_this_machine(mine) == mine


@pytest.fixture
def machines(tmp_path):
    """A scheduler and two workers, each a process of its own; the scheduler's address and the three processes."""
    dask, port, begun = Path(sys.executable).with_name("dask"), tmp_path / "scheduler.json", []
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parent)}

    def start(*words):
        with (tmp_path / f"log-{len(begun)}").open("wb") as log:
            begun.append(
                subprocess.Popen(
                    [dask, *words, "--no-dashboard"], env=environment, stdout=log, stderr=log, cwd=tmp_path
                )
            )

    start("scheduler", "--host", "127.0.0.1", "--port", "0", "--scheduler-file", port)
    wait_until(port.exists)
    address = json.loads(port.read_text())["address"]
    for _ in range(2):
        start("worker", address, "--no-nanny", "--nthreads", "1")
    yield address, begun
    for process in begun:
        process.kill()
        process.wait()


def test_a_worker_killed_in_the_middle_loses_nothing_and_a_lost_scheduler_is_one_line(machines, tmp_path):
    address, (scheduler, worker, _) = machines

    def kill_one():
        wait_until(lambda: len(list(tmp_path.glob("begun-*"))) == 2)
        worker.kill()
        worker.wait()
        (tmp_path / "go").touch()

    killer = threading.Thread(target=kill_one)
    killer.start()
    outcomes = [outcome for _, outcome in run_all(write_place, [tmp_path] * 4, cluster=address)]
    killer.join()
    assert len(set(outcomes)) == 4
    assert all(isinstance(outcome, int) for outcome in outcomes)
    assert len(list(tmp_path.glob("begun-*"))) == 5  # the one whose worker was killed began twice

    with pytest.raises(ValueError, match="no worker at tcp://.* offers a GPU"):
        list(run_all(work, "a", cluster=address, gpu=True))
    again = run_all(work, "abcdefgh", cluster=address)
    next(again)
    scheduler.kill()
    with pytest.raises(ValueError, match="was lost: start it"):
        list(again)


def test_a_sweep_brings_the_files_of_its_runs_home_and_repeats_nothing(address, base, tmp_path):
    jobs = plan(base, [1, 2, 4], ["qv"], ["lora"], 1, tmp_path / "sweep")
    half_done = jobs[2].folder
    half_done.mkdir(parents=True)
    (half_done / "left").touch()
    outcomes = {job.rank: outcome for job, outcome in sweep(jobs, function=save_or_fail, cluster=address)}
    assert isinstance(outcomes[2], MemoryError)
    assert list(table(jobs)["state"]) == ["finished", "failed", "finished"]
    assert (half_done / "deeper" / "weights").read_bytes() == b"\x00\xff" * 4
    assert sorted(path.name for path in half_done.iterdir()) == ["deeper", "run.json"]
    assert "MemoryError: too much" in (jobs[1].folder / FAILURE_FILE).read_text()
    assert {path.name for path in (tmp_path / "sweep").iterdir()} == {job.name for job in jobs}
    assert [job.rank for job, _ in sweep(jobs, function=save_or_fail, cluster=address)] == [2]


def test_data_of_my_own_travels_with_the_jobs(address, base, tokenizer, train_pairs, tmp_path):
    write_pairs(tmp_path / "mine.jsonl", train_pairs[:20])
    data = read_split(str(tmp_path / "mine.jsonl"), "0.5", tokenizer, base.max_length)
    (tmp_path / "mine.jsonl").unlink()
    jobs = plan(base, [1], ["qv"], ["lora"], 1, tmp_path / "sweep", data=data)
    ((_, record),) = sweep(jobs, function=save_or_fail, cluster=address)
    assert (record.train_pairs, record.eval_pairs) == (10, 10)
    assert jobs[0].record() == record  # with the digests of the data here


@pytest.mark.slow
def test_the_command_trains_on_a_cluster(address, tmp_path):
    words = ["sweep", "--ranks", "1", "--targets", "qv", "--seeds", "1", "--epochs", "0.04", "--out", str(tmp_path)]
    first = CliRunner().invoke(app, [*words, "--cluster", address])
    assert first.exit_code == 0, first.output
    assert RunRecord.load(tmp_path / "lora-qv-r1-s0").name == "lora-qv-r1-s0"
    assert (tmp_path / "lora-qv-r1-s0" / "adapter_model.safetensors").exists()
    assert "1 of them finished before" in CliRunner().invoke(app, words).output


@pytest.mark.parametrize(
    ("words", "message"),
    [(["--cluster", "tcp://127.0.0.1:1"], "no dask scheduler answers"), (["--gpu"], "--gpu is for a cluster")],
)
def test_the_command_says_in_one_line_what_is_missing(tmp_path, words, message):
    result = CliRunner().invoke(app, ["sweep", "--out", str(tmp_path / "sweep"), *words])
    assert result.exit_code == 2
    assert message in result.output
    assert result.output.count("\n") == 1
    assert not (tmp_path / "sweep").exists()
