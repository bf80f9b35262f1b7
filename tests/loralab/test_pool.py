"""Jobs in processes of their own."""

import os
import subprocess
import sys
import time

import psutil
import pytest

from loralab.pool import Died, run_all


class Fussy(Exception):
    """As many libraries have them: what pickle keeps of it is not enough to make it again."""

    def __init__(self, what, why):
        super().__init__(f"{what}: {why}")


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
    return f"{job} done", os.getpid()


def test_each_job_ends_in_its_own_way_and_the_others_go_on():
    outcomes = dict(run_all(work, ["a", "die", "raise", "b"], workers=2))
    assert outcomes["a"][0] == "a done"
    assert outcomes["b"][0] == "b done"
    assert str(outcomes["raise"]) == "no good"
    assert isinstance(outcomes["die"], Died)
    assert "exit status 3" in str(outcomes["die"])


def test_what_cannot_travel_between_processes_is_told_in_words():
    outcomes = dict(run_all(work, ["fuss", "unsendable", "a"], workers=2))
    assert str(outcomes["fuss"]) == "Fussy: this: that"
    assert "test_pool.work cannot be sent" in str(outcomes["unsendable"])
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


def _wait_until(happened, seconds=60):
    deadline = time.monotonic() + seconds
    while not happened():
        assert time.monotonic() < deadline
        time.sleep(0.1)
