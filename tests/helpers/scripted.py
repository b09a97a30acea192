"""A coordinator that does as a test says, and a clock, to drive the device agent over the loopback transport."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

from fedmpq.edge_runtime import chunks, core, protocol, topics
from fedmpq.edge_runtime.agent import Agent, Options
from fedmpq.edge_runtime.loopback import LoopbackBroker
from fedmpq.edge_runtime.profile import Limits, trials_in_process
from fedmpq.edge_runtime.shard import Shard, write_shard
from fedmpq.edge_runtime.store import Store
from fedmpq.edge_runtime.transport import Connected, Incoming
from tests.helpers import messages, programs

FLEET, DEVICE, RUN = "lab", "pi-1", "r1"
NET = programs.resnet(size=(8, 8, 1), width=4, crop_pad=1)
PROGRAM = NET.build()


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


class Coordinator:
    """Answers as the real one would, with the plans a test gives it."""

    def __init__(self, broker: LoopbackBroker, settings: protocol.Settings | None = None) -> None:
        self.topics = topics.Topics(FLEET)
        self.link = broker.transport("coordinator")
        self.settings = settings or messages.settings(batch=8, momentum=True)
        self.blobs: dict[str, bytes] = {protocol.digest(PROGRAM): PROGRAM}
        self.plans: dict[int, bytes] = {}
        self.received: list[protocol.Message] = []
        self.updates: list[bytes] = []  # update messages as they came, repeats included
        self.parts: dict[str, chunks.Assembly] = {}
        self.sent_chunks: list[str] = []
        self.mute: set[str] = set()  # kinds of message that get no answer
        self.link.connect(self.topics.for_coordinator())

    def of(self, cls: type[Any]) -> list[Any]:
        return [m for m in self.received if isinstance(m, cls)]

    def announce(self, round_: int = 0, phase: str = "waiting", *, run: str = RUN, online: bool = True) -> None:
        job = protocol.Job(protocol.digest(PROGRAM), len(PROGRAM), self.settings)
        self.publish(None, topics.COORD_STATE, protocol.CoordState(run, online, 1, job if online else None))
        state = protocol.RoundState(run, round_, 9, phase, 0, 1)  # type: ignore[arg-type]
        self.publish(None, topics.ROUND, state)

    def make_plan(self, round_: int, bits: int = 2, seed: int = 0, **changes: Any) -> protocol.PlanMessage:
        layers = []
        for state in programs.states(NET, bits, seed=seed):
            for blob in (*state.planes, state.params):
                self.blobs[protocol.digest(blob)] = blob
            planes = tuple(protocol.digest(plane) for plane in state.planes)
            layers.append(protocol.LayerBlobs(bits, state.step, planes, protocol.digest(state.params)))
        fields = {"program": protocol.digest(PROGRAM), "program_size": len(PROGRAM), "settings": self.settings}
        fields |= {"layers": tuple(layers), "lasso": (), "round": round_, "epochs": 1, "lr": core.fx(0.05)}
        return messages.plan(**{**fields, **changes})

    def open_round(self, plan: protocol.PlanMessage) -> None:
        self.plans[plan.round] = protocol.encode(plan)
        self.announce(plan.round, "collect")
        self.publish(DEVICE, topics.PLAN, plan)

    def publish(self, device: str | None, kind: str, message: protocol.Control | bytes) -> None:
        topic = self.topics.prefix + kind if device is None else self.topics.device(device, kind)
        payload = message if isinstance(message, bytes) else protocol.encode(message)
        self.link.publish(topic, payload, retain=kind in (topics.COORD_STATE, topics.ROUND, topics.STATE))

    def pump(self) -> bool:
        busy = False
        while (event := self.link.poll(0.0)) is not None:
            if isinstance(event, Incoming):
                busy = True
                route = self.topics.parse(event.topic)
                message = protocol.decode(route.kind, event.payload)
                self.received.append(message)
                if route.kind not in self.mute:
                    self._answer(message, event.payload)
        return busy

    def _answer(self, message: protocol.Message, payload: bytes) -> None:
        if isinstance(message, protocol.Profile):
            self._ack("profile", payload, 0)
        elif isinstance(message, protocol.Refusal):
            self._ack("refusal", payload, message.round)
        elif isinstance(message, protocol.Request):
            if message.plan and message.round in self.plans:
                self.publish(DEVICE, topics.PLAN, self.plans[message.round])
            for want in message.wants:
                blob = self.blobs[want.sha256]
                for index in chunks.indices_of(want.bitmap, chunks.chunk_count(len(blob))):
                    self.sent_chunks.append(want.sha256)
                    self.publish(DEVICE, topics.CHUNK, chunks.encode_chunk(want.sha256, blob, index))
        elif isinstance(message, protocol.Update):
            self.updates.append(payload)
            self._judge(message, payload)
        elif isinstance(message, protocol.Bundle):
            for chunk in message.chunks:
                self._answer(chunk, b"")
        elif isinstance(message, chunks.Chunk) and message.sha256 in self.parts:
            part = self.parts[message.sha256]
            part.add(message)
            if not part.missing:
                self.blobs[part.sha256] = part.finish()
                del self.parts[message.sha256]
            if not self.parts and self.updates:
                update = protocol.decode(topics.UPDATE, self.updates[-1])
                assert isinstance(update, protocol.Update)
                self._judge(update, self.updates[-1])

    def _judge(self, update: protocol.Update, payload: bytes) -> None:
        sizes = {}
        for layer, shape in zip(update.layers, core.Program(PROGRAM).weight_layers, strict=True):
            sizes.update(dict.fromkeys(layer.planes, -(-shape.theta // 8)))
            sizes[layer.params] = shape.params_bytes
        for sha256, size in sizes.items():
            if sha256 not in self.blobs:
                self.parts.setdefault(sha256, chunks.Assembly(sha256, size))
        if self.parts:
            wants = tuple(protocol.Want(p.sha256, p.bitmap) for p in self.parts.values())
            need = protocol.Need(update.run, update.round, protocol.digest(payload), wants)
            self.publish(DEVICE, topics.ACK, need)
        else:
            self._ack("update", payload, update.round)

    def _ack(self, of: str, payload: bytes, round_: int, reason: str = "") -> None:
        ack = protocol.Ack(RUN, round_, of, protocol.digest(payload), not reason, reason, "")  # type: ignore[arg-type]
        self.publish(DEVICE, topics.ACK, ack)


class Rig:
    """One device and its coordinator on a loopback broker, on a simulated clock."""

    def __init__(self, folder: Path, *, limit: int | None = 10**8, samples: int = 40, **faults: Any) -> None:
        self.folder = folder
        self.limit = limit
        self.clock = Clock()
        self.broker = LoopbackBroker(**faults)
        self.coordinator = Coordinator(self.broker)
        pixels, labels = programs.images(NET, samples)
        self.shard = folder / "own.shard"
        write_shard(self.shard, pixels.tobytes(), labels.tobytes(), shape=(8, 8, 1), classes=10, mean=b"\x7d")
        self.trained = 0
        self.steps = 0
        self.boot()

    def boot(self) -> None:
        """Start the device's process (again) on the state it left."""
        self.store = Store(self.folder / "state", DEVICE)
        self.link = self.broker.transport(f"fmpq-{FLEET}-{DEVICE}")
        options = Options(FLEET, DEVICE, Limits(self.limit))
        self.agent = self.make_agent(options)
        self.agent.start()

    def make_agent(self, options: Options) -> Agent:
        """The agent of a process that trains itself."""
        return Agent(options, self.link, self.store, Shard(self.shard), core, clock=self.clock, trials=self.trials)

    #: How the device measures widths.
    trials = staticmethod(trials_in_process)

    def kill(self) -> None:
        """End the process as kill -9 does: nothing is said, nothing is flushed."""
        self.trained += self.agent.rounds_trained
        self.link.close(graceful=False)
        self.store.close()

    def turn(self) -> bool:
        """One turn of everybody; the clock moves when nobody had anything to do."""
        busy = self.coordinator.pump()
        busy |= self.agent.work()
        self.steps += busy
        self.agent.tick()
        while (event := self.link.poll(0.0)) is not None:
            busy |= not isinstance(event, Connected)
            self.agent.handle(event)
        if not busy:
            self.clock.now += 0.25
        return busy

    def until(self, condition: Callable[[], bool], turns: int = 20000) -> None:
        for _ in range(turns):
            if condition():
                return
            self.turn()
        raise AssertionError("it did not happen")

    def settled(self) -> bool:
        return self.store.record.settled

    def whole_round(self, plan: protocol.PlanMessage) -> None:
        self.coordinator.open_round(plan)
        self.until(lambda: self.store.record.plan == self.coordinator.plans[plan.round] and self.settled())


def expected_layers(plan: protocol.PlanMessage, blobs: dict[str, bytes], shard: Path) -> Any:
    """What training a plan must give, by a session driven directly."""
    from fedmpq.edge_runtime import trainer

    session = core.Session(core.Program(PROGRAM), trainer.core_plan(core, plan.settings, plan.bits))
    trainer.load_layers(core, session, plan, blobs.__getitem__)
    with Shard(shard) as samples:
        for _ in trainer.train_local(core, session, plan, samples):
            pass
    return tuple(layer.reference() for layer in trainer.finish(session, plan))


def with_times(plan: protocol.PlanMessage, sent: int) -> protocol.PlanMessage:
    """The same plan, sent at another time."""
    return dataclasses.replace(plan, sent_ms=sent, deadline_ms=sent + 1000)
