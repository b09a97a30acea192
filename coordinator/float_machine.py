"""The coordinator of a full-precision run: the same rounds, journal and messages, with float states in place of planes.

`FloatMachine` replaces what `Machine` does with profiles and updates, `FloatPhases` what a round does with them. The
global model is a vector of float32 (little-endian) in the order of the bundle's manifest, stored as a blob.
"""

from __future__ import annotations

from typing import Any, ClassVar

import numpy as np

from fedmpq.coordinator import rounds
from fedmpq.coordinator.config import fx_of
from fedmpq.coordinator.inbox import Pending
from fedmpq.coordinator.journal import Row
from fedmpq.coordinator.machine import Machine, Outgoing, Phases
from fedmpq.coordinator.run_state import RunState
from fedmpq.coordinator.updates import RejectionError
from fedmpq.edge_runtime import protocol, topics
from fedmpq.edge_runtime.ort import coding
from fedmpq.edge_runtime.ort.engine import Floats
from fedmpq.errors import FormatError, ProtocolError


def read_state(data: bytes) -> Floats:
    """A state vector from its blob."""
    return np.frombuffer(data, "<f4").astype(np.float32)


def method_of(strategy: str) -> str:
    """The coding of a strategy's updates; the names are the same."""
    return strategy if strategy in protocol.METHODS else "fedavg"


class FloatPhases:
    """The transitions of a round in full precision; the others are those of `rounds`."""

    def configure(self, run: RunState, row: Row) -> None:
        """Gives every selected device its plan, and starts the clock."""
        now = run.clock()
        deadline = now + run.config.deadline_s
        with run.journal.transaction("configure") as journal:
            for assignment in run.assignments(row["round"]):
                device = run.device(assignment["device"])
                assert device is not None
                plan = plan_message(run, row, device["device"], deadline)
                fields: Row = {
                    "state": "assigned",
                    "weight": assignment["samples"],
                    "planned_bytes": device["planned_bytes"],
                    "plan": protocol.encode(plan),
                    "plan_sha": plan.identity,
                }
                journal.set_fields("assignments", {"round": row["round"], "device": device["device"]}, fields)
            journal.set_fields("rounds", {"round": row["round"]}, {"phase": "collect", "deadline_at": deadline})
            journal.event(now, "configured", row["round"], detail="plans in full precision")
        run.traffic.clear()

    def aggregate_round(self, run: RunState, row: Row) -> None:
        """Adds the accepted changes, each weighted by its samples, in float64 and in the order of names."""
        base = read_state(run.blobs.get(row["base_model"]))
        accepted = [a for a in run.assignments(row["round"]) if a["state"] == "accepted"]
        total = sum(a["weight"] for a in accepted)
        change = np.zeros(base.size, np.float64)
        for assignment in accepted:
            data = run.blobs.get(assignment["pack"])
            update = decoded(run, row["round"], assignment["device"], data, base.size)
            change += update.astype(np.float64) * (assignment["weight"] / total)
        model = run.blobs.put((base + change).astype("<f4").tobytes())
        with run.journal.transaction("aggregate") as journal:
            fields: Row = {"phase": "adjust", "next_model": model, "next_bits": []}
            journal.set_fields("rounds", {"round": row["round"]}, fields)
            journal.event(run.clock(), "aggregated", row["round"], detail=f"{len(accepted)} updates -> {model[:12]}")

    def adjust(self, run: RunState, row: Row) -> None:
        """Nothing to adjust: every device trains in full precision."""
        with run.journal.transaction("adjust") as journal:
            journal.set_fields("rounds", {"round": row["round"]}, {"phase": "evaluate"})

    def evaluate(self, run: RunState, row: Row, evaluator: Any) -> None:
        """Judges the new global model."""
        due = row["round"] % run.config.eval_every == 0 or row["round"] == run.config.rounds
        metrics = evaluator(read_state(run.blobs.get(row["next_model"]))) if evaluator is not None and due else None
        with run.journal.transaction("evaluate") as journal:
            fields: Row = {"phase": "commit", "metrics": {"global": metrics} if metrics else {}}
            journal.set_fields("rounds", {"round": row["round"]}, fields)


def plan_message(run: RunState, row: Row, device: str, deadline: float) -> protocol.FloatPlan:
    """What one device is told to train."""
    config = run.config
    return protocol.FloatPlan(
        run=config.run,
        round=row["round"],
        bundle=run.layout.program,
        state=row["base_model"],
        values=sum(run.layout.thetas),
        method=method_of(config.strategy),
        epochs=config.epochs,
        batch=config.batch,
        crop=config.crop,
        flip=config.flip,
        seed=config.seed,
        client=rounds.client_number(device),
        lr=fx_of(config.rate(row["round"])),
        weight_decay=fx_of(config.weight_decay),
        momentum_q15=config.momentum_q15 if config.momentum else 0,
        sent_ms=int(run.clock() * 1000),
        deadline_ms=int(deadline * 1000),
    )


def decoded(run: RunState, round_no: int, device: str, data: bytes, size: int) -> Floats:
    """A device's change of the state; FormatError if the bytes are not of the run's coding."""
    rng = coding.generator(run.config.seed, round_no, rounds.client_number(device))
    return coding.decode(method_of(run.config.strategy), data, size, rng)


def judge(profile: protocol.FloatProfile, bundle: str) -> tuple[str, str]:
    """Reason and detail of a refusal, both empty for a device that may train."""
    if profile.bundle != bundle:
        return "program", f"profiled bundle {profile.bundle[:12]}, not {bundle[:12]}"
    if profile.samples < 1:
        return "samples", "the device holds no samples"
    if profile.step_bytes is None:
        return "budget", "a trial step was killed for memory"
    if profile.step_bytes > profile.budget_bytes:
        return "budget", f"a training step takes {profile.step_bytes} bytes, the device allows {profile.budget_bytes}"
    return "", ""


class FloatMachine(Machine):
    """One coordinator of a full-precision run. `evaluator` takes the state vector."""

    phases: ClassVar[Phases] = FloatPhases()

    def _job(self) -> protocol.FloatJob:
        run = self.run
        return protocol.FloatJob(run.layout.program, len(run.program), sum(run.layout.thetas), run.config.batch)

    def _start_blobs(self, row: Row, assignment: Row) -> dict[str, bytes]:
        return {row["base_model"]: self.run.blobs.get(row["base_model"])}

    def _profile(self, device: str, profile: protocol.Profile, payload: bytes) -> list[Outgoing]:
        detail = "this run trains in full precision: start the device with --engine ort-training"
        return [self._ack(device, 0, "profile", payload, "program", detail)]

    def _other(self, kind: str, device: str, message: protocol.Message, payload: bytes) -> list[Outgoing]:
        if isinstance(message, protocol.FloatProfile):
            return self._float_profile(device, message, payload)
        if isinstance(message, protocol.FloatUpdate):
            return self._float_update(device, message, payload)
        return super()._other(kind, device, message, payload)

    def _float_profile(self, device: str, profile: protocol.FloatProfile, payload: bytes) -> list[Outgoing]:
        if profile.device != device:
            raise ProtocolError(f"profile: device {profile.device!r} on the topic of {device!r}")
        run = self.run
        if profile.run != run.config.run:
            return [self._ack(device, 0, "profile", payload, "run", f"this is run {run.config.run!r}")]
        reason, detail = judge(profile, run.layout.program)
        facts: Row = {
            "samples": profile.samples,
            "limit_bytes": profile.budget_bytes,
            "planned_bytes": profile.step_bytes,
            "measured_bytes": profile.step_bytes,
        }
        return self._judged(device, payload, facts, reason, detail)

    def _float_update(self, device: str, update: protocol.FloatUpdate, payload: bytes) -> list[Outgoing]:
        run, ref = self.run, protocol.digest(payload)
        earlier = run.assignment(update.round, device)
        if update.run == run.config.run and earlier is not None and earlier["ref"] == ref:
            return [self._ack(device, update.round, "update", payload, earlier["reason"], earlier["detail"])]
        row, assignment, problem = self._owed(device, update.run, update.round)
        if assignment is not None and assignment["state"] != "assigned":
            problem = ("duplicate", f"the device has answered round {update.round}: {assignment['state']}")
        if problem or row is None or assignment is None:
            reason, detail = problem or ("stale-round", "no such round")
            self._note_verdict(update.round, device, ref, reason, detail)
            return [self._ack(device, update.round, "update", payload, reason, detail)]
        pending = self._inbox.uploads.get(device)
        if pending is None or pending.ref != ref:
            try:
                _check_claims(protocol.decode(topics.PLAN, assignment["plan"]), assignment["plan_sha"], update)
            except RejectionError as error:
                return self._settle(device, row, ref, payload, update, error, b"")
            if not self._inbox.room_for(device, payload, run.clock()):
                return []
            sizes = {update.blob: update.blob_size}
            pending = Pending.open(ref, update, sizes, self._start_blobs(row, assignment).get, payload)
            self._inbox.uploads[device] = pending
        pending.touched = run.clock()
        return self._need_or_settle(device, row, pending)

    def _replan(self, row: Row, assignment: Row, limit: int) -> bytes | None:
        return None  # full precision has one size

    def _need_or_settle(self, device: str, row: Row, pending: Pending) -> list[Outgoing]:
        update = pending.update
        if not pending.complete or not isinstance(update, protocol.FloatUpdate):
            return super()._need_or_settle(device, row, pending)
        data, problem = pending.blobs[update.blob], None
        try:
            decoded(self.run, row["round"], device, data, sum(self.run.layout.thetas))
        except FormatError as error:
            problem = RejectionError("shape", error.message)
        return self._settle(device, row, pending.ref, pending.payload, update, problem, b"" if problem else data)


def _check_claims(plan: protocol.Message, plan_sha: str, update: protocol.FloatUpdate) -> None:
    """Compares an update's claims with its plan; RejectionError as `updates.check_manifest`."""
    assert isinstance(plan, protocol.FloatPlan)
    if update.plan != plan_sha:
        raise RejectionError(
            "stale-round", f"trained under plan {update.plan[:12]}, the round's plan is {plan_sha[:12]}"
        )
    most = plan.epochs * update.samples
    if update.count > most or update.correct > update.count:
        raise RejectionError("range", f"{update.correct} of {update.count} correct, at most {most} samples in the plan")
    largest = coding.most_bytes(plan.method, plan.values)
    if update.blob_size > largest:
        raise RejectionError("shape", f"a blob of {update.blob_size} bytes, an update takes at most {largest}")
