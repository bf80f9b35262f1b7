"""Jobs in processes of their own."""

import os
import subprocess
import sys
import threading
import time
from pathlib import Path

import psutil
import pytest

from loralab import pool
from loralab.pool import Died, allowed_threads, processors, run_all


class Fussy(Exception):
    """As many libraries have them: what pickle keeps of it is not enough to make it again."""

    def __init__(self, what, why):
        super().__init__(f"{what}: {why}")


class Unwritable:
    """A result that raises what no sender expects."""

    def __reduce__(self):
        raise LookupError("no longer there")


class Unreadable:
    """A result that can be sent, but raises what no reader of a pipe expects."""

    def __reduce__(self):
        return {}.__getitem__, ("gone",)


def work(job):
    if job == "raise":
        raise ValueError("no good")
    if job == "fuss":
        raise Fussy("this", "that")
    if job == "unsendable":
        return lambda: None
    if job == "die":
        os._exit(3)
    if job == "sleep":
        time.sleep(60)
    if job == "threads":
        threading.Thread(target=time.sleep, args=(300,)).start()
    if job == "unwritable":
        return Unwritable()
    if job == "unreadable":
        return Unreadable()
    return f"{job} done", os.getpid()


def test_each_job_ends_in_its_own_way_and_the_others_go_on():
    outcomes = dict(run_all(work, ["a", "die", "raise", "b"], workers=2))
    assert outcomes["a"][0] == "a done"
    assert outcomes["b"][0] == "b done"
    assert str(outcomes["raise"]) == "no good"
    assert isinstance(outcomes["die"], Died)
    assert "exit status 3" in str(outcomes["die"])


def test_what_cannot_travel_between_processes_is_told_in_words():
    outcomes = dict(run_all(work, ["fuss", "unsendable", "unwritable", "a"], workers=2))
    assert str(outcomes["fuss"]) == "Fussy: this: that"
    assert "test_pool.work cannot be sent" in str(outcomes["unsendable"])
    assert str(outcomes["unwritable"]).endswith("test_pool.work cannot be sent: no longer there")
    assert outcomes["a"][0] == "a done"


def test_a_result_that_cannot_be_unpickled_fails_its_own_job_alone():
    outcomes = dict(run_all(work, ["a", "unreadable", "b"], workers=2))
    assert str(outcomes["unreadable"]) == "the result cannot be unpickled here: KeyError: 'gone'"
    assert (outcomes["a"][0], outcomes["b"][0]) == ("a done", "b done")


def test_threads_that_a_job_leaves_behind_hold_nothing_up(monkeypatch):
    monkeypatch.setattr(pool, "END_SECONDS", 0.5)
    outcomes = dict(run_all(work, ["threads", "a"]))
    assert outcomes["threads"][0] == "threads done"
    assert not psutil.pid_exists(outcomes["threads"][1])
    assert outcomes["a"][0] == "a done"


def test_jobs_are_taken_only_as_they_are_begun():
    taken = []
    jobs = (taken.append(job) or job for job in "abcde")
    for ended, _ in enumerate(run_all(work, jobs, workers=2), start=1):
        assert len(taken) <= ended + 1
    assert taken == list("abcde")


def test_what_runs_ends_when_it_is_told_to_stop():
    started = time.monotonic()
    assert list(run_all(work, ["sleep"], stopped=lambda: time.monotonic() > started + 1)) == []
    assert time.monotonic() - started < 30


def test_every_job_has_a_process_of_its_own():
    pids = {pid for _, (_, pid) in run_all(work, "abc")}
    assert len(pids) == 3
    assert os.getpid() not in pids


def test_a_caller_that_stops_leaves_nothing_running():
    started = time.monotonic()
    with pytest.raises(KeyboardInterrupt):
        for _ in run_all(work, ["a", "sleep"], workers=2):
            raise KeyboardInterrupt
    assert time.monotonic() - started < 30


def test_nothing_goes_on_when_the_caller_is_killed(tmp_path):
    (tmp_path / "jobs.py").write_text(
        "import os, time\ndef linger(path):\n    path.write_text(str(os.getpid())); time.sleep(300)\n"
    )
    told = tmp_path / "pid"
    call = f"import jobs, pathlib; from loralab.pool import run_all; list(run_all(jobs.linger, [pathlib.Path({str(told)!r})]))"
    caller = subprocess.Popen([sys.executable, "-c", call], cwd=tmp_path)
    _wait_until(lambda: told.exists() and told.read_text())
    caller.kill()
    caller.wait()
    _wait_until(lambda: not psutil.pid_exists(int(told.read_text())))


def counted(setting, processors=None):
    """What a process counts that may use so many of this machine's processors, with OMP_NUM_THREADS as in `setting`."""
    code = "import os\nfrom loralab import pool\n"
    if processors:
        code += f"os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:{processors}])\n"
    code += "print(pool.processors(), pool.allowed_threads())"
    environment = {name: value for name, value in os.environ.items() if name != "OMP_NUM_THREADS"} | setting
    told = subprocess.run(
        [sys.executable, "-c", code],
        env=environment,
        cwd=Path(pool.__file__).parents[1],
        capture_output=True,
        check=True,
    )
    return tuple(map(int, told.stdout.split()))


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="only Linux can allow a process fewer processors")
def test_only_the_processors_that_a_process_may_use_are_counted():
    assert counted({}, processors=1) == (1, 1)
    assert counted({"OMP_NUM_THREADS": "3"}, processors=1) == (1, 3)  # asked for, so given


def test_all_processors_count_where_a_system_cannot_tell_which_are_allowed(monkeypatch):
    monkeypatch.delattr(os, "sched_getaffinity", raising=False)
    monkeypatch.setattr(os, "cpu_count", lambda: 6)
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    assert (processors(), allowed_threads()) == (6, 6)
    monkeypatch.setattr(os, "cpu_count", lambda: None)
    assert processors() == 1


@pytest.mark.parametrize(("setting", "threads"), [("5", 5), (" 7 ", 7), ("4,2", 4)])
def test_the_first_number_of_omp_num_threads_is_what_may_compute_at_once(monkeypatch, setting, threads):
    monkeypatch.setenv("OMP_NUM_THREADS", setting)
    assert allowed_threads() == threads


@pytest.mark.parametrize("setting", ["", "0", "many", "-1", ",2"])
def test_what_says_nothing_leaves_all_the_processors(monkeypatch, setting):
    monkeypatch.setenv("OMP_NUM_THREADS", setting)
    assert allowed_threads() == processors()


def tell_threads(_):
    import torch

    return torch.get_num_threads(), os.environ["OMP_NUM_THREADS"]


def test_workers_divide_the_threads_among_them(monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "4,2")
    assert {outcome for _, outcome in run_all(tell_threads, "ab", workers=2)} == {(2, "2")}
    assert {outcome for _, outcome in run_all(tell_threads, "a", workers=2)} == {(4, "4")}
    assert {outcome for _, outcome in run_all(tell_threads, "abc", workers=2)} == {(2, "2")}


def _wait_until(happened, seconds=60):
    deadline = time.monotonic() + seconds
    while not happened():
        assert time.monotonic() < deadline
        time.sleep(0.1)
