"""A copy of a coordinator's data directory that a coordinator can start on, made while the original runs."""

from __future__ import annotations

import shutil
import sqlite3
import tempfile
from pathlib import Path
from typing import Any

from fedmpq.coordinator.blobs import BlobStore, sync
from fedmpq.coordinator.journal import FILE, LOCK, Journal
from fedmpq.errors import StateError, UsageError

#: Tries; another one is needed where the run committed a round, and removed its updates, while they were copied.
_TRIES = 5
#: What belongs to a process and not to the run.
_LEFT_OUT = (FILE, f"{FILE}-wal", f"{FILE}-shm", LOCK, "blobs", "broker", "request")


def backup(directory: Path, out: Path) -> dict[str, Any]:
    """Copies journal, blobs, keys and enrolments to a new directory.

    Args:
        directory: of a run, in use or not.
        out: must not exist or be empty; appears all at once.

    Returns:
        Counts and sizes, for people.

    Raises:
        UsageError: `out` is in use; StateError: the run is damaged, or there is no room.
    """
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise UsageError(f"{out} exists already", "a backup needs a name of its own")
    if out.resolve().is_relative_to(directory.resolve()):
        raise UsageError(f"{out} lies inside {directory}", "choose a place outside")
    journal = Journal(directory, read_only=True)
    out.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(dir=out.parent, prefix=f".{out.name}-"))
    try:
        for left in range(_TRIES - 1, -1, -1):
            _copy_journal(journal, temporary / FILE)
            try:
                facts = _copy_blobs(directory, temporary)
                break
            except StateError:
                if not left:
                    raise
        for entry in sorted(directory.iterdir()):
            if entry.name in _LEFT_OUT or entry.name.startswith("."):
                continue
            if entry.is_dir():
                shutil.copytree(entry, temporary / entry.name, dirs_exist_ok=True, ignore=shutil.ignore_patterns(LOCK))
            elif entry.is_file():
                shutil.copy2(entry, temporary / entry.name)
        if out.is_dir():
            out.rmdir()
        temporary.replace(out)
    except OSError as error:
        raise StateError(f"cannot write the backup {out}: {error.strerror}") from None
    finally:
        journal.close()
        shutil.rmtree(temporary, ignore_errors=True)
    sync(out.parent)
    return {"directory": str(directory), "backup": str(out), **facts}


def _copy_journal(journal: Journal, to: Path) -> None:
    """One moment of the journal, whatever its coordinator writes meanwhile."""
    to.unlink(missing_ok=True)
    try:
        target = sqlite3.connect(to)
        try:
            journal.copy_to(target)
            target.execute("PRAGMA journal_mode=DELETE")
        finally:
            target.close()
    except sqlite3.Error as error:
        raise StateError(f"cannot copy the journal to {to}: {error}") from None
    to.chmod(0o600)


def _copy_blobs(directory: Path, to: Path) -> dict[str, Any]:
    """Every blob the copied journal names, its hash checked on the way."""
    source, target = BlobStore(directory / "blobs"), BlobStore(to / "blobs")
    copied = Journal(to, read_only=True)
    try:
        names = sorted(copied.blob_names())
        row = copied.row("SELECT round, phase FROM rounds ORDER BY round DESC LIMIT 1")
    finally:
        copied.close()
    size = 0
    for name in names:
        data = source.get(name)
        size += len(data)
        target.put(data)
    where = {"round": row["round"], "phase": row["phase"]} if row else {"round": 0, "phase": "waiting"}
    return {**where, "blobs": len(names), "bytes": size}
