"""The state of a run in few queries, for pages and figures that are asked for every few seconds.

`status` answers an operator's questions in full; this counts in SQL instead, so its cost grows with rounds plus
devices and not with their product.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from fedmpq.coordinator import status
from fedmpq.coordinator.journal import Journal, Row

#: Failures that `overview` returns, latest first.
FAILURES = 50


@dataclass(frozen=True)
class RoundFacts:
    """One round: accuracy in percent, loss in nats, bytes, seconds; None where it is not known (yet)."""

    round: int
    phase: str
    accuracy: float | None
    loss: float | None
    selected: int
    accepted: int
    refused: int
    rejected: int
    missed: int
    bytes_up: int
    bytes_down: int
    seconds: float | None
    mean_bits: tuple[int, ...]


@dataclass(frozen=True)
class Overview:
    """What a run looks like now.

    Attributes:
        config: the run's configuration.
        program: SHA-256 of its program.
        thetas: weights of each layer.
        rounds: all of them in order.
        devices: counts by standing: known, online, admitted, refused.
        waiting_for: why nothing moves, in words; empty if the run is over.
        failures: latest first, each with `at`, `round`, `device`, `what` and `detail`.
    """

    config: dict[str, Any]
    program: str
    thetas: tuple[int, ...]
    rounds: tuple[RoundFacts, ...]
    devices: dict[str, int]
    waiting_for: str
    failures: tuple[dict[str, Any], ...]

    @property
    def current(self) -> RoundFacts | None:
        """The latest round."""
        return self.rounds[-1] if self.rounds else None

    @property
    def judged(self) -> RoundFacts | None:
        """The latest round whose model was judged."""
        return next((row for row in reversed(self.rounds) if row.accuracy is not None), None)


def overview(journal: Journal) -> Overview:
    """Reads it from the journal."""
    config = json.loads(journal.meta("config") or "{}")
    rows = journal.rows("SELECT * FROM rounds ORDER BY round")
    counts = {
        row["round"]: row
        for row in journal.rows(
            "SELECT round, COUNT(*) AS selected, SUM(state='accepted') AS accepted, SUM(state='refused') AS refused, "
            "SUM(state='rejected') AS rejected, SUM(state='missed') AS missed, SUM(bytes_up) AS bytes_up, "
            "SUM(bytes_down) AS bytes_down FROM assignments GROUP BY round"
        )
    }
    (devices,) = journal.rows(
        "SELECT COUNT(*) AS known, COALESCE(SUM(online), 0) AS online, "
        "COALESCE(SUM(admission='admitted'), 0) AS admitted, "
        "COALESCE(SUM(admission='refused'), 0) AS refused FROM devices"
    )
    return Overview(
        config=config,
        program=journal.meta("program") or "",
        thetas=tuple(json.loads(journal.meta("thetas") or "[]")),
        rounds=tuple(_round(row, counts.get(row["round"])) for row in rows),
        devices={key: int(value) for key, value in devices.items()},
        waiting_for=status.waiting_for(journal, config, rows[-1] if rows else None) or "",
        failures=_failures(journal),
    )


def _round(row: Row, counts: Row | None) -> RoundFacts:
    judged = (row["metrics"] or {}).get("global", {})
    keys = ("selected", "accepted", "refused", "rejected", "missed", "bytes_up", "bytes_down")
    return RoundFacts(
        round=row["round"],
        phase=row["phase"],
        accuracy=judged.get("accuracy"),
        loss=judged.get("loss"),
        seconds=row["committed_at"] - row["opened_at"] if row["committed_at"] else None,
        mean_bits=tuple(row["next_bits"] or ()),
        **{key: int(counts[key]) if counts else 0 for key in keys},
    )


def _failures(journal: Journal) -> tuple[dict[str, Any], ...]:
    """Refused profiles and updates, devices that missed a round, messages turned away, broken rounds."""
    found: Sequence[Row] = journal.rows(
        "SELECT at, round, device, of || ' ' || verdict AS what, detail FROM verdicts WHERE verdict <> 'accepted' "
        "ORDER BY id DESC LIMIT ?",
        FAILURES,
    ) + journal.rows(
        "SELECT at, round, device, kind AS what, detail FROM events "
        "WHERE kind IN ('failed', 'missed', 'refused', 'malformed', 'damaged', 'no-quorum', 'left-out') "
        "ORDER BY id DESC LIMIT ?",
        FAILURES,
    )
    return tuple(sorted(found, key=lambda row: -float(row["at"]))[:FAILURES])
