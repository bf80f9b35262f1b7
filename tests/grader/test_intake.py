"""Taking in submissions."""

import bz2
import gzip
import io
import json
import lzma
import os
import pickle
import socket
import stat
import tarfile
import tempfile
import tracemalloc
import unicodedata
import zipfile
import zlib
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from grader.errors import BadSubmission, Refused
from grader.evaluation.adapter import read_adapter
from grader.exercises import EXERCISES
from grader.submission import files, intake
from grader.submission.find import SubmissionFolder, doubtful_names, find, left_out
from grader.submission.intake import collect_notebook, collect_runs, lay_out, take_in
from grader.text import printable
from loralab import choose_base, pack
from tests.submissions.zips import Entry, filled, stored, write_zip

EX1, EX2 = EXERCISES["ex1_first_adapter"], EXERCISES["ex2_rank_sweep"]
RUN = "first-adapter"
WEIGHTS, CONFIG, RECORD = "adapter_model.safetensors", "adapter_config.json", "run.json"
CONTENTS = {WEIGHTS: b"weights", CONFIG: b"{}", RECORD: b'{"name": 1}'}
NOTEBOOK = b'{"nbformat": 4, "cells": []}'
SOUND = [stored(f"{RUN}/{name}", content) for name, content in CONTENTS.items()]


@pytest.fixture
def folder(tmp_path):
    """An empty submission for exercise 1."""
    folder = tmp_path / "submitted" / "ann" / EX1.id
    folder.mkdir(parents=True)
    return folder


def add_run(parent, name=RUN):
    run = parent / name
    run.mkdir(parents=True)
    for file, content in CONTENTS.items():
        (run / file).write_bytes(content)
    return run


def taken(folder, exercise=EX1):
    return take_in(SubmissionFolder("ann", exercise.id, folder), exercise)


def refused(folder, *parts):
    """The message, which is one printable line that holds these parts."""
    with pytest.raises(BadSubmission) as problem:
        taken(folder)
    message = str(problem.value)
    assert message.isprintable() and len(message) < 500
    for part in parts:
        assert part in message
    return message


# What is taken in


@pytest.mark.parametrize("around", ["", "runs", EX1.id, f"{EX1.id}/runs"])
def test_run_folders_are_found_there_and_in_runs(folder, around):
    add_run(folder / around)
    (folder / f"{EX1.id}.ipynb").write_bytes(NOTEBOOK)
    submission = taken(folder)
    assert submission.runs == {RUN: CONTENTS} and submission.notebook == NOTEBOOK and submission.unexpected == ()


@pytest.mark.parametrize("around", ["My homework", "My homework/runs"])
def test_a_folder_around_everything_is_looked_through_whatever_its_name(folder, around):
    add_run(folder / around)
    (folder / "My homework" / f"{EX1.id}.ipynb").write_bytes(NOTEBOOK)
    for beside in ("__MACOSX/._My homework", ".DS_Store"):
        (folder / beside).parent.mkdir(exist_ok=True)
        (folder / beside).write_bytes(b"of a Mac")
    submission = taken(folder)
    assert submission.runs == {RUN: CONTENTS} and submission.notebook == NOTEBOOK


@pytest.mark.parametrize("where", ["", "runs"])
@pytest.mark.parametrize("beside", [None, b"saved later"])
def test_a_packed_zip_is_a_hand_in_and_a_notebook_beside_it_is_the_later_one(folder, tmp_path, where, beside):
    add_run(tmp_path / "mine")
    notebook = tmp_path / "any.ipynb"
    notebook.write_bytes(NOTEBOOK)
    packed = pack(EX1.id, tmp_path / "mine", [RUN], notebook)
    (folder / where).mkdir(exist_ok=True)
    packed.rename(folder / where / "ex1 (1).ZIP")
    if beside:
        (folder / f"{EX1.id}.ipynb").write_bytes(beside)
    submission = taken(folder)
    assert submission.runs == {RUN: CONTENTS} and submission.notebook == (beside or NOTEBOOK)


def test_run_folders_come_before_a_zip_of_them(folder):
    add_run(folder / "runs")
    (folder / "runs" / f"{EX1.id}.zip").write_bytes(b"not opened")
    assert taken(folder).unexpected == (f"runs/{EX1.id}.zip",)


def test_runs_of_other_names_and_all_other_files_are_strays_that_are_never_opened(folder, monkeypatch):
    run = add_run(folder)
    add_run(folder, "rank-4")
    for path in (run / "adapter_model.bin", run / "deeper" / WEIGHTS, folder / "Copy of it.ipynb"):
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(b"never read")
        path.chmod(0)
    opened = []
    monkeypatch.setattr(
        files,
        "read_in",
        lambda root, path, *more, read=files.read_in, **seen: opened.append(path) or read(root, path, *more),
    )
    submission = taken(folder)
    assert submission.runs == {RUN: CONTENTS}
    assert {path[0] for path in opened} == {RUN} and {path[1] for path in opened} == set(CONTENTS)
    assert set(submission.unexpected) == {
        "Copy of it.ipynb", f"{RUN}/adapter_model.bin", f"{RUN}/deeper/{WEIGHTS}", *(f"rank-4/{name}" for name in CONTENTS)
    }  # fmt: skip


def test_hidden_files_and_what_macos_adds_to_a_zip_are_not_there(folder):
    run = add_run(folder)
    (run / ".ipynb_checkpoints").mkdir()
    (run / ".ipynb_checkpoints" / "link").symlink_to("/etc")
    (folder / ".DS_Store").touch()
    assert taken(folder).unexpected == ()
    (folder / RUN).rename(folder / ".away")
    write_zip(folder / "a.zip", [*SOUND, stored(f"__MACOSX/{RUN}/._{RECORD}", b"x")])
    assert taken(folder).runs == {RUN: CONTENTS} and taken(folder).unexpected == ("a.zip",)


def test_an_ordinary_zip_with_folders_and_dots_in_its_paths_is_taken_in(folder):
    with zipfile.ZipFile(folder / "a.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.mkdir(RUN)
        for name, content in CONTENTS.items():
            archive.writestr(f"./runs/{RUN}//{name}", content)
    assert taken(folder).runs == {RUN: CONTENTS}


def test_a_hand_in_travels(folder):
    add_run(folder)
    submission = taken(folder)
    assert pickle.loads(pickle.dumps(submission)) == submission


def test_the_digest_is_of_the_content_alone(folder):
    add_run(folder)
    (folder / RUN / "adapter_model.bin").touch()
    submission = taken(folder)
    assert replace(submission, student="bob").digest == submission.digest
    other = CONTENTS | {RECORD: b"{}"}
    fewer = {name: content for name, content in CONTENTS.items() if name != RECORD}
    changed = [
        replace(submission, notebook=b""),
        replace(submission, notebook=NOTEBOOK),
        replace(submission, runs={}),
        replace(submission, runs={RUN: other}),
        replace(submission, runs={RUN: fewer}),
        replace(submission, runs={"rank-4": CONTENTS}),
        replace(submission, unexpected=()),
        replace(submission, unexpected=("adapter_model.bin", RUN)),
    ]
    assert len({one.digest for one in [submission, *changed]}) == 9


def test_runs_are_laid_out_with_empty_files_for_strays_so_that_the_pickle_is_named(folder, tmp_path):
    run = add_run(folder)
    (run / WEIGHTS).unlink()
    (run / "adapter_model.bin").write_bytes(b"pickle")
    (folder / "elsewhere.bin").touch()
    submission = taken(folder)
    lay_out(submission.runs, submission.unexpected, tmp_path / "out")
    assert {path.name: path.read_bytes() for path in (tmp_path / "out" / RUN).iterdir()} == {
        CONFIG: CONTENTS[CONFIG], RECORD: CONTENTS[RECORD], "adapter_model.bin": b""
    }  # fmt: skip
    assert [path.name for path in (tmp_path / "out").iterdir()] == [RUN]
    (tmp_path / "out" / RUN / CONFIG).write_text('{"r": 16, "lora_alpha": 32, "target_modules": ["q_proj"]}')
    with pytest.raises(Refused, match=r"adapter_model.bin is a pickle, which can run code"):
        read_adapter(tmp_path / "out" / RUN, choose_base("embedded"))


def test_a_whole_model_alone_is_enough_to_be_told_that_it_is_one(folder, tmp_path):
    (folder / RUN).mkdir()
    (folder / RUN / "model.safetensors").touch()
    submission = taken(folder)
    lay_out(submission.runs, submission.unexpected, tmp_path / "out")
    with pytest.raises(Refused, match="holds a whole model"):
        read_adapter(tmp_path / "out" / RUN, choose_base("embedded"))


@pytest.mark.parametrize(
    "name", [b"\xff\xfe.bin", "\U0001f600".encode() * 60 + b".bin", b"\x01" * 251 + b".bin", b"a\\b\n.bin"]
)
def test_a_stray_of_any_name_can_be_stored_and_laid_out(folder, tmp_path, name):
    add_run(folder)
    (folder / RUN / os.fsdecode(name)).touch()
    submission = taken(folder)
    (name,) = submission.unexpected
    assert name.isprintable() and json.loads(json.dumps(name).encode()) == name and submission.digest
    lay_out(submission.runs, submission.unexpected, tmp_path / "out")
    assert (tmp_path / "out" / name).suffix == ".bin"


# What is found in other places and under other names, where there is no doubt what is meant


def a_zip(folder, *names, method=zipfile.ZIP_DEFLATED):
    """A zip of a run and the notebook under these names of folders; of what is in them, the notebook is in the last."""
    with zipfile.ZipFile(folder / "a.zip", "w", method) as archive:
        for name, content in CONTENTS.items():
            archive.writestr(f"{names[0]}{name}", content)
        archive.writestr(f"{names[-1]}{EX1.id}.ipynb", NOTEBOOK)


def a_tar(folder, suffix, mode):
    with tarfile.open(folder / f"a{suffix}", mode) as archive:
        files = {f"./{RUN}/{name}": content for name, content in CONTENTS.items()}
        for name, content in [*files.items(), (f"./{EX1.id}.ipynb", NOTEBOOK)]:
            entry = tarfile.TarInfo(name)
            entry.size = len(content)
            archive.addfile(entry, io.BytesIO(content))


COMPRESS = {".tar.gz": gzip.compress, ".tar.xz": lzma.compress, ".tar.bz2": bz2.compress}


def in_streams(folder, suffix):
    """A compressed tar as parallel programs write it: every piece of it in a stream of its own."""
    a_tar(folder, ".tar", "w")
    content = (folder / "a.tar").read_bytes()
    (folder / "a.tar").unlink()
    pieces = [content[start : start + 700] for start in range(0, len(content), 700)]
    (folder / f"a{suffix}").write_bytes(b"".join(map(COMPRESS[suffix], pieces)))


def in_bytes(folder, encoding, around):
    """A zip as programs of East Asia make them: names in the system's encoding, and no word of that."""
    files = [*((f"{RUN}/{name}", content) for name, content in CONTENTS.items()), (f"{EX1.id}.ipynb", NOTEBOOK)]
    write_zip(
        folder / "a.zip", [stored(f"{around}/{name}".encode(encoding), content, flags=0) for name, content in files]
    )


FORMS = {
    "two folders deep": lambda f: a_zip(f, f"hw/1/{RUN}/", "hw/1/"),
    "a desktop's path": lambda f: a_zip(f, f"Users/kim/Desktop/hw/runs/{RUN}/", "Users/kim/Desktop/hw/"),
    "Colab's path": lambda f: a_zip(f, f"content/runs/{RUN}/", "content/drive/MyDrive/Colab Notebooks/"),
    "beside a folder": lambda f: a_zip(f, f"runs (1)/{RUN}/", "mine/"),
    "in itself": lambda f: a_zip(f, f"{RUN}/{RUN}/", ""),
    "backslashes": lambda f: a_zip(f, f"hw\\runs\\{RUN}\\", "hw\\"),
    "misnamed run": lambda f: a_zip(f, "First_Adapter/", ""),
    "run of any name": lambda f: a_zip(f, "my best run/", ""),
    "flat": lambda f: a_zip(f, ""),
    "flat in a folder": lambda f: a_zip(f, "hw/"),
    "LZMA": lambda f: a_zip(f, f"{RUN}/", "", method=zipfile.ZIP_LZMA),
    "bzip2": lambda f: a_zip(f, f"{RUN}/", "", method=zipfile.ZIP_BZIP2),
    "tar": lambda f: a_tar(f, ".tar", "w"),
    "tar.gz": lambda f: a_tar(f, ".tar.gz", "w:gz"),
    "tgz": lambda f: a_tar(f, ".TGZ", "w:gz"),
    "tar.xz": lambda f: a_tar(f, ".tar.xz", "w:xz"),
    "tar.bz2": lambda f: a_tar(f, ".tar.bz2", "w:bz2"),
    "streams of gzip": lambda f: in_streams(f, ".tar.gz"),
    "streams of xz": lambda f: in_streams(f, ".tar.xz"),
    "streams of bzip2": lambda f: in_streams(f, ".tar.bz2"),
    "Shift-JIS": lambda f: in_bytes(f, "cp932", "\u8868\u793a\u30bd"),  # the second byte of two of them is a backslash
    "CP949": lambda f: in_bytes(f, "cp949", "\uacfc\uc81c"),
    "Big5": lambda f: in_bytes(f, "big5", "\u529f\u8ab2"),
    "cp437": lambda f: in_bytes(f, "cp437", "\u00dcbung"),
    "UTF-8, unsaid": lambda f: in_bytes(f, "utf-8", "\u00dcbung \uacfc\uc81c"),
}


@pytest.mark.parametrize("form", FORMS)
def test_what_can_be_read_without_doubt_is_read(folder, form):
    FORMS[form](folder)
    submission = taken(folder)
    assert submission.runs == {RUN: CONTENTS} and submission.notebook == NOTEBOOK
    assert [name for name in submission.unexpected if not name.startswith("a.")] == []


@pytest.mark.parametrize(
    "name", [f"{EX1.id} kim (1).ipynb", "Kim_1234_EX1-First-Adapter.IPYNB", "Copy of ex1_first_adapter.ipynb"]
)
def test_a_notebook_that_was_renamed_is_found_by_the_exercises_name_in_its_own(folder, name):
    (folder / name).write_bytes(NOTEBOOK)
    (folder / "notes.ipynb").write_bytes(b"another")
    assert taken(folder).notebook == NOTEBOOK
    (folder / f"{EX1.id} (2).ipynb").write_bytes(b"later?")
    refused(folder, "are both there: keep the one to be graded")
    (folder / f"{EX1.id}.ipynb").write_bytes(b"this one")
    assert taken(folder).notebook == b"this one"


def test_a_notebook_of_any_name_counts_if_it_is_all_there_is(folder):
    (folder / "homework.ipynb").write_bytes(NOTEBOOK)
    assert taken(folder).notebook == NOTEBOOK
    add_run(folder)
    assert taken(folder).notebook is None and taken(folder).unexpected == ("homework.ipynb",)


def test_several_runs_are_found_under_similar_names_and_others_stay_unexpected(folder):
    for name in ("Rank_4", "rank 16", "r64"):
        add_run(folder / "mine", name)
    submission = taken(folder, EX2)
    assert submission.runs == {"rank-4": CONTENTS, "rank-16": CONTENTS}
    assert set(submission.unexpected) == {f"r64/{name}" for name in CONTENTS}
    add_run(folder / "mine", "RANK-4")
    with pytest.raises(BadSubmission, match="mine/RANK-4 and mine/Rank_4 are both there"):
        taken(folder, EX2)


def test_of_two_runs_elsewhere_neither_is_taken_and_both_are_named(folder):
    for name in ("monday", "tuesday"):
        add_run(folder / name)
    refused(folder, f"monday/{RUN} and tuesday/{RUN} are both there")
    add_run(folder)
    assert taken(folder).runs == {RUN: CONTENTS}


@pytest.mark.parametrize("streams", [1, 20])
@pytest.mark.parametrize("suffix", COMPRESS)
def test_a_tar_that_unpacks_to_too_much_is_refused_while_it_is_unpacked(folder, suffix, streams):
    packed = COMPRESS[suffix](bytes(200_000_000 // streams))
    (folder / f"a{suffix}").write_bytes(packed * streams)
    del packed
    tracemalloc.start()
    try:
        refused(folder, f"a{suffix}: its ", "would unpack to")
        assert tracemalloc.get_traced_memory()[1] < 100_000_000
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("suffix", COMPRESS)
def test_a_tar_of_very_many_streams_is_refused(folder, suffix):
    (folder / f"a{suffix}").write_bytes(COMPRESS[suffix](b"") * 20_000)
    refused(folder, f"a{suffix}: it has more than 10,000 compressed streams: pack it again")


@pytest.mark.parametrize(
    ("entry", "why"),
    [
        ({"type": tarfile.SYMTYPE, "linkname": "/etc/passwd"}, "out is a symlink"),
        ({"type": tarfile.LNKTYPE, "linkname": f"{RUN}/{RECORD}"}, "out is a symlink"),
        ({"type": tarfile.FIFOTYPE}, "out is a pipe"),
        ({"type": tarfile.BLKTYPE}, "out is a device"),
        ({"name": "/etc/x"}, "/etc/x is an absolute path"),
        ({"name": "../x"}, "../x leads outside"),
        ({"name": f"./{RUN}/{RECORD}"}, "is in it twice"),
        ({"size": 10**9}, "would unpack to 1,000,000,0"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_one_odd_entry_refuses_the_whole_tar(folder, entry, why):
    a_tar(folder, ".tar", "w")
    odd = tarfile.TarInfo("out")
    for name, value in entry.items():
        setattr(odd, name, value)
    with tarfile.open(folder / "a.tar", "a") as archive:
        archive.addfile(odd)
    refused(folder, "a.tar: ", why)


@pytest.mark.parametrize("method", [zipfile.ZIP_LZMA, zipfile.ZIP_BZIP2])
def test_other_methods_of_zips_are_unpacked_no_further_than_the_entry_says(folder, method):
    with zipfile.ZipFile(folder / "whole.zip", "w", method) as archive:
        archive.writestr(FILE, bytes(200_000_000))
    with zipfile.ZipFile(folder / "whole.zip") as archive:
        info = archive.getinfo(FILE)
        archive.fp.seek(30 + len(FILE))
        content = archive.fp.read(info.compress_size)
    (folder / "whole.zip").unlink()
    lie = Entry(FILE.encode(), content, zlib.crc32(bytes(500)), 500, method=method)
    write_zip(folder / "a.zip", replaced(lie))
    tracemalloc.start()
    try:
        refused(folder, f"{FILE} has not the 500 bytes")
        assert tracemalloc.get_traced_memory()[1] < 20_000_000
    finally:
        tracemalloc.stop()


# What is refused in a folder


def test_a_hand_in_without_anything_to_grade_says_what_belongs_there(folder):
    refused(folder, f"neither {EX1.id}.ipynb nor a run folder such as 'first-adapter' is there: submit")
    (folder / "notes.txt").touch()
    refused(folder, "(only notes.txt)")


@pytest.mark.parametrize("where", [RUN, f"{RUN}/{RECORD}", f"{RUN}/stray", f"{EX1.id}.ipynb", "runs"])
@pytest.mark.parametrize("target", ["/etc/passwd", "..", "nowhere"])
def test_a_symlink_is_refused_wherever_it_leads(folder, where, target):
    (folder / where).parent.mkdir(exist_ok=True)
    (folder / where).symlink_to(target)
    refused(folder, f"{where} is a symlink")


def test_an_exercise_folder_that_is_a_symlink_a_file_or_gone_is_refused(folder, tmp_path):
    folder.rmdir()
    refused(folder, f"{EX1.id} cannot be opened as a folder (No such file")
    folder.symlink_to(tmp_path)
    refused(folder, f"{EX1.id} is a symlink")
    folder.unlink()
    folder.touch()
    refused(folder, "Not a directory")


def test_a_hard_link_is_refused_where_it_would_be_read(folder, tmp_path):
    secret = tmp_path / "secret"
    secret.write_text("{}")
    run = add_run(folder)
    (run / "stray").hardlink_to(secret)
    assert taken(folder).runs
    (run / RECORD).unlink()
    (run / RECORD).hardlink_to(secret)
    refused(folder, f"{RUN}/{RECORD} is a hard link")


@pytest.mark.parametrize("name", [RECORD, "stray"])
def test_a_pipe_or_a_socket_is_refused_and_not_waited_for(folder, monkeypatch, name):
    (folder / RUN).mkdir()
    os.mkfifo(folder / RUN / name)
    refused(folder, f"{RUN}/{name} is a pipe")
    (folder / RUN / name).unlink()
    monkeypatch.chdir(folder / RUN)  # a socket's path must be short
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(name)
        refused(folder, f"{RUN}/{name} is a socket")


def test_a_file_that_became_a_pipe_or_a_link_after_it_was_seen_is_refused(folder):
    record = add_run(folder) / RECORD
    with files.open_folder(folder) as opened:
        for change, why in (
            (lambda: record.symlink_to("/etc/passwd"), "cannot be read"),
            (lambda: os.mkfifo(record), "is a pipe"),
        ):
            record.unlink()
            change()
            with pytest.raises(BadSubmission, match=f"{RUN}/{RECORD} {why}"):
                files.read_in(opened, (RUN, RECORD), 100)
        (folder / RUN).rename(folder / "away")
        (folder / RUN).symlink_to("away")
        with pytest.raises(BadSubmission, match="cannot be read"):
            files.read_in(opened, (RUN, CONFIG), 100)


def test_a_file_that_was_replaced_after_it_was_seen_is_refused_so_that_no_two_versions_are_mixed(folder, monkeypatch):
    run, read = add_run(folder), files.read_in

    def swap(root, path, *more, **seen):
        if path[-1] == WEIGHTS:
            (run / "new").write_bytes(CONTENTS[CONFIG])
            (run / "new").replace(run / CONFIG)
        return read(root, path, *more, **seen)

    monkeypatch.setattr(files, "read_in", swap)
    refused(folder, f"{RUN}/{CONFIG} has changed while the submission was read: grade it again")


@pytest.mark.parametrize("swapped", ["ann", f"ann/{EX1.id}"])
def test_a_students_folder_that_became_a_link_after_it_was_found_is_refused(folder, tmp_path, swapped):
    add_run(folder)
    (found,) = find(tmp_path / "submitted")
    path = tmp_path / "submitted" / swapped
    path.rename(tmp_path / "away")
    path.symlink_to(tmp_path / "away")
    with pytest.raises(BadSubmission, match=f"{path.name} is a symlink: put a plain folder there"):
        take_in(found, EX1)


@pytest.mark.parametrize(("name", "most"), [(WEIGHTS, 300_000_000), (CONFIG, 1_000_000), (RECORD, 1_000_000)])
def test_a_file_that_is_too_large_is_named_before_it_is_read(folder, name, most):
    run = add_run(folder)
    os.truncate(run / name, most + 1)
    refused(folder, f"{RUN}/{name} is too large, {most + 1:,} bytes where {most:,} are allowed")
    os.truncate(run / name, 10**12)
    refused(folder, "1,000,000,000,000 bytes")


def test_the_runs_together_have_a_limit(tmp_path, monkeypatch):
    for run in EX2.runs:
        add_run(tmp_path, run.name)
    assert len(taken(tmp_path, EX2).runs) == 3
    monkeypatch.setattr(intake, "MAX_TOTAL", 59)
    with pytest.raises(BadSubmission, match=r"all runs are too large, 60 bytes where 59 are allowed"):
        taken(tmp_path, EX2)


def test_a_notebook_that_is_too_large_says_what_to_do(folder):
    (folder / f"{EX1.id}.ipynb").touch()
    os.truncate(folder / f"{EX1.id}.ipynb", 10_000_001)
    refused(folder, "10,000,001 bytes", "clear its outputs")


def test_a_file_that_grows_while_it_is_read_is_refused(folder, monkeypatch):
    add_run(folder)
    read = files.read_in
    monkeypatch.setattr(files, "read_in", lambda root, path, most, seen: read(root, path, most) + b"more")
    refused(folder, "has not the")


def test_many_files_and_great_depth_are_refused(folder, monkeypatch):
    run = add_run(folder)
    (run / "/".join("abcdefgh")).mkdir(parents=True)
    assert taken(folder).runs
    (run / "/".join("abcdefghi")).mkdir()
    refused(folder, "folders are nested more than 10 deep")
    monkeypatch.setattr(files, "MAX_ENTRIES", 3)
    refused(folder, "more than 3 files and folders")


def test_the_same_file_in_two_places_is_refused(folder):
    add_run(folder)
    add_run(folder / "runs")
    refused(folder, f"{RUN} and runs/{RUN} are both there: keep the one")


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_a_file_without_permission_is_a_message(folder):
    (add_run(folder) / RECORD).chmod(0)
    refused(folder, f"{RUN}/{RECORD} cannot be read (Permission denied)")
    folder.parent.chmod(0o400)
    try:
        refused(folder, f"{EX1.id} cannot be opened as a folder (Permission denied)")
    finally:
        folder.parent.chmod(0o700)


# What is refused in a zip


@pytest.mark.parametrize("later", ["b.zip", f"{EX1.id} (1).zip", f"runs/{EX1.id}.zip"])
def test_two_zips_are_refused_for_nobody_can_tell_which_is_the_later_one(folder, later):
    (folder / "runs").mkdir()
    for name in (f"{EX1.id}.zip", later):
        write_zip(folder / name, SOUND)
    refused(folder, "are both there: keep the one to be graded")


def packed(name, content, **more):
    """A deflated entry."""
    packer = zlib.compressobj(9, wbits=-15)
    return Entry(name.encode(), packer.compress(content) + packer.flush(), zlib.crc32(content), len(content), **more)


def lying(name, content, claimed, checked):
    """An entry that says it has `claimed` bytes, with the checksum of the first `checked` ones."""
    return replace(packed(name, content), size=claimed, crc=zlib.crc32(content[:checked]))


FILE = f"{RUN}/{RECORD}"
ODD = {
    "symlink": (stored("out", b"/etc", mode=0o120777), "out is a symlink"),
    "pipe": (stored("out", b"", mode=stat.S_IFIFO | 0o644), "out is a pipe"),
    "device": (stored("out", b"", mode=stat.S_IFBLK | 0o644), "out is a device"),
    "absolute": (stored("/etc/cron.d/x", b""), "/etc/cron.d/x is an absolute path"),
    "drive": (stored("C:/x", b""), "C:/x is an absolute path"),
    "parent": (stored(f"{RUN}/../../x", b""), f"{RUN}/../../x leads outside"),
    "backslash": (stored("..\\x", b""), "../x leads outside"),
    "NUL": (stored(f"{FILE}\0.txt", b""), "is not a path that every system reads alike"),
    "deep": (stored("a/" * 10 + "b", b""), "more than 10 folders deep"),
    "long": (stored("a" * 256, b""), "is not a name that a file can have"),
    "no name": (stored(b"", b""), "is not a name that a file can have"),
    "not UTF-8": (stored(b"\xff", b""), "cannot be read as a zip"),
    "twice": (stored(FILE, b"{}"), f"{FILE} is in it twice"),
    "twice by dots": (stored(f"./{RUN}/./{RECORD}", b"{}"), f"{FILE} is in it twice"),
    "twice by runs": (stored(f"runs/{FILE}", b"{}"), f"{RUN} and runs/{RUN} are both there"),
    "password": (stored("x", b"", flags=1), "x is encrypted"),
    "another method": (Entry(b"x", b"", 0, 0, method=9), "x is compressed by a method"),
    "a gigabyte": (filled("x", b"\0", 64), "would unpack to 1,073,7"),
    "fifty megabytes of nothing": (packed("x", bytes(50_000_000)), "would unpack to 50,000,"),
}


@pytest.mark.parametrize("what", ODD)
def test_one_odd_entry_refuses_the_whole_zip(folder, what):
    odd, why = ODD[what]
    write_zip(folder / "a.zip", [*SOUND, odd])
    refused(folder, "a.zip: ", why)


def replaced(entry):
    return [*(one for one in SOUND if one.name != entry.name), entry]


@pytest.mark.parametrize(
    ("entry", "why"),
    [
        (lying(FILE, b" " * 1000, 500, 500), "Bad CRC-32"),
        (lying(FILE, b" " * 1000, 500, 1000), "Bad CRC-32"),
        (lying(FILE, b" " * 1000, 500, 501), f"{FILE} has not the 500 bytes"),
        (lying(FILE, b" " * 500, 1000, 500), f"{FILE} has not the 1,000 bytes"),
        (replace(stored(FILE, b" " * 1000), size=500, crc=zlib.crc32(b" " * 500)), "Bad CRC-32"),
        (replace(packed(FILE, b"{}"), crc=0), "Bad CRC-32"),
        (replace(packed(FILE, b"{}"), packed=b"\xff\xff"), "cannot be read as a zip"),
        (packed(FILE, os.urandom(10) * 200_000), f"{FILE} is too large, 2,000,000 bytes where 1,000,000"),
    ],
    ids=["short", "short, all checked", "short, one more checked", "long", "stored", "checksum", "damaged", "large"],
)
def test_an_entry_is_not_believed_what_it_says(folder, entry, why):
    write_zip(folder / "a.zip", replaced(entry))
    refused(folder, "a.zip: ", why)


def test_an_entry_that_lies_is_not_unpacked_beyond_what_it_says(folder):
    write_zip(folder / "a.zip", replaced(filled(FILE, b" ", 8, claimed=500)))
    tracemalloc.start()
    try:
        refused(folder, "Bad CRC-32")
        assert tracemalloc.get_traced_memory()[1] < 2_000_000
    finally:
        tracemalloc.stop()


def test_a_zip_of_many_files_is_refused_before_they_are_listed(folder, monkeypatch):
    write_zip(folder / "a.zip", [stored(f"{n}", b"") for n in range(2_001)])
    refused(folder, "a.zip: 2,001 files are in it, more than the 2,000 allowed")
    write_zip(folder / "a.zip", [stored(f"{n}", b"") for n in range(20_000)])
    monkeypatch.setattr(zipfile, "ZipInfo", None)
    refused(folder, "those of many thousand files")


@pytest.mark.parametrize(
    "content", [b"", b"PK\5\6", b"PK\5\6" + b"\xff" * 18, b"Rar!\x1a\7" * 100, b"PK\3\4" + bytes(1000)]
)
def test_what_is_no_zip_is_a_message(folder, content):
    (folder / "a.zip").write_bytes(content)
    refused(folder, "a.zip: cannot be read as a zip")


def test_every_zip_that_is_damaged_anywhere_is_taken_in_or_refused_by_a_message(folder):
    """One byte at a time: whatever the reader of zips raises, the class goes on."""
    write_zip(folder / "a.zip", SOUND)
    whole = (folder / "a.zip").read_bytes()
    for place in range(len(whole)):
        (folder / "a.zip").write_bytes(whole[:place] + bytes([whole[place] ^ 0xFF]) + whole[place + 1 :])
        try:
            found = taken(folder).runs.get(RUN, {})
        except BadSubmission as problem:
            assert str(problem).isprintable()
        else:
            assert found.items() <= CONTENTS.items()


def test_a_zip_in_a_zip_is_opened_and_one_in_that_is_not(folder):
    path = folder / "a.zip"
    write_zip(path, SOUND)
    for _ in range(2):
        assert taken(folder).runs == {RUN: CONTENTS}
        write_zip(path, [stored("inner.zip", path.read_bytes())])
    refused(folder, "neither", "(only a.zip, inner.zip)")


NAMES = st.lists(
    st.sampled_from([RUN, "first_adapter", "runs", EX1.id, RECORD, WEIGHTS, f"{EX1.id}.ipynb", "a.zip", "..", ".", "", "C:", "\\"])
    | st.text(max_size=4),
    max_size=4,
).map("/".join)  # fmt: skip


@settings(max_examples=300, deadline=None)
@given(
    names=st.lists(NAMES.map(lambda name: name.encode("utf-8", "surrogatepass")) | st.binary(max_size=6), max_size=6),
    flags=st.sampled_from([0, 0x800]),
)
def test_any_names_in_a_zip_are_taken_in_or_refused_in_one_line(names, flags):
    with tempfile.TemporaryDirectory() as course:
        folder = Path(course) / "ann" / EX1.id
        folder.mkdir(parents=True)
        write_zip(folder / "a.zip", [stored(name, b"{}", flags=flags) for name in names])
        try:
            found = taken(folder)
        except BadSubmission as problem:
            assert str(problem).isprintable()
        else:
            assert found.notebook or found.runs or any(name.startswith(RUN) for name in found.unexpected)
            assert all(name.isprintable() for name in found.unexpected) and found.digest


def test_nothing_is_written(folder, tmp_path):
    write_zip(folder / "a.zip", [*SOUND, stored("../../x", b"")])
    before = sorted(tmp_path.rglob("*"))
    refused(folder, "leads outside")
    write_zip(folder / "a.zip", SOUND)
    taken(folder)
    assert sorted(tmp_path.rglob("*")) == before


# What a sandbox leaves


def test_what_a_notebook_left_is_collected_with_the_same_distrust(tmp_path):
    runs = tmp_path / "runs"
    assert collect_runs(runs, EX1) == ({}, ())
    run = add_run(runs)
    (run / "checkpoint.pt").touch()
    assert collect_runs(runs, EX1) == ({RUN: CONTENTS}, (f"{RUN}/checkpoint.pt",))
    os.mkfifo(run / "pipe")
    with pytest.raises(BadSubmission, match="first-adapter/pipe is a pipe"):
        collect_runs(runs, EX1)
    runs.rename(tmp_path / "elsewhere")
    runs.symlink_to("elsewhere")
    with pytest.raises(BadSubmission, match="runs is a symlink"):
        collect_runs(runs, EX1)


def test_the_notebook_as_it_was_run_is_collected_with_the_same_distrust(tmp_path):
    path = tmp_path / f"{EX1.id}.ipynb"
    with pytest.raises(BadSubmission, match=r"ex1_first_adapter.ipynb cannot be read \(No such file"):
        collect_notebook(tmp_path, EX1)
    path.write_bytes(NOTEBOOK)
    assert collect_notebook(tmp_path, EX1) == NOTEBOOK
    os.truncate(path, 10_000_001)
    with pytest.raises(BadSubmission, match="too large after it has run"):
        collect_notebook(tmp_path, EX1)
    path.unlink()
    path.symlink_to("/etc/passwd")
    with pytest.raises(BadSubmission, match="cannot be read"):
        collect_notebook(tmp_path, EX1)


# Where submissions are found

HOSTILE = [
    b"=HYPERLINK(1)", b"<img src=x>", b"m\xfcller", "m\u00fcller".encode(), b"m\\udcfcller", b"eve\nmallory,100", b"eve\x1b[2J",
    "\u202ereverse".encode(), b"x" * 255, b"\xff" * 255, b"'; DROP TABLE", b"a\\nb", b"a\nb", "\uc11c\uc5f0".encode(),
]  # fmt: skip


def test_students_of_any_name_are_found_under_names_that_can_be_stored_and_told_apart(tmp_path):
    for name in HOSTILE:
        (tmp_path / os.fsdecode(name) / EX1.id).mkdir(parents=True)
    places = find(tmp_path)
    names = [place.student for place in places]
    assert len(set(names)) == len(HOSTILE)
    for place in places:
        assert place.student.isprintable() and place.student.encode().decode() == place.student
        assert place.folder.is_dir()
    assert {"m\u00fcller", "m\\udcfcller", "m\\\\udcfcller", "\uc11c\uc5f0", "eve\\nmallory,100"} <= set(names)
    assert left_out(tmp_path) == []


def test_a_name_without_anything_odd_stays_as_it_is():
    assert printable("Ann O'Hara (\u00c5sa) 7") == "Ann O'Hara (\u00c5sa) 7"


def test_what_is_no_hand_in_is_reported_and_does_not_stop_the_class(tmp_path):
    submitted = tmp_path / "submitted"
    for path in ("ann/ex2_rank_sweep", "ann/ex1_first_adapter", "bob/ex1_first_adapter", "bob/ex9_other", ".git/x"):
        (submitted / path).mkdir(parents=True)
    (submitted / "bob" / "ex1_first_adapter.zip").touch()
    (submitted / "bob" / ".ipynb_checkpoints").mkdir()
    (submitted / "list\n.csv").touch()
    (submitted / "eve").symlink_to("ann")
    for number in range(9):
        (submitted / "ann" / f"note-{number}").touch()
    assert [(place.student, place.exercise) for place in find(submitted)] == [
        ("ann", "ex1_first_adapter"),
        ("ann", "ex2_rank_sweep"),
        ("bob", "ex1_first_adapter"),
    ]
    remarks = left_out(submitted)
    assert all(remark.isprintable() for remark in remarks)
    assert sum("submitted/ann/note-" in remark for remark in remarks) == 5
    assert "submitted/ann: 4 further entries that are not submissions" in remarks
    for part in ("submitted/bob/ex9_other: no exercise", "bob/ex1_first_adapter.zip: no exercise", "submitted/eve: a symlink",
                 "submitted/list\\n.csv: not a student's folder"):  # fmt: skip
        assert sum(part in remark for remark in remarks) == 1
    assert not any("checkpoints" in remark or ".git" in remark for remark in remarks)


@pytest.mark.parametrize("name", ["...", ".ann", ".EX1"])
def test_a_student_whose_folder_is_hidden_is_told(tmp_path, name):
    (tmp_path / name / (EX1.id.upper() if name == ".EX1" else EX1.id)).mkdir(parents=True)
    (tmp_path / ".git" / "objects").mkdir(parents=True)
    (tmp_path / ".note").touch()
    assert find(tmp_path) == []
    assert left_out(tmp_path) == [
        f"{tmp_path.name}/{name}: a name that begins with a dot is that of a hidden folder: rename it"
    ]


def test_names_that_show_only_in_part_or_look_like_another_are_told(tmp_path):
    for name in (
        "anna",
        "аnnа",
        "Anna ",
        "bob",
        "bo\u200bb",
        "kim\u3164",
        "서연",
        "jürgen",
        unicodedata.normalize("NFD", "jürgen"),
    ):
        (tmp_path / name / EX1.id).mkdir(parents=True)
    lines = doubtful_names(tmp_path)
    assert all(line.isprintable() for line in lines)
    shown = "\n".join(lines)
    assert "/bo\\u200bb: the name holds \\u200b, which shows nothing" in shown and "holds \\u3164" in shown
    assert "'\\u0430nn\\u0430') look alike" in shown or "'anna') look alike" in shown
    assert "bob ('bob')" in shown and "jürgen ('j\\xfcrgen')" in shown
    assert len(lines) == 5 and "서연" not in shown


def test_where_nothing_is_submitted_nothing_is_found(tmp_path):
    assert find(tmp_path / "submitted") == [] and left_out(tmp_path / "submitted") == []
