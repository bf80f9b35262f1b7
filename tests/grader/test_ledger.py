"""The ledger: nothing that was reached is lost, and nothing is graded twice."""

import math
import multiprocessing
import os
import signal
import sqlite3
import stat
import time
from dataclasses import replace
from pathlib import Path

import pytest

from grader.errors import LedgerError
from grader.records import ledger as module
from grader.records.ledger import Key, Ledger, decisive_code
from grader.verdict import Check, Verdict
from loralab import RunRecord

KEY = Key("ann", "ex1_first_adapter", "d1", "embedded", "sandbox", "v1", 7)


def verdict(key=KEY, state="graded", points=100.0, **more):
    checks = [Check(name="all", expected="", found="", points=points, passed=True)] if state == "graded" else []
    who = {"exercise": key.exercise, "student": key.student, "base": key.base}
    return Verdict(**who, state=state, checks=checks, **more)


@pytest.fixture
def path(tmp_path):
    return tmp_path / "grades" / "ledger.db"


@pytest.fixture
def ledger(path):
    with Ledger(path) as opened:
        yield opened


def test_a_verdict_is_found_again_after_the_ledger_was_closed(path):
    with Ledger(path) as ledger:
        ledger.record(KEY, verdict())
    with Ledger(path) as ledger:
        assert ledger.find(KEY) == verdict()


def test_a_text_that_was_cut_is_found_again_as_it_was(ledger):
    long = Check(name="functions", expected="", found="", points=1, passed=False, message="raised an error; " * 90)
    ledger.record(KEY, verdict().model_copy(update={"checks": [long]}))
    assert ledger.find(KEY).checks == [long]


@pytest.mark.parametrize("field", KEY.__dataclass_fields__)
def test_whatever_a_verdict_depends_on_has_changed_it_is_not_found(ledger, field):
    ledger.record(KEY, verdict())
    value = getattr(KEY, field)
    assert ledger.find(replace(KEY, **{field: value + 1 if isinstance(value, int) else value + "x"})) is None


def test_a_failure_of_the_grader_is_kept_and_never_found(ledger):
    ledger.record(KEY, verdict(state="grader failed", message="out of memory"))
    assert ledger.find(KEY) is None
    ledger.record(KEY, verdict())
    assert ledger.find(KEY) == verdict()


def test_what_a_diverged_run_claims_is_kept(ledger):
    claim = RunRecord(name="r", base="embedded", trainable=1, parameters=2, train_pairs=1, tokens=1, epochs=1, batch_size=1,
                      learning_rate=1, seed=0, losses=[math.nan, math.inf, 0.1], seconds=1, peak_memory=1,
                      ppl_after=math.nan, dtype="float32")  # fmt: skip
    given = verdict(claims={"r": claim}, perplexities={"fresh": math.inf, "public": math.nan})
    ledger.record(KEY, given)
    assert repr(ledger.find(KEY)) == repr(given)


@pytest.mark.parametrize("name", ["=cmd()|x", "<b>", "'; DROP TABLE verdict; --", "n\udc80\udcff", "名" * 500])
def test_any_folder_name_can_be_a_student(ledger, name):
    key = replace(KEY, student=name)
    ledger.record(KEY, verdict())
    ledger.record(key, verdict(key, points=1))
    assert ledger.find(key) == verdict(key, points=1)
    assert ledger.find(KEY) == verdict()


def test_a_name_that_is_no_text_is_not_mistaken_for_its_spelling(ledger):
    key = replace(KEY, student="n\udc80")
    ledger.record(key, verdict(key))
    assert ledger.find(replace(KEY, student="n\\udc80")) is None


def test_the_secret_seed_is_drawn_once_and_kept(path, tmp_path):
    with Ledger(path) as ledger:
        seed = ledger.heldout_seed
    with Ledger(path) as ledger:
        assert ledger.heldout_seed == seed
    with Ledger(tmp_path / "other.db") as other:
        assert other.heldout_seed != seed


def test_the_secret_seed_cannot_be_found_by_trying_all_of_them(path):
    with Ledger(path, 2**128 - 1) as ledger:
        key = replace(KEY, heldout_seed=ledger.heldout_seed)
        ledger.record(key, verdict(key))
        assert ledger.find(key) and ledger.find(KEY) is None
    with Ledger(path) as ledger:
        assert ledger.heldout_seed == 2**128 - 1 and ledger.find(key)
    seeds = []
    for number in range(20):
        with Ledger(path.with_name(f"{number}.db")) as ledger:
            seeds.append(ledger.heldout_seed)
    assert 2**120 < max(seeds) < 2**128 and len(set(seeds)) == 20


def test_a_given_seed_is_kept_in_place_of_the_drawn_one(path):
    for given, kept in ((None, None), (5, 5), (None, 5), (0, 0), (None, 0)):
        with Ledger(path, given) as ledger:
            assert kept is None or ledger.heldout_seed == kept


def test_only_its_owner_can_read_it(path):
    previous = os.umask(0)
    try:
        with Ledger(path) as ledger:
            ledger.record(KEY, verdict())
            assert {stat.S_IMODE(file.stat().st_mode) for file in path.parent.iterdir()} == {0o600}
    finally:
        os.umask(previous)


def test_a_second_run_is_told_and_harms_nothing(ledger, path):
    ledger.record(KEY, verdict())
    with pytest.raises(LedgerError, match="another grading run has this ledger; wait until it has ended"):
        Ledger(path)
    key = replace(KEY, student="bob")
    ledger.record(key, verdict(key))
    assert ledger.find(KEY) and ledger.find(key)


@pytest.mark.parametrize(
    "content", [b"no database at all, but long enough to be looked at" * 100, b"SQLite format 3\0" * 300]
)
def test_a_file_that_is_no_ledger_is_refused_and_left_as_it_is(tmp_path, content):
    path = tmp_path / "ledger.db"
    path.write_bytes(content)
    with pytest.raises(LedgerError, match=r"ledger.db: is damaged or not a ledger .*: put back a copy") as refused:
        Ledger(path)
    assert "\n" not in str(refused.value)
    assert path.read_bytes() == content


def test_a_truncated_ledger_is_refused(path):
    with Ledger(path) as ledger:
        for number in range(50):
            ledger.record(replace(KEY, digest=str(number)), verdict(message="x" * 1000))
    os.truncate(path, path.stat().st_size // 2)
    with pytest.raises(LedgerError, match="is damaged"):
        Ledger(path)


def test_another_programs_database_is_refused(tmp_path):
    path = tmp_path / "gradebook.db"
    with sqlite3.connect(path) as database:
        database.execute("CREATE TABLE verdict (id)")
    with pytest.raises(LedgerError, match="the database of another program"):
        Ledger(path)


def write_as_the_first_version(path, monkeypatch, seed=4711):
    with monkeypatch.context() as first:
        first.setattr(module, "MIGRATIONS", module.MIGRATIONS[:1])
        with Ledger(path, seed) as ledger:
            ledger.record(KEY, verdict())
    with sqlite3.connect(path) as database:
        database.execute("INSERT INTO latest VALUES ('ann', 'ex1_first_adapter', 1)")


def tables(path):
    with sqlite3.connect(path) as database:
        names = {name for (name,) in database.execute("SELECT name FROM sqlite_schema WHERE type = 'table'")}
        return names, database.execute("PRAGMA user_version").fetchone()[0]


def test_a_ledger_of_the_first_version_is_upgraded_and_keeps_seed_and_verdicts(path, monkeypatch):
    write_as_the_first_version(path, monkeypatch)
    with Ledger(path) as ledger:
        assert ledger.heldout_seed == 4711
        assert ledger.find(KEY) == verdict()
    present = {"verdict", "class", "decision", "published", "parts", "options"}
    assert tables(path) == (present, len(module.MIGRATIONS))


def test_an_upgrade_that_fails_leaves_the_ledger_as_it_was(path, monkeypatch):
    write_as_the_first_version(path, monkeypatch)
    with monkeypatch.context() as broken:
        broken.setattr(module, "MIGRATIONS", (*module.MIGRATIONS, "DROP TABLE nothing_of_this_name"))
        with pytest.raises(LedgerError, match="cannot be used: no such table"):
            Ledger(path)
    assert tables(path) == ({"verdict", "class", "latest"}, 1)
    with Ledger(path) as ledger:
        assert ledger.find(KEY) == verdict()


def test_a_ledger_of_a_newer_grader_is_refused_and_left_as_it_is(path, monkeypatch):
    with monkeypatch.context() as newer:
        newer.setattr(module, "MIGRATIONS", (*module.MIGRATIONS, "CREATE TABLE news (id)"))
        Ledger(path).close()
    before = path.read_bytes()
    known = len(module.MIGRATIONS)
    with pytest.raises(
        LedgerError,
        match=f"a ledger of version {known + 1}, and this grader knows versions up to {known}: use the grader",
    ):
        Ledger(path)
    assert path.read_bytes() == before


def test_a_verdict_that_is_damaged_is_reached_anew(path):
    with Ledger(path) as ledger:
        ledger.record(KEY, verdict())
    with sqlite3.connect(path) as database:
        database.execute("UPDATE verdict SET verdict = '{}'")
    with Ledger(path) as ledger:
        assert ledger.find(KEY) is None
        ledger.record(KEY, verdict())
        assert ledger.find(KEY) == verdict()


def test_a_folder_in_its_place_is_one_clear_line(tmp_path):
    with pytest.raises(LedgerError, match="cannot be used: Is a directory"):
        Ledger(tmp_path)


def _write_on(path, begin, acknowledged):
    with Ledger(path) as ledger:
        for number in range(begin, 10**9):
            key = replace(KEY, student=str(number))
            ledger.record(key, verdict(key, message="x" * 5000))
            acknowledged.send(number)


def test_a_run_that_is_killed_leaves_all_it_had_recorded(path):
    fork = multiprocessing.get_context("fork")
    done = -1
    for pause in (0.0, 0.01, 0.03, 0.05, 0.1):
        receiver, sender = fork.Pipe(duplex=False)
        writer = fork.Process(target=_write_on, args=(path, done + 1, sender))
        writer.start()
        sender.close()
        done = receiver.recv()  # it is at work
        time.sleep(pause)
        os.kill(writer.pid, signal.SIGKILL)
        writer.join()
        try:
            while True:
                done = receiver.recv()
        except EOFError:
            pass
        with Ledger(path):  # the lock went with it, and what is in it is whole
            pass
        with sqlite3.connect(path) as database:
            found = {int(student) for (student,) in database.execute("SELECT student FROM verdict")}
        assert found in (set(range(done + 1)), set(range(done + 2)))  # one may be on the disk and not yet acknowledged
        done = max(found)
    assert done > 5


@pytest.fixture
def clone(tmp_path, monkeypatch):
    """A grader of few files, and the hash of what decides its verdicts after each change."""
    monkeypatch.setattr(module, "ROOT", tmp_path)

    def write(name, content):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content)
        return decisive_code.__wrapped__()

    return write


DECISIVE = [
    "grader/pipeline.py", "grader/evaluation/checks.py", "grader/evaluation/bands/ex1_first_adapter.json",
    "grader/submission/rebuild.py", "grader/sandbox/run_notebook.py", "grader/lms/of/the/future.py", "loralab/training.py",
    "solutions/ex1/ex1.ipynb", "exercises/ex1/ex1.ipynb", "data/base/config.json", "data/pairs/far/eval.jsonl",
]  # fmt: skip
SHOWN = [
    "grader/reports/html.py", "grader/reports/templates/class_report.html.j2", "grader/records/ledger.py",
    "grader/submission/sanitize.py", "grader/cli.py", "grader/term/deadlines.py", "grader/console.py", "loralab/cli.py", "exercises/ex1/runs/lora/run.json", "README.md",
]  # fmt: skip


@pytest.mark.parametrize("name", DECISIVE)
def test_whatever_decides_a_verdict_changes_the_hash_however_deep_it_lies(clone, name):
    assert (
        len({clone(name, "a = 1"), clone(name, "a = 2"), clone(f"{Path(name).parent}/new{Path(name).suffix}", "")}) == 3
    )


@pytest.mark.parametrize("name", SHOWN)
def test_a_page_that_changes_regrades_nobody(clone, name):
    assert clone(name, "a = 1") == clone(name, "a = 2")


def test_other_packages_are_another_grader(clone, monkeypatch):
    before = clone("grader/pipeline.py", "")
    monkeypatch.setattr(module, "versions", lambda: {"torch": "0"})
    assert clone("grader/pipeline.py", "") != before


def test_all_that_the_hash_names_is_there():
    code = [name for name in module.DECIDES_NOTHING if not (module.ROOT / f"{name}.py").exists()]
    assert [name for name in [*module.DECISIVE_DATA, *code] if not (module.ROOT / name).is_dir()] == []
