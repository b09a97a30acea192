"""Devices whose updates are refused again and again sit out some rounds.

Counted are updates that were complete, sealed and wrong: of a wrong shape, out of range, under another plan. Late or
repeated ones are nobody's fault, and what fails at the gate has no known sender. One accepted update clears the record.
"""

from __future__ import annotations

from fedmpq.coordinator.journal import Row
from fedmpq.coordinator.run_state import RunState


def until(run: RunState, device: Row) -> int:
    """The last round that a device sits out; 0 if it does not."""
    config = run.config
    if not config.quarantine_after or device["rejects"] < config.quarantine_after:
        return 0
    last = run.journal.row(
        "SELECT MAX(round) AS round FROM assignments WHERE device=? AND state='rejected'", device["device"]
    )
    return int(last["round"] or 0) + config.quarantine_rounds if last else 0


def free(run: RunState, devices: list[Row], round_no: int) -> list[Row]:
    """Those of `devices` that may be selected for a round."""
    return [row for row in devices if until(run, row) < round_no]
