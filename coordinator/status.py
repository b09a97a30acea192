"""What an operator asks: where the run stands, who takes part, what each device measured. Read from the journal.

The functions return plain values for JSON; the command line makes tables of them.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from fedmpq.coordinator import control, quarantine
from fedmpq.coordinator.journal import Journal, Row

_BITS = 16
#: Devices that a round waits for are named, but no more than so many.
_NAMED = 8


def status(journal: Journal) -> dict[str, Any]:
    """The run, its current round, its rounds so far, and every device that is refused or rejected, with the reason."""
    config = json.loads(journal.meta("config") or "{}")
    rounds = journal.rows("SELECT * FROM rounds ORDER BY round")
    current = rounds[-1] if rounds else None
    devices = journal.rows("SELECT * FROM devices ORDER BY device")
    failed = journal.row("SELECT * FROM events WHERE kind='failed' ORDER BY id DESC LIMIT 1")
    return {
        "run": config.get("run"),
        "strategy": config.get("strategy"),
        "program": journal.meta("program"),
        "rounds_planned": config.get("rounds"),
        "rounds_done": sum(row["phase"] == "done" for row in rounds),
        "phase": current["phase"] if current else "waiting",
        "round": current["round"] if current else 0,
        "control": control.state_of(journal),
        "waiting_for": waiting_for(journal, config, current),
        "failure": failed["detail"] if failed and (not current or current["phase"] != "done") else None,
        "devices": {
            "known": len(devices),
            "online": sum(row["online"] for row in devices),
            "admitted": sum(row["admission"] == "admitted" for row in devices),
            "refused": sum(row["admission"] == "refused" for row in devices),
        },
        "refused": [
            {"device": row["device"], "reason": row["reason"], "detail": row["detail"]}
            for row in devices
            if row["admission"] == "refused"
        ],
        "last_accuracy": _last_accuracy(rounds),
        "rounds": [round_result(journal, row) for row in rounds],
    }


def round_result(journal: Journal, row: Row) -> dict[str, Any]:
    """One round: accuracy, bytes, and what each selected device did."""
    assignments = journal.rows("SELECT * FROM assignments WHERE round=? ORDER BY device", row["round"])
    metrics = row["metrics"] or {}
    return {
        "round": row["round"],
        "phase": row["phase"],
        "accuracy": metrics.get("global", {}).get("accuracy"),
        "loss": metrics.get("global", {}).get("loss"),
        "by_budget": {name: value["accuracy"] for name, value in metrics.items() if name != "global"},
        "mean_bits": row["next_bits"],
        "accepted": sum(a["state"] == "accepted" for a in assignments),
        "selected": len(assignments),
        "bytes_up": sum(a["bytes_up"] for a in assignments),
        "bytes_down": sum(a["bytes_down"] for a in assignments),
        "seconds": row["committed_at"] - row["opened_at"] if row["committed_at"] else None,
        "model": row["next_model"],
        "devices": [_assignment(a) for a in assignments],
    }


def devices(journal: Journal) -> list[dict[str, Any]]:
    """Every device: whether it is there, admitted, its bits and memory, what it did last.

    `bits` are those of its next plan; `running_bits` those it trained last, after pruning once it has answered.
    """
    thetas = _thetas(journal)
    config = json.loads(journal.meta("config") or "{}")
    found = []
    for row in journal.rows("SELECT * FROM devices ORDER BY device"):
        last = journal.row(
            "SELECT round, state, reason, bits, final_bits, bytes_up, bytes_down FROM assignments WHERE device=? "
            "ORDER BY round DESC LIMIT 1",
            row["device"],
        )
        found.append(
            {
                "device": row["device"],
                "online": bool(row["online"]),
                "admission": row["admission"],
                "reason": row["reason"] or None,
                "detail": row["detail"] or None,
                "samples": row["samples"],
                "budget_bits": row["budget16"] / _BITS if row["budget16"] else None,
                "bits": row["bits"],
                "average_bits": _average(row["bits"], thetas),
                "running_bits": (last["final_bits"] or last["bits"] or None) if last else None,
                "limit_bytes": row["limit_bytes"],
                "planned_bytes": row["planned_bytes"],
                "measured_bytes": row["measured_bytes"],
                "headroom_bytes": row["limit_bytes"] - row["planned_bytes"] if row["planned_bytes"] else None,
                "last_round": last["round"] if last else None,
                "last_state": last["state"] if last else None,
                "last_reason": (last["reason"] or None) if last else None,
                "last_bytes_up": last["bytes_up"] if last else None,
                "last_bytes_down": last["bytes_down"] if last else None,
                "rejects": row["rejects"],
                "quarantine_until": quarantine.until(journal, config, row) or None,
                "version": row["version"],
                "seen_at": row["seen_at"],
            }
        )
    return found


def why(row: Mapping[str, Any]) -> str:
    """What there is to say about a device of `devices` that is not as it should be; empty if all is well."""
    if row["quarantine_until"]:
        return f"quarantine until round {row['quarantine_until']}: {row['rejects']} updates refused in a row"
    if row["detail"]:
        return str(row["detail"])
    return f"{row['last_state']}: {row['last_reason']}" if row["last_reason"] else ""


def profiles(journal: Journal) -> list[dict[str, Any]]:
    """What each device measured: memory, planned and measured bytes at 1..8 bits, and the budget that follows."""
    found = []
    for row in journal.rows("SELECT * FROM devices WHERE profile IS NOT NULL ORDER BY device"):
        profile = row["profile"]
        found.append(
            {
                "device": row["device"],
                "machine": profile["machine"],
                "isa": profile.get("isa") or profile["engine"],
                "cpus": profile["cpus"],
                "ram_bytes": profile["ram_bytes"],
                "available_bytes": profile["available_bytes"],
                "cgroup_bytes": profile["cgroup_bytes"],
                "limit_bytes": profile["budget_bytes"],
                "limit_source": profile["limit_source"],
                "peak_bytes": profile["peak_bytes"],
                "samples": profile["samples"],
                "plans": [
                    {
                        "bits": plan["bits"],
                        "planned_bytes": plan["planned_bytes"],
                        "measured_bytes": plan["measured_bytes"],
                        "fits": plan["planned_bytes"] <= profile["budget_bytes"],
                    }
                    for plan in profile.get("plans", [])
                ],
                "admission": row["admission"],
                "reason": row["reason"] or None,
                "detail": row["detail"] or None,
                "budget_bits": row["budget16"] / _BITS if row["budget16"] else None,
                "bits": row["bits"],
                "planned_bytes": row["planned_bytes"],
            }
        )
    return found


def _assignment(row: Row) -> dict[str, Any]:
    return {
        "device": row["device"],
        "state": row["state"],
        "reason": row["reason"] or None,
        "detail": row["detail"] or None,
        "budget_bits": row["budget16"] / _BITS,
        "bits": row["bits"],
        "final_bits": row["final_bits"],
        "samples": row["samples"],
        "planned_bytes": row["planned_bytes"],
        "measured_bytes": row["measured_bytes"],
        "bytes_up": row["bytes_up"],
        "bytes_down": row["bytes_down"],
    }


def waiting_for(journal: Journal, config: dict[str, Any], current: Row | None) -> str | None:
    """Why nothing moves, in words; None if the run is over."""
    wish = control.state_of(journal)
    over = current is not None and current["phase"] == "done" and current["round"] >= config.get("rounds", 0)
    if wish == control.CANCELLED and not over:
        return "the operator: the run is cancelled (`fedmpq coordinator resume`, then serve again)"
    if current is not None and current["phase"] == "collect":
        owing = journal.rows(
            "SELECT device FROM assignments WHERE round=? AND state='assigned' ORDER BY device", current["round"]
        )
        names = ", ".join(row["device"] for row in owing[:_NAMED])
        more = f" and {len(owing) - _NAMED} more" if len(owing) > _NAMED else ""
        return f"updates of {names}{more}" if owing else "the deadline"
    if over:
        return None
    if wish == control.PAUSED and (current is None or current["phase"] == "done"):
        return "the operator: the run is paused (`fedmpq coordinator resume`)"
    if current is None or current["phase"] == "done":
        (ready,) = journal.rows("SELECT COUNT(*) AS n FROM devices WHERE online=1 AND admission='admitted'")
        return f"devices: {ready['n']} of at least {config.get('min_devices')} are online and admitted"
    return f"the coordinator ({current['phase']})"


def _last_accuracy(rounds: list[Row]) -> float | None:
    for row in reversed(rounds):
        if row["metrics"]:
            accuracy: float = row["metrics"]["global"]["accuracy"]
            return accuracy
    return None


def _thetas(journal: Journal) -> list[int]:
    return [int(n) for n in json.loads(journal.meta("thetas") or "[]")]


def _average(bits: list[int] | None, thetas: list[int]) -> float | None:
    if not bits or len(bits) != len(thetas):
        return None
    return sum(n * theta for n, theta in zip(bits, thetas, strict=True)) / sum(thetas)
