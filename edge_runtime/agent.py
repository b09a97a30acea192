"""The device agent: birth, profile, plan, fetch, train, upload, ack, and again (docs/protocol.md).

`Agent` is single-threaded: `handle` takes transport events, `tick` does what timers make due, `work` does one training
step. What it must do next follows from its store and the coordinator's retained state alone, so that a kill at any
point loses at most the training steps of one unfinished round.
"""

from __future__ import annotations

import logging
import random
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from time import monotonic
from typing import Any, ClassVar, Final

import fedmpq
from fedmpq.edge_runtime import faults, memory, topics
from fedmpq.edge_runtime.assignment import Assignment, printable
from fedmpq.edge_runtime.backoff import Backoff
from fedmpq.edge_runtime.chunks import WINDOW_BYTES, Chunk, bundles, chunk_count, encode_chunk, indices_of
from fedmpq.edge_runtime.fetch import Fetch
from fedmpq.edge_runtime.profile import Limits, Trials, make_profile, trials_in_child
from fedmpq.edge_runtime.protocol import (
    Ack,
    Bundle,
    Control,
    CoordState,
    DeviceState,
    FloatJob,
    FloatPlan,
    FloatProfile,
    Job,
    Message,
    Need,
    PlanMessage,
    Profile,
    Refusal,
    Request,
    RoundState,
    Update,
    decode,
    digest,
    encode,
)
from fedmpq.edge_runtime.seal import Seal
from fedmpq.edge_runtime.store import Store
from fedmpq.edge_runtime.trainer import Samples, check_samples
from fedmpq.edge_runtime.transport import Connected, Disconnected, Event, Incoming, Transport, Will
from fedmpq.errors import ConfigError, DataError, FedmpqError, NetworkError, ProtocolError

log = logging.getLogger("fedmpq.device")

#: Seconds: first and longest delay between repeats of an unanswered message.
FIRST_S: Final = 2.0
MOST_S: Final = 60.0
#: Requests for the plan of a round that did not come; then the device is taken as not selected.
PLAN_REQUESTS: Final = 6
_NO_PLAN: Final = "0" * 64
#: What a device says to a run that its engine cannot train.
_OTHER_ENGINE: Final[dict[type[Job | FloatJob], str]] = {
    FloatJob: "this run trains in full precision: start the device with --engine ort-training",
    Job: "this run trains in integers: start the device without --engine ort-training",
}


@dataclass(frozen=True, slots=True)
class Options:
    """Who the device is and what it grants. `until_finished`: stop when the run is over instead of waiting on."""

    fleet: str
    device: str
    limits: Limits = field(default_factory=Limits)
    until_finished: bool = False
    will_delay_s: int = 30


class Agent:
    """One device of a fleet.

    Args:
        options: name and limits.
        transport: unconnected.
        store: the state directory, held by this process.
        samples: the shard.
        core: the core binding, or a module with the same names.
        seal: the key shared with the coordinator; with it, nothing unsealed is taken on the device's own topics.
        clock: seconds, monotonic; simulated in tests.
        trials: how arena sizes are measured (in a child process by default).
    """

    def __init__(
        self,
        options: Options,
        transport: Transport,
        store: Store,
        samples: Samples,
        core: Any,
        *,
        seal: Seal | None = None,
        clock: Callable[[], float] = monotonic,
        trials: Callable[[Any, Path, Any, int, int], Trials] = trials_in_child,
    ) -> None:
        self.options = options
        self.finished = False
        self.rounds_trained = 0
        self.assignment: Assignment | None = None
        self._transport, self._store, self._samples, self._core = transport, store, samples, core
        self._clock, self._trials, self._seal = clock, trials, seal
        self._topics = topics.Topics(options.fleet)
        self._rng = random.Random(options.device)
        self._linked = False
        self._coord: CoordState | None = None
        #: The last state of a coordinator that was there: one that comes back with the same job changes nothing.
        self._told: CoordState | None = None
        self._round: RoundState | None = None
        self._program: Any = None
        self._program_fetch: Fetch | None = None
        self._profile: bytes | None = None
        self._profile_settled = False
        #: Arena bytes that this run's trials showed to be the most; None where they found no such bound.
        self._ceiling: int | None = None
        self._last_need: tuple[bytes, float] = (b"", float("-inf"))
        self._timer = {
            name: Backoff(FIRST_S, MOST_S, self._rng) for name in ("program", "profile", "blobs", "answer", "plan")
        }
        self._plan = self._restored_plan()

    # --- life ---------------------------------------------------------------------------------------------------

    def start(self, timeout_s: float = 10.0) -> None:
        """Connect; the will carries the same number as the birth that follows."""
        number = (self._store.record.bd_seq + 1) % 2**32
        self._store.update(bd_seq=number)
        topic, payload = self._own(topics.STATE), encode(self._state(online=False))
        will = Will(topic, self._closed(topic, payload), self.options.will_delay_s)
        self._transport.connect(self._topics.for_device(self.options.device), will, timeout_s)

    def run(self, stop: Callable[[], bool] = lambda: False) -> None:
        """Serve until `stop` says so or, with `until_finished`, until the run is over."""
        self.start()
        try:
            while not stop() and not (self.finished and self.options.until_finished):
                busy = self.work()
                wait = self.tick()
                event = self._transport.poll(0.0 if busy else min(wait, 1.0))
                while event is not None:
                    self.handle(event)
                    event = self._transport.poll(0.0)
        finally:
            self.close()

    def close(self) -> None:
        """Say that the device leaves, and disconnect."""
        if self._linked:
            self._publish(topics.STATE, self._state(online=False), retain=True)
        self._transport.close()
        if self.assignment is not None:
            self.assignment.close()

    # --- the three entries --------------------------------------------------------------------------------------

    def handle(self, event: Event) -> None:
        """Take one event. Bad messages are logged and dropped; only a lost identity ends the agent."""
        if isinstance(event, Connected):
            self._linked = True
            log.info("connected as %s", self.options.device)
            self._publish(topics.STATE, self._state(online=True), retain=True)
            self._hurry()
        elif isinstance(event, Disconnected):
            self._linked = False
            log.warning("disconnected: %s", event.reason)
            if event.final:
                raise NetworkError(f"device {self.options.device}: {event.reason}", "device names must be unique")
        else:
            self._receive(event)

    def tick(self) -> float:
        """Do what is due; returns the seconds until something may be."""
        if not self._linked or self._coord is None or not self._coord.online or self._coord.job is None:
            return MOST_S
        if self._program is None:
            return self._pull_program(self._coord.job)
        if self._profile is None:
            self._measure(self._coord)
        if not self._profile_settled:
            return self._repeat("profile", topics.PROFILE, self._profile or b"")
        return self._advance()

    def work(self) -> bool:
        """One training step, if there is one to do; True if so."""
        assignment = self.assignment
        if assignment is None or assignment.fetching or assignment.fetch is None or self._answered():
            return False
        if not assignment.train() and self._answered():
            self.rounds_trained += assignment.trained
            self.assignment = None
            self._timer["answer"].reset()
        return True

    # --- messages -----------------------------------------------------------------------------------------------

    def _receive(self, event: Incoming) -> None:
        faults.point("device-message:received")
        try:
            route = self._topics.parse(event.topic)
            if route.device not in (None, self.options.device):
                raise ProtocolError(f"{event.topic}: meant for another device")
            payload = event.payload
            if self._seal is not None and route.device is not None:
                payload = self._seal.open(event.topic, payload)
            self._dispatch(decode(route.kind, payload), payload)
        except ProtocolError as error:
            log.warning("message dropped: %s", error)

    def _dispatch(self, message: Message, payload: bytes) -> None:
        if isinstance(message, CoordState):
            self._on_coordinator(message)
        elif isinstance(message, RoundState):
            self._on_round(message)
        elif isinstance(message, PlanMessage | FloatPlan):
            self._on_plan(message, payload)
        elif isinstance(message, Chunk):
            self._on_chunk(message)
        elif isinstance(message, Bundle):
            for chunk in message.chunks:
                self._on_chunk(chunk)
        elif isinstance(message, Ack):
            self._on_ack(message)
        elif isinstance(message, Need):
            self._on_need(message, payload)

    def _on_coordinator(self, state: CoordState) -> None:
        self._coord = state
        if not state.online:
            log.info("the coordinator is away")
            return
        before, self._told = self._told, state
        if before is None or before.run != state.run or before.job != state.job:
            self._program, self._program_fetch, self._profile = None, None, None
            self._profile_settled = False
            if self._round is not None and self._round.run != state.run:
                self._round = None
            # A broker hands out retained messages in any order: the round's state may have come first.
            self.finished = self._round is not None and self._round.over
            self._drop()
        self._hurry()

    def _on_round(self, state: RoundState) -> None:
        before = self._round
        if before is not None and before.run == state.run and state.order < before.order:
            return  # an older message, overtaken
        if before is None or (before.run, before.round, before.phase) != (state.run, state.round, state.phase):
            self._timer["plan"].reset()
            self._timer["plan"].hold(self._clock(), FIRST_S)
            self._look_at_memory()
        self._round = state
        self.finished = state.over
        if self.assignment is not None and not self._active(self.assignment.plan):
            log.info("round %d is over for this device", self.assignment.plan.round)
            self._drop()

    def _look_at_memory(self) -> None:
        """Between two rounds: a budget that has changed by more than an eighth is told."""
        profile = None if self._profile is None else decode(topics.PROFILE, self._profile)
        if not isinstance(profile, Profile):
            return
        budget = memory.measure(self.options.limits.memory).budget
        if self._ceiling is not None:
            budget = min(budget, self._ceiling)  # free memory does not make a width run that could not
        if abs(budget - profile.budget_bytes) * 8 > profile.budget_bytes:
            log.info("memory for training now %d bytes, %d before", budget, profile.budget_bytes)
            self._profile = encode(replace(profile, budget_bytes=budget))
            self._profile_settled = False
            self._timer["profile"].reset()

    def _on_plan(self, plan: PlanMessage | FloatPlan, payload: bytes) -> None:
        known = self._plan
        if not isinstance(plan, self.plan_type) or (self._coord is not None and plan.run != self._coord.run):
            return
        if known is not None and known.run == plan.run:
            state = self._round
            if plan.round < known.round and not (state is not None and self._active(plan)):
                return  # overtaken; but the round's state may say that the coordinator was set back
            if plan.identity == known.identity:
                if self._store.record.update is not None:
                    self._store.update(settled=False)  # asked again: the answer was lost
                    self._timer["answer"].reset()
                return
        self._drop()
        self._store.update(plan=payload, update=None, settled=False)
        self._store.keep_only(self._blobs_of(plan))
        self._plan = plan

    def _on_chunk(self, chunk: Chunk) -> None:
        fetch = self._program_fetch if self._program is None else self.assignment and self.assignment.fetch
        if not fetch or not fetch.add(chunk):
            return
        timer = self._timer["program" if fetch is self._program_fetch else "blobs"]
        timer.relax()
        timer.hold(self._clock(), FIRST_S)  # the rest is probably under way
        if fetch.window_empty:
            timer.reset()

    def _on_ack(self, ack: Ack) -> None:
        if ack.of == "profile":
            if self._profile is not None and ack.ref == digest(self._profile):
                self._profile_settled = True
                if not ack.accepted:
                    log.warning("profile %s: %s", ack.verdict, ack.detail)
            return
        update = self._store.record.update
        if update is not None and ack.ref == digest(update) and not self._store.record.settled:
            self._store.update(settled=True)
            log.info("round %d: %s %s %s", ack.round, ack.of, ack.verdict, ack.detail)

    def _on_need(self, need: Need, payload: bytes) -> None:
        update = self._store.record.update
        now = self._clock()
        if update is None or need.ref != digest(update):
            return
        if payload == self._last_need[0] and now - self._last_need[1] < 1.0:
            return  # a duplicate of the transport
        self._last_need = (payload, now)
        sent = 0
        wanted: list[tuple[str, bytes, int]] = []
        for want in need.wants:
            blob = self._store.get(want.sha256)
            if blob is None:
                log.error("round %d: a blob of the update is damaged, training again", need.round)
                self._store.update(update=None, settled=False)
                return
            wanted += [(want.sha256, blob, index) for index in indices_of(want.bitmap, chunk_count(len(blob)))]
        for message in bundles(encode_chunk(*piece) for piece in wanted):
            if sent > WINDOW_BYTES:
                self._timer["answer"].reset()  # announce again at once: the rest is still needed
                return
            self._send(topics.UPDATE, message)
            sent += len(message)
        self._timer["answer"].relax()
        self._timer["answer"].hold(now, FIRST_S)

    # --- steps of tick ------------------------------------------------------------------------------------------

    def _pull_program(self, job: Job | FloatJob) -> float:
        if not isinstance(job, self.job_type):
            error = ConfigError(f"device {self.options.device}: {_OTHER_ENGINE[type(job)]}")
            self._complain("engine", error.message)
            raise error
        program, size = (job.program, job.program_size) if isinstance(job, Job) else (job.bundle, job.bundle_size)
        if self._program_fetch is None:
            self._program_fetch = Fetch(self._store, {program: size})
        if not self._program_fetch.done:
            return self._ask("program", self._program_fetch, 0)
        data = self._store.get(program)
        if data is None:
            self._program_fetch = None
            return 0.0
        try:
            self._program = self._core.Program(data)
            check_samples(self._samples, self._program)
        except DataError as error:
            self._complain("data", str(error))
            raise
        except FedmpqError as error:
            self._complain("program", str(error))
            raise
        return 0.0

    def _measure(self, coord: CoordState) -> None:
        profile = self._make_profile(coord)
        self._profile = encode(profile)
        self._timer["profile"].reset()
        log.info("memory for training %d bytes (%s)", profile.budget_bytes, profile.limit_source)

    def _advance(self) -> float:
        """The round: start or go on with the plan, answer it, or ask for one."""
        record = self._store.record
        if self._plan is not None and self._active(self._plan):
            if record.update is not None:
                return MOST_S if record.settled else self._repeat("answer", topics.UPDATE, record.update)
            if self.assignment is None:
                self.assignment = self._assign(self._plan)
                self._timer["blobs"].reset()
                self.assignment.start()
                if self._answered():
                    self.assignment = None
                    self._timer["answer"].reset()
                return 0.0
            if self.assignment.fetching and self.assignment.fetch is not None:
                return self._ask("blobs", self.assignment.fetch, self._plan.round)
            return 0.0
        state, timer = self._round, self._timer["plan"]
        if state is not None and state.phase == "collect" and timer.attempts < PLAN_REQUESTS:
            if timer.due(self._clock()):
                self._publish(topics.REQUEST, Request(state.run, state.round, True, ()))
            return timer.left(self._clock())
        return MOST_S

    def _ask(self, name: str, fetch: Fetch, round_: int) -> float:
        timer = self._timer[name]
        if timer.due(self._clock()):
            run = self._coord.run if self._coord is not None else ""
            self._publish(topics.REQUEST, Request(run, round_, False, fetch.wants()))
        return timer.left(self._clock())

    def _repeat(self, name: str, kind: str, payload: bytes) -> float:
        timer = self._timer[name]
        if timer.due(self._clock()):
            self._send(kind, payload)
        return timer.left(self._clock())

    # --- what depends on the engine (`ort.agent.FloatAgent` has the other one) -----------------------------------

    job_type: ClassVar[type[Job | FloatJob]] = Job
    plan_type: ClassVar[type[PlanMessage | FloatPlan]] = PlanMessage

    def _make_profile(self, coord: CoordState) -> Profile | FloatProfile:
        assert isinstance(coord.job, Job)
        profile, self._ceiling = make_profile(
            self._core,
            self.options.device,
            coord.run,
            self._store.directory / "blobs" / coord.job.program,
            coord.job.settings,
            self._samples.count,
            self.options.limits,
            self._trials,
        )
        return profile

    def _blobs_of(self, plan: Any) -> set[str]:
        """The blobs a plan names."""
        return {plan.program, *(blob for layer in plan.layers for blob in layer.blobs)}

    def _assign(self, plan: Any) -> Assignment:
        return Assignment(plan, self._core, self._program, self._store, self._samples, self.options.limits)

    # --- small things -------------------------------------------------------------------------------------------

    def _restored_plan(self) -> PlanMessage | FloatPlan | None:
        """The plan in the store, if this version still reads it."""
        payload = self._store.record.plan
        if payload is None:
            return None
        try:
            plan = decode(topics.PLAN, payload)
        except ProtocolError as error:
            log.warning("the stored plan is dropped: %s", error)
            return None
        if not isinstance(plan, self.plan_type):
            log.warning("the stored plan is dropped: it is for another engine")
            return None
        return plan

    def _active(self, plan: PlanMessage | FloatPlan) -> bool:
        """Whether work on a plan still counts: in its round, or for as many rounds after it as the plan says."""
        state = self._round
        if state is None or state.run != plan.run:
            return False
        behind = state.round - plan.round
        if behind == 0 and state.phase == "collect":
            return True
        in_time = 0 <= behind <= getattr(plan, "late_rounds", 0)
        late = getattr(plan, "late_rounds", 0) > 0
        return late and in_time and not state.over and not self._store.record.settled

    def _answered(self) -> bool:
        return self._store.record.update is not None

    def _drop(self) -> None:
        if self.assignment is not None:
            self.assignment.close()
            self.assignment = None

    def _hurry(self) -> None:
        """Everything that waits for an answer is sent again now: the peer may have lost it."""
        for name in ("program", "profile", "blobs", "answer"):
            self._timer[name].reset()
        self._profile_settled = False

    def _state(self, *, online: bool) -> DeviceState:
        return DeviceState(self.options.device, online, self._store.record.bd_seq, fedmpq.__version__)

    def _complain(self, reason: str, detail: str) -> None:
        """Tell the coordinator about a problem that no plan can solve."""
        run = self._coord.run if self._coord is not None else ""
        self._publish(topics.UPDATE, Refusal(run, 0, _NO_PLAN, reason, 0, 0, printable(detail)))

    def _own(self, kind: str) -> str:
        return self._topics.device(self.options.device, kind)

    def _publish(self, kind: str, message: Control, *, retain: bool = False) -> None:
        self._send(kind, encode(message), retain=retain)

    def _send(self, kind: str, payload: bytes, *, retain: bool = False) -> None:
        faults.point("device-message:sending")
        topic = self._own(kind)
        self._transport.publish(topic, self._closed(topic, payload), retain=retain)

    def _closed(self, topic: str, payload: bytes) -> bytes:
        return payload if self._seal is None else self._seal.close(topic, payload)


__all__ = ["Agent", "Options", "Update"]
