"""The ledger: every verdict the moment it is reached, so that what was graded once is not graded again.

One SQLite file, one transaction a verdict: a run that is killed anywhere has lost nothing but what it was at.
"""

from __future__ import annotations

import hashlib
import json
import os
import secrets
import sqlite3
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import astuple, dataclass, fields
from functools import cache
from pathlib import Path
from types import TracebackType
from typing import Any

from loralab.provenance import CODE, digest, files_below
from loralab.record import now, versions

from ..errors import LedgerError
from ..exercises import ROOT, SEED_BITS
from ..verdict import Verdict

Value = str | int | float | None  # what a column holds
APPLICATION = 0x4C6F5241  # "LoRA": another program's database is not taken for a ledger

# The steps from an empty file to the present tables. A ledger notes how many of them it has behind it, and takes the
# others when it is opened. Steps are added at the end; one that is there is never changed, for it has been taken.
MIGRATIONS = (
    """
    CREATE TABLE verdict (
        id INTEGER PRIMARY KEY,
        student TEXT NOT NULL, exercise TEXT NOT NULL, digest TEXT NOT NULL, base TEXT NOT NULL, mode TEXT NOT NULL,
        grader_version TEXT NOT NULL, heldout_seed INTEGER NOT NULL,
        state TEXT NOT NULL, recorded TEXT NOT NULL, verdict TEXT NOT NULL
    );
    CREATE INDEX verdict_key ON verdict (student, exercise, digest);
    CREATE TABLE latest (
        student TEXT NOT NULL, exercise TEXT NOT NULL, verdict INTEGER NOT NULL REFERENCES verdict (id),
        PRIMARY KEY (student, exercise)
    );
    CREATE TABLE class (heldout_seed INTEGER NOT NULL);
    """,
    "DROP TABLE latest",  # which verdict counts is a matter of what is submitted, and nothing read this
    # SQLite's integers have 64 bits; a larger seed is kept as its bytes, which the type of the other column lets through.
    """
    CREATE TABLE seed (heldout_seed BLOB NOT NULL);
    INSERT INTO seed SELECT heldout_seed FROM class;
    DROP TABLE class;
    ALTER TABLE seed RENAME TO class
    """,
    # What a term adds (`term.history`): what people decided, the results as they were written last and what they depended
    # on, the parts of the grader that they came from, and the options of the last `grade`.
    """
    CREATE TABLE decision (
        id INTEGER PRIMARY KEY,
        student TEXT NOT NULL, exercise TEXT NOT NULL, kind TEXT NOT NULL, points REAL, note TEXT NOT NULL,
        recorded TEXT NOT NULL
    );
    CREATE TABLE published (
        student TEXT NOT NULL, exercise TEXT NOT NULL, verdict TEXT NOT NULL, key TEXT NOT NULL,
        PRIMARY KEY (student, exercise)
    );
    CREATE TABLE parts (grader_version TEXT PRIMARY KEY, hashes TEXT NOT NULL);
    CREATE TABLE options (only_row INTEGER PRIMARY KEY CHECK (only_row = 1), value TEXT NOT NULL)
    """,
)

# What decides a verdict: the code of these packages, and in these folders the files with these endings (none: all files).
DECISIVE_CODE = ("grader", "loralab")
BANDS = "grader/evaluation/bands"
DECISIVE_DATA = {
    BANDS: [".json"],
    "solutions": [".ipynb"],
    "exercises": [".ipynb"],
    "data/base": [],
    "data/desk": [],
    "data/pairs": [],
}
# Code that decides no verdict: it shows or stores verdicts, or is another tool. Changing it regrades no submission.
DECIDES_NOTHING = (
    *("grader/term", "grader/reports", "grader/records", "grader/release"),
    *("grader/cli", "grader/grading", "grader/console", "grader/__main__"),
    *("grader/submission/sanitize", "grader/submission/similarity"),
    *("loralab/ability", "loralab/chat", "loralab/cli", "loralab/compare", "loralab/export", "loralab/fit"),
    *("loralab/gate", "loralab/llamacpp", "loralab/sweep", "loralab/sweep_report", "loralab/train_command"),
)


@dataclass(frozen=True)
class Key:
    """All that a verdict depends on: where nothing of it has changed, the verdict has not either.

    `digest` is of the submission's content; `mode` says how its runs came about, as in "sandbox" or "artifacts".
    """

    student: str
    exercise: str
    digest: str
    base: str
    mode: str
    grader_version: str
    heldout_seed: int

    @property
    def origin(self) -> str:
        """What a notebook that is shown was made from: a submission, and how it was run (SHA-256); nothing secret."""
        made_from = [self.exercise, self.digest, self.base, self.mode]
        return hashlib.sha256(json.dumps(made_from).encode()).hexdigest()


class Ledger:
    """The ledger at `path`, made if there is none (readable by its owner alone), and locked until it is closed.

    `heldout_seed` draws the held-out pairs of the class. It is drawn once and kept; a given one is kept in its place.
    One that an older grader wrote is brought up to the present tables.
    Raises `LedgerError` if the file is no ledger, is damaged, is of a newer grader, or is in use by another run.
    """

    def __init__(self, path: Path, heldout_seed: int | None = None) -> None:
        self.path = path
        with self._explained():
            path.parent.mkdir(parents=True, exist_ok=True)
            os.close(os.open(path, os.O_RDWR | os.O_CREAT, 0o600))
            self._database = sqlite3.connect(path, timeout=0, isolation_level=None)
        try:
            with self._explained():
                self._take()
                self.heldout_seed = self._seed(heldout_seed)
        except BaseException:
            self._database.close()
            raise

    def __enter__(self) -> Ledger:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        """Give the ledger free for another run."""
        self._database.close()

    def find(self, key: Key) -> Verdict | None:
        """Return the verdict recorded under `key`, or None; "grader failed" is no verdict and is never found.

        A damaged one is not found either, so it is graded again.
        """
        where = " AND ".join(f"{field.name} = ?" for field in fields(Key))
        query = f"SELECT verdict FROM verdict WHERE {where} AND state != 'grader failed' ORDER BY id DESC LIMIT 1"
        with self._explained():
            row = self._database.execute(query, _storable(key)).fetchone()
        try:
            return row and Verdict.model_validate(json.loads(row[0]))
        except ValueError:
            return None

    def record(self, key: Key, verdict: Verdict) -> None:
        """Keep `verdict`; when this returns it is on the disk."""
        names = [field.name for field in fields(Key)] + ["state", "recorded", "verdict"]
        insert = f"INSERT INTO verdict ({', '.join(names)}) VALUES ({', '.join('?' * len(names))})"
        # Python's json keeps NaN and infinity, which a run that diverged may claim
        values = (*_storable(key), verdict.state, now(), json.dumps(verdict.model_dump()))
        with self._transaction():
            self._database.execute(insert, values)

    def query(self, statement: str, values: tuple[Value, ...] = ()) -> list[tuple[Any, ...]]:
        """Run a statement in a transaction of its own, for the tables of `term.history`, and return its rows."""
        with self._transaction():
            return self._database.execute(statement, tuple(map(_storable_value, values))).fetchall()

    def write(self, statement: str, rows: Sequence[tuple[str, ...]]) -> None:
        """Run a statement for each of these rows, for all of them or for none."""
        with self._transaction():
            self._database.executemany(statement, [tuple(map(_storable_value, row)) for row in rows])

    def _take(self) -> None:
        """Lock the file, and bring it up to the present tables if it is a ledger and whole."""
        # The first transaction's lock is kept; it ends with us.
        self._database.execute("PRAGMA locking_mode = EXCLUSIVE")
        self._database.execute("PRAGMA synchronous = EXTRA")
        with self._transaction():
            application, version = self._one("PRAGMA application_id"), self._one("PRAGMA user_version")
            new = not application and not version and not self._one("SELECT count(*) FROM sqlite_schema")
            if application != APPLICATION and not new:
                raise LedgerError(f"{self.path}: is the database of another program, not a ledger: name another file")
            if version > len(MIGRATIONS):
                raise LedgerError(
                    f"{self.path}: a ledger of version {version}, and this grader knows versions up to {len(MIGRATIONS)}:"
                    " use the grader that wrote it, or a newer one"
                )
            if (state := self._one("PRAGMA quick_check(1)")) != "ok":
                raise sqlite3.DatabaseError(state)
            for step in MIGRATIONS[version:]:
                for statement in step.split(";"):
                    self._database.execute(statement)
            self._database.execute(f"PRAGMA application_id = {APPLICATION}")
            self._database.execute(f"PRAGMA user_version = {len(MIGRATIONS)}")

    def _one(self, query: str) -> Any:
        """Return the one value that a query gives."""
        return self._database.execute(query).fetchone()[0]

    def _seed(self, given: int | None) -> int:
        with self._transaction():
            row = self._database.execute("SELECT heldout_seed FROM class").fetchone()
            kept = int.from_bytes(row[0], "big") if row and isinstance(row[0], bytes) else row and row[0]
            if kept is not None and given in (None, kept):
                return kept
            seed = secrets.randbits(SEED_BITS) if given is None else given
            self._database.execute("DELETE FROM class")
            self._database.execute("INSERT INTO class VALUES (?)", (_storable_value(seed),))
        return seed

    @contextmanager
    def _transaction(self) -> Iterator[None]:
        """Do all or nothing of what is inside. An error of the database becomes a `LedgerError`."""
        with self._explained():
            self._database.execute("BEGIN EXCLUSIVE")
            try:
                yield
            except BaseException:
                self._database.rollback()
                raise
            self._database.commit()

    @contextmanager
    def _explained(self) -> Iterator[None]:
        try:
            yield
        except sqlite3.OperationalError as error:
            if "locked" in str(error):
                raise LedgerError(
                    f"{self.path}: another grading run has this ledger; wait until it has ended"
                ) from None
            raise LedgerError(f"{self.path}: cannot be used: {error}") from None
        except OSError as error:
            raise LedgerError(f"{self.path}: cannot be used: {error.strerror}") from None
        except sqlite3.DatabaseError as error:
            what = " ".join(str(error).split())
            raise LedgerError(
                f"{self.path}: is damaged or not a ledger ({what}): put back a copy of it, for it holds the class's"
                " secret seed"
            ) from None


def _storable(key: Key) -> tuple[bytes | Value, ...]:
    return tuple(map(_storable_value, astuple(key)))


def _storable_value(value: Value) -> bytes | Value:
    """Return a name that is no valid text, or a number beyond SQLite's, as bytes, which it keeps apart from all else."""
    if isinstance(value, int) and value >= 2**63:
        return value.to_bytes(SEED_BITS // 8, "big")
    if isinstance(value, str) and any("\ud800" <= letter <= "\udfff" for letter in value):
        return value.encode("utf-8", "surrogatepass")
    return value


def decides(name: str) -> bool:
    """Tell whether a file of the code, by its path in the repository, has a part in verdicts."""
    return not any(name == f"{part}.py" or name.startswith(f"{part}/") for part in DECIDES_NOTHING)


@cache
def decisive_code() -> str:
    """Return a hash of all that decides a verdict but the submission: code, notebooks, data and the main packages."""
    return _hash(decisive_parts())


def decisive_parts() -> dict[str, str]:
    """Return the hash of each part of what `decisive_code` covers: a package's code, a folder's data, the versions.

    Comparing them shows what changed: data is a part by the name of its folder in `DECISIVE_DATA`, code by its package's.
    """
    code = {package: _decisive_files(package) for package in DECISIVE_CODE}
    data = {folder: files_below(ROOT / folder, suffixes) for folder, suffixes in DECISIVE_DATA.items()}
    return {name: digest(files) for name, files in (code | data).items()} | {"versions": _hash(versions())}


def _decisive_files(package: str) -> dict[str, Path]:
    whole = {f"{package}/{name}": (name, path) for name, path in files_below(ROOT / package, CODE).items()}
    return dict(one for name, one in whole.items() if decides(name) and not name.startswith(f"{BANDS}/"))


def _hash(parts: dict[str, str]) -> str:
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()
