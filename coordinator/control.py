"""Pausing, resuming and cancelling a run: from another process, whether its coordinator is running or not.

What is wanted stands in the journal. To a running coordinator, which holds the directory's lock, the wish goes as a
file that it takes in between two transitions; without one the journal is written directly.
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import Final

from fedmpq.coordinator.journal import FILE, Journal, is_locked
from fedmpq.errors import StateError

RUNNING, PAUSED, CANCELLED = "running", "paused", "cancelled"
#: What each command makes of a run.
VERBS: Final = {"pause": PAUSED, "resume": RUNNING, "cancel": CANCELLED}
_REQUEST = "request"


def state_of(journal: Journal) -> str:
    """What the operator wants of the run: running, paused or cancelled."""
    return journal.meta("control") or RUNNING


def ask(directory: Path, verb: str, clock: float, wait_s: float = 10.0) -> str:
    """Makes a wish come true and returns the state it led to.

    Args:
        directory: the coordinator's data directory.
        verb: of VERBS.
        clock: Unix seconds, for the journal.
        wait_s: how long a running coordinator may take to notice; it looks several times a second.

    Raises:
        StateError: there is no run, or its coordinator does not answer.
    """
    if not (directory / FILE).is_file():
        raise StateError(f"no coordinator journal in {directory}", "name the --dir of `coordinator serve`")
    request = directory / _REQUEST
    end = time.monotonic() + wait_s
    while is_locked(directory):
        if not request.is_file() or request.read_text() != verb:
            temporary = directory / f".{_REQUEST}"
            temporary.write_text(verb)
            temporary.replace(request)
        while request.is_file() and is_locked(directory):
            if time.monotonic() > end:
                request.unlink(missing_ok=True)
                raise StateError(f"the coordinator of {directory} does not answer", "is it stopped or suspended?")
            time.sleep(0.05)
        if not request.is_file():
            return VERBS[verb]
    journal = Journal(directory)
    try:
        write(journal, verb, clock)
    finally:
        journal.close()
    request.unlink(missing_ok=True)
    return VERBS[verb]


def write(journal: Journal, verb: str, now: float) -> None:
    """Journals a wish; RUNNING again also forgets a failure."""
    with journal.transaction("control"):
        journal.set_meta("control", VERBS[verb])
        journal.event(now, VERBS[verb])


def take(directory: Path, journal: Journal, now: float) -> None:
    """In the coordinator: journals the wish that waits, if there is one, and only then lets go of it."""
    request = directory / _REQUEST
    try:
        verb = request.read_text()
    except OSError:
        return
    if verb in VERBS and VERBS[verb] != state_of(journal):
        write(journal, verb, now)
    request.unlink(missing_ok=True)
