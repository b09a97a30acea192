"""Figures for a monitoring system, in Prometheus' text format (version 0.0.4), read from the journal and the server.

Counters that come from the journal survive restarts; those of messages that never reached it start from zero with the
process, which Prometheus allows for.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from fedmpq.coordinator import overview, status
from fedmpq.coordinator.journal import Journal

#: Name, kind and meaning of every metric.
HELP: dict[str, tuple[str, str]] = {
    "fedmpq_round": ("gauge", "Number of the current round."),
    "fedmpq_rounds_planned": ("gauge", "Rounds of the run."),
    "fedmpq_rounds_done": ("gauge", "Rounds committed."),
    "fedmpq_accuracy_percent": ("gauge", "Accuracy of the last global model that was judged."),
    "fedmpq_loss": ("gauge", "Loss of the last global model that was judged."),
    "fedmpq_devices": ("gauge", "Devices by standing."),
    "fedmpq_updates_total": ("counter", "Updates by verdict."),
    "fedmpq_refused_total": ("counter", "Messages and updates refused, by reason."),
    "fedmpq_left_out_total": ("counter", "Accepted updates that the referee left out of a round, by device."),
    "fedmpq_bytes_total": ("counter", "Payload bytes of updates and plans, by direction."),
    "fedmpq_round_seconds": ("gauge", "Seconds from opening to committing the last round."),
    "fedmpq_layer_bits": ("gauge", "Mean bit-width of each weight layer over the fleet."),
    "fedmpq_device_bits": ("gauge", "Average bit-width a device is given."),
    "fedmpq_device_memory_bytes": ("gauge", "Arena of a device: limit, planned, measured."),
}


def values(journal: Journal, counters: Mapping[str, int] | None = None) -> dict[str, float]:
    """Every sample by its name and labels."""
    state = overview.overview(journal)
    found: dict[str, float] = {
        "fedmpq_round": state.current.round if state.current else 0,
        "fedmpq_rounds_planned": state.config.get("rounds", 0),
        "fedmpq_rounds_done": sum(row.phase == "done" for row in state.rounds),
    }
    if state.judged is not None and state.judged.accuracy is not None:
        found["fedmpq_accuracy_percent"] = state.judged.accuracy
        found["fedmpq_loss"] = state.judged.loss or 0.0
    done = [row for row in state.rounds if row.seconds is not None]
    if done:
        found["fedmpq_round_seconds"] = done[-1].seconds or 0.0
        for layer, bits in enumerate(done[-1].mean_bits):
            found[_sample("fedmpq_layer_bits", layer=layer)] = bits
    for standing, count in state.devices.items():
        found[_sample("fedmpq_devices", standing=standing)] = count
    for direction in ("up", "down"):
        total = sum(getattr(row, f"bytes_{direction}") for row in state.rounds)
        found[_sample("fedmpq_bytes_total", direction=direction)] = total
    for row in status.devices(journal):
        name = row["device"]
        if row["average_bits"] is not None:
            found[_sample("fedmpq_device_bits", device=name)] = row["average_bits"]
        for what in ("limit", "planned", "measured"):
            if row[f"{what}_bytes"] is not None:
                found[_sample("fedmpq_device_memory_bytes", device=name, of=what)] = row[f"{what}_bytes"]
    _refusals(journal, counters or {}, found)
    return found


def text(journal: Journal, counters: Mapping[str, int] | None = None) -> str:
    """All of it as Prometheus reads it."""
    lines: list[str] = []
    told = ""
    for sample, value in sorted(values(journal, counters).items()):
        name = sample.partition("{")[0]
        if name != told:
            kind, meaning = HELP[name]
            lines += [f"# HELP {name} {meaning}", f"# TYPE {name} {kind}"]
            told = name
        lines.append(f"{sample} {value:.10g}")
    return "\n".join(lines) + "\n"


def _refusals(journal: Journal, counters: Mapping[str, int], found: dict[str, float]) -> None:
    reasons = dict(counters)
    query = "SELECT verdict, COUNT(*) AS n FROM verdicts WHERE of='update' GROUP BY verdict"
    for row in journal.rows(query):
        verdict, _, reason = row["verdict"].partition(":")
        key = _sample("fedmpq_updates_total", verdict=verdict)
        found[key] = found.get(key, 0) + row["n"]
        if reason:
            reasons[reason] = reasons.get(reason, 0) + row["n"]
    for row in journal.rows("SELECT device, COUNT(*) AS n FROM events WHERE kind='left-out' GROUP BY device"):
        found[_sample("fedmpq_left_out_total", device=row["device"])] = row["n"]
    for reason, count in reasons.items():
        found[_sample("fedmpq_refused_total", reason=reason)] = count


def _sample(name: str, **labels: Any) -> str:
    """A sample's name with its labels, escaped as JSON strings are."""
    return name + "{" + ",".join(f"{key}={json.dumps(str(value))}" for key, value in labels.items()) + "}"
