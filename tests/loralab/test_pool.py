"""Jobs in processes of their own."""

import os
import subprocess
import sys
import time

import psutil
import pytest

from loralab.pool import Died, run_all


def work(job):
    if job == "raise":
        raise ValueError("no good")
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
