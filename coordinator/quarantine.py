"""Devices whose updates are refused again and again sit out some rounds.

Counted are updates that were complete, sealed and wrong: of a wrong shape, out of range, under another plan. Late or
repeated ones are nobody's fault, and what fails at the gate has no known sender. One accepted update clears the record.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from fedmpq.coordinator.journal import Journal, Row


def until(journal: Journal, config: Mapping[str, Any], device: Row) -> int:
    """The last round that a device sits out; 0 if it has not been refused too often."""
    after = config.get("quarantine_after", 0)
    if not after or device["rejects"] < after:
        return 0
    last = journal.row(
        "SELECT MAX(round) AS round FROM assignments WHERE device=? AND state='rejected'", device["device"]
    )
    return int(last["round"] or 0) + int(config["quarantine_rounds"]) if last else 0


def free(journal: Journal, config: Mapping[str, Any], devices: list[Row], round_no: int) -> list[Row]:
    """Those of `devices` that may be selected for a round."""
    return [row for row in devices if until(journal, config, row) < round_no]
