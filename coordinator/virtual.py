"""A device without a process: it speaks the protocol to a `Machine` and trains with the device's own loop.

Every message is encoded and decoded as over a network, so bytes are counted and every check is passed. Training itself
(`train`) touches nothing of the client but the plan, the blobs and the samples, so it can run in a pool.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from fedmpq.coordinator.engine import Engine
from fedmpq.edge_runtime import chunks, protocol, topics, trainer
from fedmpq.edge_runtime.protocol import PlanMessage

#: One message to the coordinator: kind of topic and payload.
Up = tuple[str, bytes]


@dataclass(frozen=True)
class Trained:
    """What local training gave."""

    layers: list[trainer.Layer]
    progress: trainer.Progress
    measured_bytes: int


def train(engine: Engine, plan: PlanMessage, blobs: Mapping[str, bytes], samples: trainer.Samples) -> Trained:
    """Trains one plan from its start blobs; the same bits wherever it runs."""
    session = engine.session(plan.settings, plan.bits)
    trainer.load_layers(engine.api, session, plan, blobs.__getitem__)
    *_, progress = (trainer.Progress(), *trainer.train_local(engine.api, session, plan, samples))
    layers = trainer.finish(session, plan)
    return Trained(layers, progress, int(getattr(session, "measured_bytes", plan.planned_bytes)))


@dataclass
class VirtualDevice:
    """One virtual client.

    Attributes:
        name: of the device.
        run: name of the run.
        program: SHA-256 of the program.
        samples: its private data.
        limit_bytes: memory it grants to an arena.
        plan_sizes: planned bytes of uniform plans at 1..8 bits.
        work: the plan that waits to be trained, once all its blobs are here.
    """

    name: str
    run: str
    program: str
    samples: trainer.Samples
    limit_bytes: int
    plan_sizes: Sequence[int]
    work: PlanMessage | None = None
    verdicts: list[str] = field(default_factory=list)
    _plan: PlanMessage | None = None
    _plan_sha: str = ""
    _parts: dict[str, chunks.Assembly] = field(default_factory=dict)
    _blobs: dict[str, bytes] = field(default_factory=dict)
    _update: bytes = b""
    _sent: dict[str, bytes] = field(default_factory=dict)
    _asked: dict[str, set[int]] = field(default_factory=dict)

    def birth(self) -> list[Up]:
        """The messages of a device that appears."""
        state = protocol.DeviceState(self.name, True, 1, "virtual")
        sizes = tuple(protocol.PlanSize(n + 1, size, None) for n, size in enumerate(self.plan_sizes))
        profile = protocol.Profile(
            device=self.name,
            run=self.run,
            program=self.program,
            samples=self.samples.count,
            budget_bytes=self.limit_bytes,
            limit_source="option",
            ram_bytes=self.limit_bytes,
            available_bytes=self.limit_bytes,
            cgroup_bytes=None,
            peak_bytes=0,
            plans=sizes,
            machine="virtual",
            isa="virtual",
            cpus=1,
            threads=1,
            version="virtual",
        )
        return [(topics.STATE, protocol.encode(state)), (topics.PROFILE, protocol.encode(profile))]

    def receive(self, kind: str, payload: bytes) -> list[Up]:
        """One message of the coordinator; returns the answers."""
        message = protocol.decode(kind, payload)
        if isinstance(message, PlanMessage):
            return self._take_plan(message, message.identity)
        if isinstance(message, chunks.Chunk):
            return self._take_chunk(message)
        if isinstance(message, protocol.Bundle):
            return [answer for chunk in message.chunks for answer in self._take_chunk(chunk)]
        if isinstance(message, protocol.Need):
            pieces = (
                chunks.encode_chunk(want.sha256, blob, index)
                for want in message.wants
                for blob in [self._sent[want.sha256]]
                for index in chunks.indices_of(want.bitmap, chunks.chunk_count(len(blob)))
            )
            return [(topics.UPDATE, message) for message in chunks.bundles(pieces)]
        if isinstance(message, protocol.Ack) and message.of == "update":
            self.verdicts.append(message.verdict)
            self._sent.clear()
        return []

    def start_blobs(self) -> dict[str, bytes]:
        """The blobs of the plan that waits, for `train`."""
        assert self.work is not None
        return self.held_blobs(self.work)

    def held_blobs(self, plan: PlanMessage) -> dict[str, bytes]:
        """The blobs of a plan that it has received."""
        return {sha256: self._blobs[sha256] for layer in plan.layers for sha256 in layer.blobs}

    def finish(self, plan: PlanMessage, trained: Trained, train_ms: int = 0) -> list[Up]:
        """The update of finished training."""
        for layer in trained.layers:
            blobs = layer.reference().blobs
            self._sent.update(zip(blobs, (*layer.planes, layer.params), strict=True))
        update = protocol.Update(
            run=self.run,
            round=plan.round,
            plan=self._plan_sha,
            samples=self.samples.count,
            steps=trained.progress.steps,
            count=trained.progress.count,
            correct=trained.progress.correct,
            loss_q16=trained.progress.loss_q16,
            planned_bytes=plan.planned_bytes,
            measured_bytes=trained.measured_bytes,
            train_ms=train_ms,
            layers=tuple(layer.reference() for layer in trained.layers),
        )
        self._update = protocol.encode(update)
        return [(topics.UPDATE, self._update)]

    def _take_plan(self, plan: PlanMessage, sha256: str) -> list[Up]:
        if sha256 == self._plan_sha:
            return []
        self._plan, self._plan_sha = plan, sha256
        named = {ref for layer in plan.layers for ref in layer.blobs}
        self._blobs = {ref: data for ref, data in self._blobs.items() if ref in named}
        self._parts = {}
        program = self._layer_sizes(plan)
        for layer, (plane, params) in zip(plan.layers, program, strict=True):
            for ref in layer.blobs:
                if ref not in self._blobs:
                    self._parts[ref] = chunks.Assembly(ref, params if ref == layer.params else plane)
        return self._ask()

    def _ask(self) -> list[Up]:
        """A request for what is missing, as much as may be asked for at once."""
        assert self._plan is not None
        if not self._parts:
            self.work = self._plan
            return []
        self._asked = chunks.window(self._parts.values(), protocol.MAX_WANTS)
        wants = [
            protocol.Want(sha256, chunks.bitmap_of(indices, self._parts[sha256].count))
            for sha256, indices in self._asked.items()
        ]
        return [self._request(wants)]

    def _request(self, wants: Sequence[protocol.Want]) -> Up:
        assert self._plan is not None
        request = protocol.Request(self.run, self._plan.round, False, tuple(wants))
        return topics.REQUEST, protocol.encode(request)

    def _take_chunk(self, chunk: chunks.Chunk) -> list[Up]:
        part = self._parts.get(chunk.sha256)
        if part is None or not part.add(chunk):
            return []
        if not part.missing:
            self._blobs[chunk.sha256] = part.finish()
            del self._parts[chunk.sha256]
        asked = self._asked.get(chunk.sha256, set())
        asked.discard(chunk.index)
        if not asked:
            self._asked.pop(chunk.sha256, None)
        return [] if self._asked else self._ask()

    #: Bytes of a plane and of the parameter blob of each layer; set once by `fleet`.
    sizes: Sequence[tuple[int, int]] = ()

    def _layer_sizes(self, plan: PlanMessage) -> Sequence[tuple[int, int]]:
        assert len(self.sizes) == len(plan.layers)
        return self.sizes


def route(machine: Any, devices: Mapping[str, VirtualDevice], outgoing: Sequence[Any]) -> None:
    """Delivers messages both ways until nobody has anything to say."""
    queue = list(outgoing)
    while queue:
        message = queue.pop(0)
        if message.device is None or message.device not in devices:
            continue
        for kind, payload in devices[message.device].receive(message.kind, message.payload):
            queue.extend(machine.handle(kind, message.device, payload))
