"""The coordinator's memory: one SQLite file, one transaction for each transition.

WAL with synchronous=FULL: a transaction that returned survives a power cut. Blobs are written before the transaction
that names them, so the journal never points at what is not there. Times are Unix seconds of the injected clock.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import sqlite3
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from fedmpq.edge_runtime import faults
from fedmpq.errors import StateError

SCHEMA_VERSION = 1
FILE = "journal.sqlite"
LOCK = "lock"

_SCHEMA = """
CREATE TABLE meta (key TEXT PRIMARY KEY, value TEXT NOT NULL) WITHOUT ROWID;
CREATE TABLE devices (
    device TEXT PRIMARY KEY, online INTEGER NOT NULL DEFAULT 0, bd_seq INTEGER NOT NULL DEFAULT 0,
    version TEXT NOT NULL DEFAULT '', profile TEXT, admission TEXT NOT NULL DEFAULT 'seen',
    reason TEXT NOT NULL DEFAULT '', detail TEXT NOT NULL DEFAULT '', samples INTEGER NOT NULL DEFAULT 0,
    limit_bytes INTEGER NOT NULL DEFAULT 0, extra_bytes INTEGER NOT NULL DEFAULT 0, budget16 INTEGER,
    bits TEXT, planned_bytes INTEGER, measured_bytes INTEGER, fallen TEXT NOT NULL DEFAULT '[]',
    last_round INTEGER NOT NULL DEFAULT 0, rejects INTEGER NOT NULL DEFAULT 0, seen_at REAL NOT NULL DEFAULT 0
) WITHOUT ROWID;
CREATE TABLE rounds (
    round INTEGER PRIMARY KEY, phase TEXT NOT NULL, opened_at REAL NOT NULL, deadline_at REAL NOT NULL DEFAULT 0,
    extensions INTEGER NOT NULL DEFAULT 0, target INTEGER NOT NULL DEFAULT 0, quorum INTEGER NOT NULL DEFAULT 0,
    weight_shift INTEGER NOT NULL DEFAULT 0, base_model TEXT NOT NULL, mean_bits TEXT NOT NULL,
    next_model TEXT, next_bits TEXT, metrics TEXT, closed_at REAL, committed_at REAL
);
CREATE TABLE assignments (
    round INTEGER NOT NULL, device TEXT NOT NULL, state TEXT NOT NULL, samples INTEGER NOT NULL,
    budget16 INTEGER NOT NULL, weight INTEGER NOT NULL DEFAULT 0, bits TEXT NOT NULL, planned_bytes INTEGER NOT NULL,
    plan BLOB, plan_sha TEXT, reason TEXT NOT NULL DEFAULT '', detail TEXT NOT NULL DEFAULT '', ref TEXT,
    manifest BLOB, pack TEXT, final_bits TEXT, measured_bytes INTEGER, bytes_up INTEGER NOT NULL DEFAULT 0,
    bytes_down INTEGER NOT NULL DEFAULT 0, answered_at REAL, PRIMARY KEY (round, device)
) WITHOUT ROWID;
CREATE TABLE verdicts (
    id INTEGER PRIMARY KEY, at REAL NOT NULL, round INTEGER NOT NULL, device TEXT NOT NULL, of TEXT NOT NULL,
    ref TEXT NOT NULL, verdict TEXT NOT NULL, detail TEXT NOT NULL
);
CREATE TABLE events (
    id INTEGER PRIMARY KEY, at REAL NOT NULL, kind TEXT NOT NULL, round INTEGER NOT NULL, device TEXT NOT NULL,
    detail TEXT NOT NULL
);
"""

#: Devices that may be selected, counted at every tick: their rows are large, so the count has an index of its own. It
#: is no part of the version: a journal without it gets it when it is opened.
_INDEX = "CREATE INDEX IF NOT EXISTS present ON devices (device) WHERE online=1 AND admission='admitted'"
_PRESENT = "SELECT COUNT(*) FROM devices WHERE online=1 AND admission='admitted'"

Row = dict[str, Any]
_JSON_COLUMNS = ("profile", "bits", "fallen", "mean_bits", "next_bits", "metrics", "final_bits")


class Journal:
    """The journal of one data directory.

    Args:
        directory: the coordinator's data directory.
        read_only: open for looking only, beside a running coordinator; nothing is created or locked.

    Raises:
        StateError: another coordinator has it, it is of another version or damaged, or (read only) absent.
    """

    def __init__(self, directory: Path, *, read_only: bool = False) -> None:
        self.path = directory / FILE
        self._lock: int | None = None
        self._of = "other"
        #: Grows with every transaction: what was read before may be stale when it has changed.
        self.changes = 0
        try:
            if read_only:
                if not self.path.is_file():
                    raise StateError(f"no coordinator journal in {directory}", "name the --dir of `coordinator serve`")
                self._db = sqlite3.connect(f"{self.path.absolute().as_uri()}?mode=ro", uri=True, isolation_level=None)
            else:
                directory.mkdir(parents=True, exist_ok=True)
                self._lock = _take_lock(directory / LOCK)
                self._db = sqlite3.connect(self.path, isolation_level=None, check_same_thread=False)
                self._db.execute("PRAGMA journal_mode=WAL")
                self._db.execute("PRAGMA synchronous=FULL")
            self._db.row_factory = sqlite3.Row
            self._db.execute("PRAGMA busy_timeout=5000")
            self._check_version(create=not read_only)
            if not read_only:
                self._db.execute(_INDEX)
        except sqlite3.DatabaseError as error:
            self.close()
            raise StateError(f"journal {self.path} cannot be used: {error}") from None
        except OSError as error:
            self.close()
            raise StateError(f"data directory {directory} cannot be used: {error.strerror}") from None
        except StateError:
            self.close()
            raise

    def _check_version(self, create: bool) -> None:
        (version,) = self._db.execute("PRAGMA user_version").fetchone()
        if version == 0 and create:
            self._db.executescript(f"BEGIN;{_SCHEMA}PRAGMA user_version={SCHEMA_VERSION};COMMIT;")
        elif version != SCHEMA_VERSION:
            raise StateError(f"journal {self.path} has version {version}, this build reads {SCHEMA_VERSION}")

    def close(self) -> None:
        """Closes the file and gives up the lock."""
        if hasattr(self, "_db"):
            self._db.close()
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None

    @contextlib.contextmanager
    def transaction(self, of: str = "other") -> Iterator[Journal]:
        """All writes inside happen together or not at all. `of` names the transition, for the fault points."""
        try:
            faults.point(f"{of}:begin")
            self._db.execute("BEGIN IMMEDIATE")
            self._of = of
            yield self
            faults.point(f"{of}:written")
            self._db.execute("COMMIT")
            self.changes += 1
            faults.point(f"{of}:committed")
        except sqlite3.Error as error:
            self._roll_back()
            hint = "free some space; nothing is lost" if "full" in str(error) else ""
            raise StateError(f"journal {self.path} cannot be written: {error}", hint) from None
        except BaseException:
            self._roll_back()
            raise

    def _roll_back(self) -> None:
        if self._db.in_transaction:
            self._db.execute("ROLLBACK")

    @contextlib.contextmanager
    def _reading(self) -> Iterator[None]:
        """A damaged page, or text that is none, is an error of the directory and not of the program."""
        try:
            yield
        except (sqlite3.Error, ValueError) as error:
            raise StateError(
                f"journal {self.path} cannot be read: {error}", "`fedmpq coordinator verify` says whether it is damaged"
            ) from None

    @contextlib.contextmanager
    def snapshot(self) -> Iterator[None]:
        """Everything read inside is of one moment, whatever a coordinator writes meanwhile. Nothing is written."""
        with self._reading():
            self._db.execute("BEGIN")
        try:
            yield
        finally:
            self._roll_back()

    def rows(self, query: str, *arguments: object) -> list[Row]:
        """The rows of a SELECT; JSON columns are parsed."""
        with self._reading():
            return [_parsed(row) for row in self._db.execute(query, arguments)]

    def row(self, query: str, *arguments: object) -> Row | None:
        """The first row of a SELECT."""
        with self._reading():
            row = self._db.execute(query, arguments).fetchone()
            return None if row is None else _parsed(row)

    def present(self) -> int:
        """How many devices may be selected."""
        with self._reading():
            (count,) = self._db.execute(_PRESENT).fetchone()
            return int(count)

    def write(self, statement: str, *arguments: object) -> None:
        """One INSERT, UPDATE or DELETE; lists and dicts go in as JSON."""
        self._db.execute(statement, [_stored(value) for value in arguments])
        faults.point(f"{self._of}:statement")

    def set_fields(self, table: str, keys: Row, fields: Row) -> None:
        """UPDATE `table` SET fields WHERE keys; names come from our own code only."""
        assignments = ", ".join(f"{name}=?" for name in fields)
        where = " AND ".join(f"{name}=?" for name in keys)
        self.write(f"UPDATE {table} SET {assignments} WHERE {where}", *fields.values(), *keys.values())  # noqa: S608

    def add_row(self, table: str, fields: Row) -> None:
        """INSERT one row; names come from our own code only."""
        names, marks = ", ".join(fields), ", ".join("?" for _ in fields)
        self.write(f"INSERT INTO {table} ({names}) VALUES ({marks})", *fields.values())  # noqa: S608

    def meta(self, key: str) -> str | None:
        """A value of the run as a whole."""
        with self._reading():
            row = self._db.execute("SELECT value FROM meta WHERE key=?", (key,)).fetchone()
            return None if row is None else str(row[0])

    def set_meta(self, key: str, value: str) -> None:
        """Sets a value of the run as a whole."""
        self.write("INSERT OR REPLACE INTO meta (key, value) VALUES (?, ?)", key, value)

    def blob_names(self) -> set[str]:
        """Every blob that the run still needs: program, models, and the updates of rounds not committed."""
        names = {self.meta("program"), self.meta("model")}
        for row in self.rows("SELECT base_model, next_model FROM rounds"):
            names |= {row["base_model"], row["next_model"]}
        query = "SELECT pack FROM assignments JOIN rounds USING (round) WHERE phase IN ('collect', 'aggregate')"
        names |= {row["pack"] for row in self.rows(query)}
        return {name for name in names if name}

    def copy_to(self, target: sqlite3.Connection) -> None:
        """One moment of the journal into another database."""
        self._db.backup(target)

    def damage(self) -> list[str]:
        """What SQLite finds wrong with its pages and indices."""
        try:
            found = [str(row[0]) for row in self._db.execute("PRAGMA integrity_check(20)")]
        except sqlite3.DatabaseError as error:
            return [str(error)]
        return [] if found == ["ok"] else found

    def event(self, at: float, kind: str, round_no: int = 0, device: str = "", detail: str = "") -> None:
        """Notes something an operator may ask about later."""
        self.write(
            "INSERT INTO events (at, kind, round, device, detail) VALUES (?, ?, ?, ?, ?)",
            at, kind, round_no, device, detail,
        )  # fmt: skip

    def verdict(self, at: float, round_no: int, device: str, of: str, ref: str, verdict: str, detail: str) -> None:
        """Notes what became of a message that asked for a verdict."""
        self.write(
            "INSERT INTO verdicts (at, round, device, of, ref, verdict, detail) VALUES (?, ?, ?, ?, ?, ?, ?)",
            at, round_no, device, of, ref, verdict, detail,
        )  # fmt: skip


def is_locked(directory: Path) -> bool:
    """Whether a coordinator is using a directory now."""
    try:
        os.close(_take_lock(directory / LOCK))
    except StateError:
        return True
    return False


def _take_lock(path: Path) -> int:
    handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(handle)
        raise StateError(
            f"another coordinator is using {path.parent}", "stop it first or choose another directory"
        ) from None
    return handle


def _stored(value: object) -> object:
    if isinstance(value, list | dict | tuple):
        return json.dumps(value, sort_keys=True, separators=(",", ":"))
    return value


def _parsed(row: sqlite3.Row) -> Row:
    values = dict(row)
    for name in _JSON_COLUMNS:
        if isinstance(values.get(name), str):
            values[name] = json.loads(values[name])
    return values


def ints(values: Sequence[Any]) -> tuple[int, ...]:
    """A JSON list of numbers as a tuple."""
    return tuple(int(value) for value in values)
