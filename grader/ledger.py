"""The ledger: every verdict the moment it is reached, so that what was graded once is not graded again.

One SQLite file, one transaction a verdict: a run that is killed anywhere has lost nothing but what it was at.
"""

from __future__ import annotations

import hashlib
import json
import os
import secrets
import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import astuple, dataclass, fields
from functools import cache
from pathlib import Path
from types import TracebackType
from typing import Any

from pydantic import ValidationError

from loralab.record import now, versions

from .exercises import ROOT
from .verdict import Verdict

APPLICATION, SCHEMA = 0x4C6F5241, 1  # "LoRA": another program's database is not taken for a ledger

# What decides a verdict: the grader, what a notebook imports, the notebooks, the base and the pairs it is measured on.
SOURCES = (
    "grader/*.py",
    "grader/bands/*.json",
    "loralab/*.py",
    "solutions/*/*.ipynb",
    "exercises/*/*.ipynb",
    "data/base/*",
    "data/desk/*",
    "data/pairs/**/*.jsonl",
)

TABLES = """
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
"""


class LedgerError(RuntimeError):
    """A ledger that cannot be used; the message says in one line why, and what to do."""


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
        """What a notebook that is shown was made from: a hand-in, and how it was run (SHA-256); nothing secret."""
        made_from = [self.exercise, self.digest, self.base, self.mode]
        return hashlib.sha256(json.dumps(made_from).encode()).hexdigest()


class Ledger:
    """The ledger at `path`, made if there is none (readable by its owner alone), and locked until it is closed.

    `heldout_seed` draws the held-out pairs of the class. It is drawn once and kept; a given one is kept in its place.
    Raises `LedgerError` if the file is no ledger, is damaged, is of another version, or is in use by another run.
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
        """The verdict recorded under `key`, or None; "grader failed" is no verdict and is never found.

        What is found counts from now on as the latest of its student and exercise.
        """
        where = " AND ".join(f"{field.name} = ?" for field in fields(Key))
        query = f"SELECT id, verdict FROM verdict WHERE {where} AND state != 'grader failed' ORDER BY id DESC LIMIT 1"
        with self._transaction():
            row = self._database.execute(query, _storable(key)).fetchone()
            if row is None:
                return None
            self._point_to(key, row[0])
        return self._read(row[1])

    def record(self, key: Key, verdict: Verdict) -> None:
        """Keep `verdict`; when this returns it is on the disk."""
        names = [field.name for field in fields(Key)] + ["state", "recorded", "verdict"]
        insert = f"INSERT INTO verdict ({', '.join(names)}) VALUES ({', '.join('?' * len(names))})"
        # Python's json keeps NaN and infinity, which a run that diverged may claim
        values = (*_storable(key), verdict.state, now(), json.dumps(verdict.model_dump()))
        with self._transaction():
            row = self._database.execute(insert, values).lastrowid
            self._point_to(key, row)

    def latest(self) -> list[Verdict]:
        """The latest verdict of every student and exercise, "grader failed" included, in the order of their names."""
        query = "SELECT verdict.verdict FROM latest JOIN verdict ON verdict.id = latest.verdict"
        with self._explained():
            rows = self._database.execute(f"{query} ORDER BY latest.student, latest.exercise").fetchall()
        return [self._read(text) for (text,) in rows]

    def query(self, statement: str, values: tuple[str | float | None, ...] = ()) -> list[tuple[Any, ...]]:
        """Run a statement in a transaction of its own, for the tables that other modules keep in this file."""
        with self._transaction():
            return self._database.execute(statement, values).fetchall()

    def _point_to(self, key: Key, row: int | None) -> None:
        values = (*_storable(key)[:2], row)
        self._database.execute(
            "INSERT INTO latest VALUES (?, ?, ?) ON CONFLICT DO UPDATE SET verdict = excluded.verdict"
            " WHERE verdict != excluded.verdict",
            values,
        )

    def _read(self, text: str) -> Verdict:
        try:
            return Verdict.model_validate(json.loads(text))
        except (ValidationError, ValueError):
            raise LedgerError(
                f"{self.path}: holds a verdict that this version of the grader cannot read: move the file away"
            ) from None

    def _take(self) -> None:
        """Lock the file, see that it is whole and a ledger, and make the tables in a new one."""
        self._database.execute(
            "PRAGMA locking_mode = EXCLUSIVE"
        )  # the first transaction's lock is kept; it ends with us
        self._database.execute("PRAGMA synchronous = EXTRA")
        with self._transaction():
            found = [
                self._database.execute(f"PRAGMA {name}").fetchone()[0] for name in ("application_id", "user_version")
            ]
            if found == [0, 0] and not self._database.execute("SELECT count(*) FROM sqlite_schema").fetchone()[0]:
                for statement in TABLES.split(";"):
                    self._database.execute(statement)
                self._database.execute(f"PRAGMA application_id = {APPLICATION}")
                self._database.execute(f"PRAGMA user_version = {SCHEMA}")
            elif found[0] != APPLICATION:
                raise LedgerError(f"{self.path}: is the database of another program, not a ledger: name another file")
            elif found[1] != SCHEMA:
                raise LedgerError(
                    f"{self.path}: a ledger of version {found[1]}, and this grader writes version {SCHEMA}:"
                    " move the file away to grade everything again"
                )
        state = self._database.execute("PRAGMA quick_check(1)").fetchone()[0]
        if state != "ok":
            raise sqlite3.DatabaseError(state)

    def _seed(self, given: int | None) -> int:
        with self._transaction():
            row = self._database.execute("SELECT heldout_seed FROM class").fetchone()
            if row is not None and given in (None, row[0]):
                return row[0]
            seed = secrets.randbelow(2**31) if given is None else given
            self._database.execute("DELETE FROM class")
            self._database.execute("INSERT INTO class VALUES (?)", (seed,))
        return seed

    @contextmanager
    def _transaction(self) -> Iterator[None]:
        """All or nothing of what is inside. An error of the database becomes a `LedgerError`."""
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
                f"{self.path}: is damaged or not a ledger ({what}): put back a copy, or move the file away"
                " to grade everything again"
            ) from None


def _storable(key: Key) -> tuple[str | bytes | int, ...]:
    """The key's values; a folder's name that is no valid text as bytes, which SQLite keeps apart from every text."""
    return tuple(v.encode("utf-8", "surrogatepass") if _is_no_text(v) else v for v in astuple(key))


def _is_no_text(value: str | int) -> bool:
    return isinstance(value, str) and any("\ud800" <= letter <= "\udfff" for letter in value)


@cache
def grader_version() -> str:
    """A hash of all that decides a verdict but the submission: of everything in `source_hashes`."""
    return hashlib.sha256(json.dumps(source_hashes(), sort_keys=True).encode()).hexdigest()


def source_hashes() -> dict[str, str]:
    """The hash of each kind of `SOURCES`, and of the versions of the main packages, so that it is seen what changed."""
    found = {"packages": hashlib.sha256(json.dumps(versions(), sort_keys=True).encode()).hexdigest()}
    for pattern in SOURCES:
        digest = hashlib.sha256()
        for path in sorted(ROOT.glob(pattern)):
            content = path.read_bytes()
            digest.update(f"\n{path.relative_to(ROOT).as_posix()} {len(content)}\n".encode())
            digest.update(content)
        found[pattern] = digest.hexdigest()
    return found
