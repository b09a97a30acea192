"""What becomes of complete updates: their verdicts are journalled together, and only then told.

One wait for the disk serves all that are ready, however many devices finish at the same moment. A device may forget its
work once it has heard its verdict, so nothing is told that is not on the disk.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from fedmpq.coordinator import rounds
from fedmpq.coordinator.journal import Journal, Row
from fedmpq.coordinator.run_state import RunState
from fedmpq.coordinator.updates import RejectionError
from fedmpq.edge_runtime.protocol import FloatUpdate, Update


@dataclass(frozen=True)
class Judged:
    """A complete update that was looked at; its verdict is not written yet.

    Attributes:
        round: it was trained in.
        ref: SHA-256 of its message.
        payload: the message.
        update: the message, decoded.
        problem: why it does not count; None if it does.
        pack: its blobs in one piece; empty if it does not count.
        at: Unix seconds.
    """

    round: int
    ref: str
    payload: bytes
    update: Update | FloatUpdate
    problem: RejectionError | None
    pack: bytes
    at: float


@dataclass(frozen=True)
class Verdict:
    """What a device is told of its update; `reason` is empty where it counts."""

    round: int
    payload: bytes
    reason: str
    detail: str


def write(run: RunState, judged: Mapping[str, Judged]) -> dict[str, Verdict]:
    """Stores the blobs of the updates that count and journals all verdicts in one transaction.

    Args:
        run: the run.
        judged: by device.

    Returns:
        What to tell each device.
    """
    good = [one.pack for one in judged.values() if one.problem is None]
    packs = iter(run.blobs.put_many(good))
    with run.journal.transaction("verdict") as journal:
        return {
            device: _refuse(run, journal, device, one) if one.problem else _take(run, journal, device, one, next(packs))
            for device, one in judged.items()
        }


def _answer(run: RunState, device: str, one: Judged) -> Row:
    """The columns of an assignment that every answer fills."""
    up, down = run.traffic.get(device, [0, 0])
    return {
        "reason": "",
        "detail": "",
        "ref": one.ref,
        "manifest": one.payload,
        "answered_at": one.at,
        "bytes_up": up,
        "bytes_down": down,
        "measured_bytes": one.update.measured_bytes,
    }


def _refuse(run: RunState, journal: Journal, device: str, one: Judged) -> Verdict:
    assert one.problem is not None
    fields = {**_answer(run, device, one), "state": "rejected"}
    fields |= {"reason": one.problem.reason, "detail": one.problem.detail[:400]}
    journal.write("UPDATE devices SET rejects=rejects+1 WHERE device=?", device)
    return _close(journal, device, one, fields)


def _take(run: RunState, journal: Journal, device: str, one: Judged, pack: str) -> Verdict:
    final = [layer.bits for layer in one.update.layers]
    fields = {**_answer(run, device, one), "state": "accepted", "pack": pack, "final_bits": final}
    assignment = run.assignment(one.round, device)
    assert assignment is not None
    if assignment["state"] == "missed":
        fields = _fold(run, assignment, fields)
    standing: Row = {
        "fallen": [a - b for a, b in zip(assignment["bits"], final, strict=True)],
        "last_round": one.round,
        "rejects": 0,
        "measured_bytes": one.update.measured_bytes,
    }
    journal.set_fields("devices", {"device": device}, standing)
    return _close(journal, device, one, fields)


def _close(journal: Journal, device: str, one: Judged, fields: Row) -> Verdict:
    reason, detail = str(fields["reason"]), str(fields["detail"])
    journal.set_fields("assignments", {"round": one.round, "device": device}, fields)
    code = f"rejected:{reason}" if reason else "accepted"
    journal.verdict(one.at, one.round, device, "update", one.ref, code, detail)
    return Verdict(one.round, one.payload, reason, detail)


def _fold(run: RunState, assignment: Row, fields: Row) -> Row:
    """Gives a late update a place of its own in the present round, with what its age leaves of its weight.

    Returns:
        What becomes of the assignment that it missed.
    """
    row = run.round_row()
    old = run.journal.row("SELECT * FROM rounds WHERE round=?", assignment["round"])
    assert row is not None
    assert old is not None
    weight = rounds.late_weight(run, row, old, assignment)
    if not weight:
        return {"reason": "late", "detail": "the round's weights leave no room for it", "ref": fields["ref"]}
    detail = f"trained in round {old['round']}, counted in round {row['round']}"
    copied = ("device", "samples", "budget16", "bits", "planned_bytes", "plan_sha")
    mine = {**{key: assignment[key] for key in copied}, **fields, "round": row["round"], "weight": weight}
    run.journal.add_row("assignments", {**mine, "detail": detail})
    return {"state": "folded", "ref": fields["ref"], "reason": "", "detail": ""}
