"""The coordinator without a transport: messages and clock ticks go in, messages to publish come out.

`server` feeds it from MQTT and `simulate` from virtual clients; both run this code. Everything that must outlive the
process is in the journal, so a new instance on the same directory goes on where the old one stopped.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar, Literal, Protocol

from fedmpq.coordinator import admission, control, rounds, updates, verdicts
from fedmpq.coordinator.inbox import Inbox, Pending
from fedmpq.coordinator.journal import Row, ints
from fedmpq.coordinator.rounds import Evaluator
from fedmpq.coordinator.run_state import RunState, mean_bits_of
from fedmpq.coordinator.updates import RejectionError
from fedmpq.coordinator.verdicts import Judged
from fedmpq.edge_runtime import chunks, protocol, topics
from fedmpq.errors import HashError, ProtocolError

#: Odd messages of one device that are journalled in one life; of the rest one in `NOTE_EVERY_S`, and all are counted.
ODD_NOTED = 100
NOTE_EVERY_S = 60.0

#: Seconds at least that a restarted coordinator leaves to the devices of an open round.
GRACE_S = 30.0


@dataclass(frozen=True)
class Outgoing:
    """A message to publish: the topic's kind, the device it goes to (None: the fleet), and whether it is retained."""

    kind: str
    device: str | None
    payload: bytes
    retain: bool = False


class Phases(Protocol):
    """The transitions of a round that depend on what devices train; `rounds` has those of integer training."""

    def configure(self, run: RunState, row: Row) -> None:
        """Plans, weights, deadline."""

    def aggregate_round(self, run: RunState, row: Row) -> None:
        """The next global model from the accepted updates."""

    def adjust(self, run: RunState, row: Row) -> None:
        """What the devices shall do next."""

    def evaluate(self, run: RunState, row: Row, evaluator: Evaluator | None) -> None:
        """The new model on the test shard."""


class Machine:
    """One coordinator of a run in integers; `float_machine.FloatMachine` is the one for full precision.

    Args:
        run: the run's state, newly opened.
        evaluator: judges global models; None leaves rounds without metrics.

    Attributes:
        finished: whether all rounds are committed.
        phases: what `configure`, `aggregate_round`, `adjust` and `evaluate` do in this kind of run.
    """

    phases: ClassVar[Phases] = rounds

    def __init__(self, run: RunState, evaluator: Evaluator | None = None) -> None:
        self.run = run
        self.evaluator = evaluator
        #: Set by a server that calls `settle` and `next_download` itself, many messages at a time.
        self.defer = False
        self._inbox = Inbox()
        self._ready: dict[str, Judged] = {}
        self._downloads: dict[str, protocol.Request] = {}
        self._announced: bytes = b""
        #: Odd messages since the start, by kind: malformed, damaged, repeated.
        self.counters: dict[str, int] = {}
        #: Odd messages of each device, and when one was last journalled.
        self._odd_of: dict[str, tuple[int, float]] = {}
        with run.journal.transaction("start") as journal:
            seq = int(journal.meta("seq") or 0) + 1
            journal.set_meta("seq", str(seq))
            self._next_epoch()
            self._take_up_round()
            # Nobody is known to be here until the broker hands out the births again.
            journal.write("UPDATE devices SET online=0")
            journal.event(run.clock(), "started" if seq == 1 else "restarted", detail=f"start {seq}")
        self.seq = seq

    def _next_epoch(self) -> None:
        """Begins a new order of round states; within a transaction.

        It grows over restarts, and past everything said before where the directory is a restored backup.
        """
        journal = self.run.journal
        self.epoch = max(int(journal.meta("epoch") or 0) + 1, min(int(self.run.clock()), 0xFFFF0000))
        journal.set_meta("epoch", str(self.epoch))

    def _take_up_round(self) -> None:
        """A round that a stopped coordinator left open: time to answer, but no more than a whole deadline.

        The wall clock may have been set back or far ahead in between; and devices need a while to come back. A round
        that cannot succeed any more, for which the coordinator stopped, is given up: the operator has seen it.
        """
        run, now = self.run, self.run.clock()
        row = run.round_row()
        if row is None or row["phase"] != "collect":
            return
        if rounds.hopeless(run, row):
            rounds.give_up(run, row)
            return
        for assignment in run.assignments(row["round"]):
            run.traffic[assignment["device"]] = [assignment["bytes_up"], assignment["bytes_down"]]
        whole = run.config.deadline_s
        deadline = min(max(row["deadline_at"], now + min(whole, GRACE_S)), now + whole)
        if deadline != row["deadline_at"]:
            run.journal.event(now, "deadline-moved", row["round"], detail=f"{deadline - row['deadline_at']:+.0f} s")
        # Whoever starts a coordinator again after its last extension wants it to go on waiting.
        run.journal.set_fields("rounds", {"round": row["round"]}, {"deadline_at": deadline, "extensions": 0})

    @property
    def cancelled(self) -> bool:
        """Whether the operator has cancelled the run; it can be resumed."""
        return control.state_of(self.run.journal) == control.CANCELLED

    @property
    def finished(self) -> bool:
        """Whether the run's last round is committed."""
        row = self.run.round_row()
        return row is not None and row["phase"] == "done" and row["round"] >= self.run.config.rounds

    # --- what is published without being asked --------------------------------------------------------------------

    def birth(self) -> list[Outgoing]:
        """Retained state and the plans still owed an answer; due at every (re)connection."""
        out = [Outgoing(topics.COORD_STATE, None, self.coord_state(online=True), retain=True)]
        self._announced = b""
        out += self._announce()
        row = self.run.round_row()
        if row is not None and row["phase"] == "collect":
            for assignment in self.run.assignments(row["round"]):
                if assignment["state"] == "assigned":
                    out += self._plan(assignment)
        return out

    def coord_state(self, *, online: bool) -> bytes:
        """The coordinator's retained state, or (offline) its will."""
        job = self._job() if online else None
        return protocol.encode(protocol.CoordState(self.run.config.run, online, self.epoch, job))

    def _job(self) -> protocol.Job | protocol.FloatJob:
        """What the fleet is asked to train."""
        return protocol.Job(self.run.layout.program, len(self.run.program), self.run.config.settings)

    def tick(self) -> list[Outgoing]:
        """Moves the round on as far as it goes now."""
        out: list[Outgoing] = self.settle()
        out += self._heed()
        for phase in self._advance():
            if phase == "collect":
                row = self.run.round_row()
                assert row is not None
                out += self._announce()
                for assignment in self.run.assignments(row["round"]):
                    if assignment["state"] == "assigned":
                        out += self._plan(assignment)
            else:
                out += self._announce()
        return out + self._announce()

    def _heed(self) -> list[Outgoing]:
        """Takes the operator's wish.

        A cancelled run that goes on says so in a new order of states: `cancelled` is the last of its order, and what
        comes after it there would be taken for an overtaken message.
        """
        run, before = self.run, self.cancelled
        control.take(run.directory, run.journal, run.clock())
        if not before or self.cancelled:
            return []
        with run.journal.transaction("control"):
            self._next_epoch()
        return self.birth()

    def _advance(self) -> Iterator[str]:
        """Runs transitions; yields the phase entered after each."""
        run = self.run
        while not self.cancelled:
            row = run.round_row()
            phase = "done" if row is None else row["phase"]
            if phase == "done":
                if control.state_of(run.journal) == control.PAUSED:
                    return
                if self.finished or not rounds.select(run, row):
                    return
            else:
                assert row is not None
                if phase == "configure":
                    self.phases.configure(run, row)
                elif phase == "collect":
                    if not rounds.may_close(run, row):
                        return
                    rounds.close(run, row)
                    self._inbox.clear()
                elif phase == "aggregate":
                    self.phases.aggregate_round(run, row)
                elif phase == "adjust":
                    self.phases.adjust(run, row)
                elif phase == "evaluate":
                    self.phases.evaluate(run, row, self.evaluator)
                else:
                    rounds.commit(run, row)
            now = run.round_row()
            assert now is not None
            yield now["phase"]

    def _announce(self) -> list[Outgoing]:
        """The retained round state, if it is not the one announced last."""
        config, row = self.run.config, self.run.round_row()
        number = 0 if row is None else row["round"]
        deadline = 0
        phase: Literal["waiting", "collect", "closed", "finished", "cancelled"]
        if self.cancelled and not self.finished:
            phase = "cancelled"
        elif row is None:
            phase = "waiting"
        elif row["phase"] == "collect":
            phase, deadline = "collect", int(row["deadline_at"] * 1000)
        elif row["phase"] == "done":
            phase = "finished" if number >= config.rounds else "waiting"
        else:
            phase = "closed"
            if row["phase"] == "configure":  # nothing to say yet: the order of states must only grow
                phase, number = "waiting", number - 1
        state = protocol.RoundState(
            config.run,
            number,
            config.rounds,
            phase,
            deadline,
            self.epoch,
        )
        payload = protocol.encode(state)
        if payload == self._announced:
            return []
        self._announced = payload
        return [Outgoing(topics.ROUND, None, payload, retain=True)]

    def note_refused(self, device: str, reason: str, detail: str) -> None:
        """Journals that a message was turned away unread."""
        row = self.run.round_row()
        with self.run.journal.transaction() as journal:
            journal.event(self.run.clock(), "refused", row["round"] if row else 0, device, f"{reason}: {detail}"[:400])

    # --- what devices say -------------------------------------------------------------------------------------------

    def handle(self, kind: str, device: str, payload: bytes) -> list[Outgoing]:
        """One message of a device.

        Args:
            kind: of the topic (topics.Route.kind).
            device: the topic's device; the broker's access rules vouch for it.
            payload: the bytes.

        Returns:
            What to answer. Malformed messages are journalled and answered with nothing.
        """
        run = self.run
        run.count(device, up=len(payload))
        try:
            message = protocol.decode(kind, payload)
            if isinstance(message, protocol.DeviceState):
                out = self._state(device, message)
            elif isinstance(message, protocol.Profile):
                out = self._profile(device, message, payload)
            elif isinstance(message, protocol.Request):
                out = self._request(device, message)
                if not self.defer:
                    return out + self.next_download()
            elif isinstance(message, protocol.Update):
                out = self._update(device, message, payload)
            elif isinstance(message, protocol.Refusal):
                out = self._refusal(device, message, payload)
            elif isinstance(message, protocol.Chunk):
                out = self._chunk(device, message)
            elif isinstance(message, protocol.Bundle):
                out = [answer for chunk in message.chunks for answer in self._chunk(device, chunk)]
            else:
                out = self._other(kind, device, message, payload)
        except ProtocolError as error:
            self._odd("malformed", device, error.message)
            return []
        if not self.defer:
            out += self.settle()
        return out + self._next_uploads()

    def _to(self, device: str, kind: str, payload: bytes) -> Outgoing:
        """A message to a device; its bytes are counted here and nowhere else."""
        self.run.count(device, down=len(payload))
        return Outgoing(kind, device, payload)

    def _notable(self, device: str) -> bool:
        """Whether one more odd message of a device is journalled: no device can fill the disk."""
        now = self.run.clock()
        seen, noted_at = self._odd_of.get(device, (0, now))
        notable = seen < ODD_NOTED or now - noted_at >= NOTE_EVERY_S
        self._odd_of[device] = (seen + 1, now if notable else noted_at)
        return notable

    def _odd(self, what: str, device: str, detail: str) -> None:
        """Counts a message that makes no sense, and journals the first ones of each device."""
        self.counters[what] = self.counters.get(what, 0) + 1
        if self._notable(device):
            row = self.run.round_row()
            with self.run.journal.transaction(what) as journal:
                journal.event(self.run.clock(), what, row["round"] if row else 0, device, detail[:400])

    def _other(self, kind: str, device: str, message: protocol.Message, payload: bytes) -> list[Outgoing]:
        """A message that this kind of run has no use for."""
        raise ProtocolError(f"{kind}: a {type(message).__name__} is not for this coordinator")

    def _state(self, device: str, state: protocol.DeviceState) -> list[Outgoing]:
        if state.device != device:
            raise ProtocolError(f"state: device {state.device!r} on the topic of {device!r}")
        run = self.run
        row = run.device(device)
        if row is not None and not state.online and row["bd_seq"] != state.bd_seq:
            return []  # the will of an earlier life
        fields = {"online": int(state.online), "bd_seq": state.bd_seq, "version": state.version}
        if row is not None and all(row[key] == value for key, value in fields.items()):
            return []  # said again
        with run.journal.transaction("state") as journal:
            if row is None:
                journal.add_row("devices", {"device": device})
            journal.set_fields("devices", {"device": device}, {**fields, "seen_at": run.clock()})
            if row is None or bool(row["online"]) != state.online:
                journal.event(run.clock(), "online" if state.online else "offline", 0, device)
        return []

    def _profile(self, device: str, profile: protocol.Profile, payload: bytes) -> list[Outgoing]:
        if profile.device != device:
            raise ProtocolError(f"profile: device {profile.device!r} on the topic of {device!r}")
        run, config = self.run, self.run.config
        if profile.run != config.run:
            return [self._ack(device, 0, "profile", payload, "run", f"this is run {config.run!r}")]
        row = run.round_row()
        verdict = admission.judge(
            profile,
            run.layout.program,
            len(run.layout.layers),
            run.plan_bytes,
            lambda limit: run.allotter(row)(limit, config.cap16(device), mean_bits_of(row)),
        )
        fields: Row = {
            "samples": profile.samples,
            "limit_bytes": profile.budget_bytes,
            "extra_bytes": verdict.extra_bytes,
        }
        if verdict.allotment is not None:
            fields["bits"] = list(verdict.allotment.bits)
            fields["budget16"] = verdict.allotment.budget16
            fields["planned_bytes"] = verdict.allotment.planned_bytes + verdict.extra_bytes
        return self._judged(device, payload, fields, verdict.reason, verdict.detail)

    def _judged(self, device: str, payload: bytes, facts: Row, reason: str, detail: str) -> list[Outgoing]:
        """Journals a judged profile unless it says nothing new, acknowledges it, and sends the plan still owed.

        Args:
            device: whose profile it is.
            payload: the profile.
            facts: columns that follow from it.
            reason: why the device is refused; empty if it is admitted.
            detail: of the reason.
        """
        run, row = self.run, self.run.round_row()
        fields: Row = {**facts, "admission": "refused" if reason else "admitted", "reason": reason, "detail": detail}
        fields["online"] = 1
        known = run.device(device)
        said_again = known is not None and known["profile"] == json.loads(payload)
        if known is None or not said_again or any(known[key] != value for key, value in fields.items()):
            with run.journal.transaction("profile") as journal:
                if known is None:
                    journal.add_row("devices", {"device": device})
                fields |= {"profile": payload.decode(), "seen_at": run.clock()}
                journal.set_fields("devices", {"device": device}, fields)
                first = known is None or known["profile"] is None
                if not said_again and (first or self._notable(device)):
                    code = f"rejected:{reason}" if reason else "accepted"
                    journal.verdict(run.clock(), 0, device, "profile", protocol.digest(payload), code, detail)
        out = [self._ack(device, 0, "profile", payload, reason, detail)]
        if not reason and row is not None and row["phase"] == "collect":
            assignment = run.assignment(row["round"], device)
            if assignment is not None and assignment["state"] == "assigned":
                out += self._plan(assignment)
        return out

    def _request(self, device: str, request: protocol.Request) -> list[Outgoing]:
        run = self.run
        row = run.round_row()
        assignment = None if row is None else run.assignment(row["round"], device)
        if request.run != run.config.run:
            return []
        if request.wants:
            self._downloads[device] = request
        if request.plan and row is not None and assignment is not None and row["phase"] == "collect":
            return self._plan(assignment) if assignment["state"] == "assigned" else []
        return []

    @property
    def downloads(self) -> int:
        """Devices whose requests for blobs wait to be answered."""
        return len(self._downloads)

    def next_download(self) -> list[Outgoing]:
        """What one device asked for last, the one that has waited longest; made only now, so it takes no memory."""
        if not self._downloads:
            return []
        run, row = self.run, self.run.round_row()
        device = next(iter(self._downloads))
        request = self._downloads.pop(device)
        assignment = None if row is None else run.assignment(row["round"], device)
        allowed = {run.layout.program: run.program}
        if row is not None and row["phase"] == "collect" and assignment is not None and assignment["plan"] is not None:
            allowed |= self._start_blobs(row, assignment)
        pieces: list[bytes] = []
        try:
            for want in request.wants:
                blob = allowed.get(want.sha256)
                if blob is not None:  # else of an earlier round, or not this device's: the round's state tells it
                    indices = chunks.indices_of(want.bitmap, chunks.chunk_count(len(blob)))
                    pieces += chunks.encode_chunks(want.sha256, blob, indices)
        except ProtocolError as error:
            self._odd("malformed", device, error.message)
        return [self._to(device, topics.CHUNK, message) for message in chunks.bundles(pieces)]

    def _refusal(self, device: str, refusal: protocol.Refusal, payload: bytes) -> list[Outgoing]:
        run = self.run
        if refusal.round == 0 and refusal.run == run.config.run:
            return self._complaint(device, refusal, payload)
        row, assignment, problem = self._owed(device, refusal.run, refusal.round)
        if problem:
            return [self._ack(device, refusal.round, "refusal", payload, *problem)]
        assert row is not None
        assert assignment is not None
        ref = protocol.digest(payload)
        if assignment["state"] != "assigned":
            same = assignment["ref"] == ref
            reason = ("", "") if same else ("duplicate", f"the device has answered: {assignment['state']}")
            return [self._ack(device, refusal.round, "refusal", payload, *reason)]
        if refusal.plan != assignment["plan_sha"]:  # that plan has been replaced since, and the answer got lost
            return [self._ack(device, refusal.round, "refusal", payload, "", ""), *self._plan(assignment)]
        if device in self._ready:
            return []  # its update is complete: the verdict on that is its answer
        self._inbox.drop(device)  # what it began to send under this plan counts no more
        detail = refusal.detail
        if refusal.reason == "memory":
            smaller = self._replan(row, assignment, refusal.limit_bytes)
            if smaller is not None:
                return [self._ack(device, refusal.round, "refusal", payload, "", ""),
                        *self._plan({**assignment, "plan": smaller})]  # fmt: skip
            detail = f"{refusal.planned_bytes} bytes planned, {refusal.limit_bytes} allowed; {detail}".rstrip("; ")
        with run.journal.transaction("refusal") as journal:
            journal.set_fields(
                "assignments",
                {"round": row["round"], "device": device},
                {"state": "refused", "reason": refusal.reason or "refused", "detail": detail, "ref": ref,
                 "answered_at": run.clock()},
            )  # fmt: skip
            journal.verdict(run.clock(), row["round"], device, "refusal", ref, "accepted", detail)
        return [self._ack(device, refusal.round, "refusal", payload, "", "")]

    def _replan(self, row: Row, assignment: Row, limit: int) -> bytes | None:
        """A smaller plan for a device with `limit` bytes left; None if there is none."""
        return rounds.replan(self.run, row, assignment, limit)

    def _complaint(self, device: str, refusal: protocol.Refusal, payload: bytes) -> list[Outgoing]:
        """A device that cannot take part at all: wrong data, or a program its core does not read."""
        run, known = self.run, self.run.device(device)
        fields: Row = {"admission": "refused", "reason": refusal.reason or "refused", "detail": refusal.detail}
        if known is None or any(known[key] != value for key, value in fields.items()):
            with run.journal.transaction("complaint") as journal:
                if known is None:
                    journal.add_row("devices", {"device": device})
                journal.set_fields("devices", {"device": device}, fields)
                if self._notable(device):
                    ref = protocol.digest(payload)
                    journal.verdict(run.clock(), 0, device, "refusal", ref, "accepted", refusal.detail)
        return [self._ack(device, 0, "refusal", payload, "", "")]

    # --- updates ------------------------------------------------------------------------------------------------------

    def _update(self, device: str, update: protocol.Update, payload: bytes) -> list[Outgoing]:
        run = self.run
        ref = protocol.digest(payload)
        earlier = run.assignment(update.round, device)
        if update.run == run.config.run and earlier is not None and earlier["ref"] == ref:
            self.counters["repeated"] = self.counters.get("repeated", 0) + 1
            # The answer got lost: say it again, whatever has happened to the round since.
            return [self._ack(device, update.round, "update", payload, earlier["reason"], earlier["detail"])]
        row, assignment, problem = self._owed(device, update.run, update.round)
        late = run.late_work(update.round, device) if problem and update.run == run.config.run else None
        if late is not None and not self.cancelled:
            row, assignment, problem = *late, None
            now = run.round_row()
            if now is None or now["phase"] != "collect":
                return []  # between two rounds: it will say it again, and count in the next
        if problem:
            self._note_verdict(update.round, device, ref, *problem)
            return [self._ack(device, update.round, "update", payload, *problem)]
        assert row is not None
        assert assignment is not None
        if assignment["state"] != "assigned" and late is None:
            problem = ("duplicate", f"the device has answered round {row['round']}: {assignment['state']}")
            self._note_verdict(update.round, device, ref, *problem)
            return [self._ack(device, update.round, "update", payload, *problem)]
        if device in self._ready:
            return []  # complete: its verdict is about to be written
        pending = self._inbox.uploads.get(device)
        if pending is None or pending.ref != ref:
            try:
                sent = [layer.blobs for layer in run.serving(row).prepare(ints(assignment["bits"]))]
                updates.check_manifest(run.layout, sent, run.config.epochs, assignment["plan_sha"], update)
                sizes = updates.blob_sizes(run.layout, update.layers)
            except RejectionError as error:
                return self._settle(device, row, ref, payload, update, error, b"")
            if not self._inbox.room_for(device, payload, run.clock()):
                return []
            pending = Pending.open(ref, update, sizes, self._start_blobs(row, assignment).get, payload)
            self._inbox.uploads[device] = pending
        pending.touched = run.clock()
        return self._need_or_settle(device, row, pending)

    def _next_uploads(self) -> list[Outgoing]:
        """Lets those begin who waited while every place was taken."""
        out: list[Outgoing] = []
        while (turn := self._inbox.next_waiting()) is not None:
            device, payload = turn
            update = protocol.decode(topics.UPDATE, payload)
            if isinstance(update, protocol.Update):
                out += self._update(device, update, payload)
            else:
                out += self._other(topics.UPDATE, device, update, payload)
        return out

    def _chunk(self, device: str, chunk: protocol.Chunk) -> list[Outgoing]:
        pending = self._inbox.uploads.get(device)
        row = self.run.round_row()
        if pending is None or row is None or row["phase"] != "collect":
            return []
        if pending.update.round != row["round"]:
            row = {**row, "round": pending.update.round}
        try:
            pending.touched = self.run.clock()
            if not pending.add(chunk):
                return []
        except HashError as error:
            self._odd("damaged", device, error.message)
        return self._need_or_settle(device, row, pending)

    def _need_or_settle(self, device: str, row: Row, pending: Pending) -> list[Outgoing]:
        if not pending.complete:
            need = protocol.Need(self.run.config.run, row["round"], pending.ref, pending.wants())
            return [self._to(device, topics.ACK, protocol.encode(need))]
        run = self.run
        try:
            updates.check_contents(run.layout, pending.update.layers, pending.blobs.__getitem__)
        except RejectionError as error:
            return self._settle(device, row, pending.ref, pending.payload, pending.update, error, b"")
        pack = updates.pack_file(pending.update.layers, pending.blobs)
        return self._settle(device, row, pending.ref, pending.payload, pending.update, None, pack)

    def _settle(
        self,
        device: str,
        row: Row,
        ref: str,
        payload: bytes,
        update: protocol.Update | protocol.FloatUpdate,
        problem: RejectionError | None,
        pack: bytes,
    ) -> list[Outgoing]:
        """Takes a complete update out of the way until `settle` writes its verdict."""
        self._inbox.uploads.pop(device, None)
        self._ready[device] = Judged(row["round"], ref, payload, update, problem, pack, self.run.clock())
        return []

    def settle(self) -> list[Outgoing]:
        """Journals the verdicts on all complete updates at once; only then may the devices forget their work.

        One wait for the disk serves them all. `handle` does it for every message unless `defer` is set.
        """
        ready, self._ready = self._ready, {}
        if not ready:
            return []
        told = verdicts.write(self.run, ready)
        return [self._ack(name, v.round, "update", v.payload, v.reason, v.detail) for name, v in told.items()]

    # --- small parts --------------------------------------------------------------------------------------------------

    def _owed(self, device: str, run_name: str, round_no: int) -> tuple[Row | None, Row | None, tuple[str, str] | None]:
        """The round and assignment a message belongs to, or why it belongs to none."""
        run = self.run
        row = run.round_row()
        if run_name != run.config.run:
            return None, None, ("stale-round", f"this is run {run.config.run!r}")
        if row is None or round_no != row["round"]:
            now = 0 if row is None else row["round"]
            return None, None, ("stale-round", f"round {round_no} is not the current round {now}")
        if self.cancelled:
            return None, None, ("closed", "the run was cancelled")
        if row["phase"] != "collect":
            return None, None, ("late", f"round {round_no} has closed")
        if run.device(device) is None:
            return None, None, ("unknown-device", "the device has no birth here")
        assignment = run.assignment(round_no, device)
        if assignment is None:
            return None, None, ("not-selected", f"the device is not part of round {round_no}")
        return row, assignment, None

    def _note_verdict(self, round_no: int, device: str, ref: str, reason: str, detail: str) -> None:
        if not self._notable(device):
            return
        with self.run.journal.transaction("refused-update") as journal:
            journal.verdict(self.run.clock(), round_no, device, "update", ref, f"rejected:{reason}", detail)

    def _start_blobs(self, row: Row, assignment: Row) -> dict[str, bytes]:
        """The blobs a device's plan names."""
        return self.run.serving(row).blobs_of(assignment["bits"])

    def _plan(self, assignment: Row) -> list[Outgoing]:
        return [self._to(assignment["device"], topics.PLAN, assignment["plan"])]

    def _ack(self, device: str, round_no: int, of: str, payload: bytes, reason: str, detail: str) -> Outgoing:
        ack = protocol.Ack(
            run=self.run.config.run,
            round=round_no,
            of=of,  # type: ignore[arg-type]
            ref=protocol.digest(payload),
            accepted=not reason,
            reason=reason,
            detail="".join(c if c.isprintable() else " " for c in detail)[:400],
        )
        return self._to(device, topics.ACK, protocol.encode(ack))
