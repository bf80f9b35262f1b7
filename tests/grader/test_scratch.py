"""Folders for what notebooks leave: gone at the end, whatever lies in them, and after a command that was killed."""

import os
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from grader.exercises import ROOT
from grader.sandbox.workdir import PREFIX, folder_of_a_job, root_of_a_command

COMMAND = """
import time
from grader.sandbox.workdir import root_of_a_command
with root_of_a_command() as root:
    (root / "grading-1").mkdir()
    print(root, flush=True)
    time.sleep(600)
"""


@pytest.fixture(autouse=True)
def place(tmp_path, monkeypatch):
    """Where such folders go during the test."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    return tmp_path


@pytest.fixture
def other_command(place):
    """Another command that is at work."""
    process = subprocess.Popen([sys.executable, "-c", COMMAND], cwd=ROOT, env=os.environ | {"TMPDIR": str(place)},
                               stdout=subprocess.PIPE, text=True)  # fmt: skip
    process.stdout.readline()
    yield process
    process.kill()
    process.communicate()


def nest(folder, depth):
    """Folders within folders, which no path is long enough for."""
    outside = os.open(".", os.O_RDONLY)
    try:
        os.chdir(folder)
        for _ in range(depth):
            Path("a").mkdir()
            os.chdir("a")
    finally:
        os.fchdir(outside)
        os.close(outside)


def test_whatever_lies_in_a_jobs_folder_it_is_gone_at_the_end(place):
    with pytest.raises(KeyError), folder_of_a_job(place) as folder:
        nest(folder, 3_000)
        (folder / "locked").mkdir(mode=0)
        (folder / "link").symlink_to(place)
        raise KeyError
    assert list(place.iterdir()) == []


def test_what_jobs_that_were_killed_have_left_goes_with_the_command(place):
    with pytest.raises(KeyboardInterrupt), root_of_a_command() as root:
        (root / "grading-1").mkdir()
        nest(root / "grading-1", 1_500)
        raise KeyboardInterrupt
    assert list(place.iterdir()) == []


def test_the_next_command_removes_what_one_that_was_killed_has_left(place, other_command):
    (left,) = place.iterdir()
    with root_of_a_command() as root:
        assert set(place.iterdir()) == {left, root}  # that command is at work
    other_command.kill()
    other_command.wait()
    with root_of_a_command() as root:
        assert list(place.iterdir()) == [root]


def test_nothing_is_removed_for_its_name_alone(place):
    (place / f"{PREFIX}mine").mkdir()
    (place / f"{PREFIX}file").touch()
    (place / f"{PREFIX}link").symlink_to(place / f"{PREFIX}mine")
    before = sorted(place.iterdir())
    with root_of_a_command():
        pass
    assert sorted(place.iterdir()) == before
