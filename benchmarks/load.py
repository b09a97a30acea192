"""Thousands of devices in one process: a bare MQTT 3.1.1 client each, speaking the real protocol, training recorded.

A `Device` connects, is born, profiles itself, pulls its planes, answers every plan with a recorded update, and repeats
what is not answered, as the agent does. Started by `benchmarks/fleet.py`.
"""

from __future__ import annotations

import asyncio
import json
import struct
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from benchmarks import recorded
from fedmpq.coordinator.layout import Layout
from fedmpq.edge_runtime import chunks, protocol, topics
from fedmpq.edge_runtime.credentials import Credentials
from fedmpq.edge_runtime.mqtt import Broker, _context
from fedmpq.edge_runtime.seal import Seal, bare
from fedmpq.errors import ProtocolError

KEEPALIVE_S = 120
FIRST_S, MOST_S = 5.0, 60.0


@dataclass
class Shared:
    """What all devices of the process share.

    Attributes:
        host, port: the broker.
        fleet: name of the fleet.
        layout, program: of the model.
        sizes: planned bytes at 1..8 bits.
        bits: of each device's memory.
        distinct: different updates.
        secrets: folder of credentials for TLS; None for plain text.
        pool: blobs that some device has pulled.
        counts: what happened so far.
    """

    host: str
    port: int
    fleet: str
    layout: Layout
    origin: Any
    sizes: list[int]
    bits: int
    distinct: int
    secrets: Path | None
    recorder: recorded.Recorder
    pool: dict[str, bytes] = field(default_factory=dict)
    counts: dict[str, int] = field(default_factory=dict)

    def count(self, what: str, by: int = 1) -> None:
        """Adds to a count."""
        self.counts[what] = self.counts.get(what, 0) + by


class Device:
    """One device."""

    def __init__(self, name: str, number: int, shared: Shared) -> None:
        self.name, self.number, self.shared = name, number, shared
        self.topics = topics.Topics(shared.fleet)
        self.seal: Seal | None = None
        self.writer: asyncio.StreamWriter | None = None
        self.mid = 0
        self.run = ""
        self.plan: protocol.PlanMessage | None = None
        self.missing: dict[str, chunks.Assembly] = {}
        self.update: tuple[str, bytes] | None = None
        self.blobs: dict[str, bytes] = {}
        self.profiled = False
        self.again_at, self.delay = float("inf"), FIRST_S
        self.last: tuple[str, bytes] | None = None

    # --- MQTT ---------------------------------------------------------------------------------------------------------

    async def live(self, start: float) -> None:
        """Connects at `start` (loop time) and stays, coming back whenever the link is lost."""
        loop = asyncio.get_running_loop()
        await asyncio.sleep(max(0.0, start - loop.time()))
        while True:
            try:
                await self._session()
            except (OSError, asyncio.IncompleteReadError) as error:
                self.shared.count("links lost")
                self.shared.counts["last: " + type(error).__name__] = 1
            self.writer = None
            await asyncio.sleep(1.0 + self.number % 50 / 25)

    async def _session(self) -> None:
        shared, context, server_name = self.shared, None, None
        if shared.secrets is not None:
            credentials = Credentials.read(shared.secrets / f"{self.name}.json")
            self.seal = credentials.seal
            context = _context(Broker.from_credentials(credentials))
            server_name = credentials.server_name
        reader, writer = await asyncio.open_connection(
            shared.host, shared.port, ssl=context, server_hostname=server_name, limit=1 << 17
        )
        self.writer = writer
        state = protocol.encode(protocol.DeviceState(self.name, False, 1, "recorded"))
        will_topic, will = self._own(topics.STATE).encode(), self._sealed(topics.STATE, state)
        client = f"fmpq-{shared.fleet}-{self.name}".encode()
        body = b"\0\4MQTT\4" + bytes([0x2E]) + struct.pack(">H", KEEPALIVE_S)
        for part in (client, will_topic, will):
            body += struct.pack(">H", len(part)) + part
        self._packet(0x10, body)
        patterns = b"".join(struct.pack(">H", len(p)) + p.encode() + b"\1" for p in self.topics.for_device(self.name))
        ping = asyncio.get_running_loop().time() + KEEPALIVE_S / 2
        reading: asyncio.Future[tuple[int, bytes]] | None = None
        try:
            while True:
                now = asyncio.get_running_loop().time()
                wait = max(0.0, min(ping, self.again_at) - now)
                if reading is None:
                    reading = asyncio.ensure_future(self._read(reader))
                await asyncio.wait({reading}, timeout=wait)
                if not reading.done():  # it goes on reading; the clock has something to do meanwhile
                    now = asyncio.get_running_loop().time()
                    if now >= ping:
                        self._packet(0xC0, b"")
                        ping = now + KEEPALIVE_S / 2
                    if now >= self.again_at:
                        self._repeat(now)
                    continue
                (kind, data), reading = reading.result(), None
                if kind >> 4 == 2:
                    if data[1]:
                        raise OSError(f"refused: {data[1]}")
                    self.mid += 1
                    self._packet(0x82, struct.pack(">H", self.mid) + patterns)
                    born = protocol.encode(protocol.DeviceState(self.name, True, 1, "recorded"))
                    self._publish(topics.STATE, born, retain=True)
                    shared.count("connected")
                elif kind >> 4 == 3:
                    size = struct.unpack_from(">H", data)[0]
                    at = 2 + size
                    if kind & 6:
                        self._packet(0x40, data[at : at + 2])
                        at += 2
                    self._receive(data[2 : 2 + size].decode(), data[at:])
        finally:
            if reading is not None:
                reading.cancel()
            writer.close()

    async def _read(self, reader: asyncio.StreamReader) -> tuple[int, bytes]:
        """One packet; never given up half-way."""
        (kind,) = await reader.readexactly(1)
        size, shift = 0, 0
        while True:
            (byte,) = await reader.readexactly(1)
            size |= (byte & 127) << shift
            shift += 7
            if byte < 128:
                return kind, await reader.readexactly(size)

    def _packet(self, kind: int, body: bytes) -> None:
        assert self.writer is not None
        size, length = bytearray(), len(body)
        while True:
            size.append(length & 127 | (128 if length > 127 else 0))
            length >>= 7
            if not length:
                break
        self.writer.write(bytes([kind]) + bytes(size) + body)

    def _publish(self, kind: str, payload: bytes, *, retain: bool = False) -> None:
        topic = self._own(kind).encode()
        self.mid = self.mid % 60000 + 1
        sealed = self._sealed(kind, payload)
        self.shared.count("bytes up", len(sealed))
        self._packet(0x32 | retain, struct.pack(">H", len(topic)) + topic + struct.pack(">H", self.mid) + sealed)

    def _own(self, kind: str) -> str:
        return self.topics.device(self.name, kind)

    def _sealed(self, kind: str, payload: bytes) -> bytes:
        return payload if self.seal is None else self.seal.close(self._own(kind), payload)

    # --- the protocol -----------------------------------------------------------------------------------------------

    def _say(self, kind: str, payload: bytes) -> None:
        """Something that is repeated until it is answered."""
        self.last, self.delay = (kind, payload), FIRST_S
        self.again_at = asyncio.get_running_loop().time() + self.delay
        self._publish(kind, payload)

    def _heard(self) -> None:
        self.last, self.again_at = None, float("inf")

    def _repeat(self, now: float) -> None:
        if self.missing:
            self.last = topics.REQUEST, self._request()
        if self.last is None:
            self.again_at = float("inf")
            return
        self.shared.count("repeats")
        self._publish(*self.last)
        self.delay = min(MOST_S, self.delay * 2)
        self.again_at = now + self.delay * (0.75 + self.number % 64 / 128)

    def _receive(self, topic: str, data: bytes) -> None:
        shared = self.shared
        shared.count("bytes down", len(data))
        route = self.topics.parse(topic)
        try:
            message = protocol.decode(route.kind, bare(data) if route.device else data)
        except ProtocolError:
            shared.count("malformed")
            return
        if isinstance(message, protocol.CoordState):
            if message.online and isinstance(message.job, protocol.Job):
                self.run = message.run
                profile = recorded.profile_of(self.name, self.run, shared.origin, shared.sizes, shared.bits)
                if self.update is None and not self.missing:
                    self._say(topics.PROFILE, profile)
                else:
                    self._publish(topics.PROFILE, profile)
        elif isinstance(message, protocol.PlanMessage):
            self._on_plan(message)
        elif isinstance(message, chunks.Chunk):
            self._on_chunks((message,))
        elif isinstance(message, protocol.Bundle):
            self._on_chunks(message.chunks)
        elif isinstance(message, protocol.Need) and self.update is not None:
            for part in recorded.upload(message, self.blobs):
                self._publish(topics.UPDATE, part)
            self.again_at = asyncio.get_running_loop().time() + 2 * FIRST_S
        elif isinstance(message, protocol.Ack):
            if message.of == "profile":
                if not self.profiled:
                    self.profiled = True
                    shared.count("profiled")
                if self.last is not None and self.last[0] == topics.PROFILE:
                    self._heard()
            elif self.update is not None and message.ref == protocol.digest(self.update[1]):
                shared.count("updates " + message.verdict)
                self.update, self.blobs = None, {}
                self._heard()

    def _on_plan(self, plan: protocol.PlanMessage) -> None:
        if self.plan is not None and self.plan.round == plan.round:
            if self.update is not None:
                self._publish(*self.update)
            return
        self.plan, self.missing = plan, {}
        # Every device pulls every blob, as its own store would make it.
        for shape, layer in zip(self.shared.layout.layers, plan.layers, strict=True):
            for sha256 in layer.planes:
                self.missing[sha256] = chunks.Assembly(sha256, shape.plane_bytes)
            self.missing[layer.params] = chunks.Assembly(layer.params, shape.params_bytes)
        self._say(topics.REQUEST, self._request())

    def _request(self) -> bytes:
        assert self.plan is not None
        asked = chunks.window(self.missing.values(), protocol.MAX_WANTS)
        wants = tuple(
            protocol.Want(sha256, chunks.bitmap_of(indices, self.missing[sha256].count))
            for sha256, indices in asked.items()
        )
        return protocol.encode(protocol.Request(self.run, self.plan.round, False, wants))

    def _on_chunks(self, found: tuple[chunks.Chunk, ...]) -> None:
        if not self.missing:
            return
        for chunk in found:
            part = self.missing.get(chunk.sha256)
            if part is not None and part.add(chunk) and not part.missing:
                data = part.finish()
                self.shared.pool.setdefault(chunk.sha256, data)
                del self.missing[chunk.sha256]
        if self.missing:
            self.again_at = asyncio.get_running_loop().time() + FIRST_S
            return
        assert self.plan is not None
        layers, self.blobs = self.shared.recorder.layers(
            self.plan, self.shared.pool, self.number % self.shared.distinct
        )
        self.update = topics.UPDATE, recorded.update_of(self.plan, layers)
        self._say(*self.update)


async def drive(settings: dict[str, Any]) -> None:
    """Runs devices until killed; prints the counts as a JSON line every second."""
    origin = recorded.load(Path(settings["origin"]))
    from fedmpq.coordinator.admission import planner_of
    from fedmpq.coordinator.config import RunConfig

    planner = planner_of(origin.program, RunConfig(**settings["config"]).settings)
    sizes = [planner((n,) * len(origin.layout.layers)) for n in range(1, 9)]
    secrets = Path(settings["secrets"]) if settings["secrets"] else None
    shared = Shared(settings["host"], settings["port"], settings["fleet"], origin.layout, origin, sizes,
                    settings["bits"], settings["distinct"], secrets, recorded.Recorder(origin.layout))  # fmt: skip
    loop = asyncio.get_running_loop()
    first = loop.time()
    names = [f"d{number:05d}" for number in range(settings["devices"])]
    tasks = [
        asyncio.create_task(Device(name, number, shared).live(first + number / settings["rate"]))
        for number, name in enumerate(names)
    ]
    while True:
        await asyncio.sleep(1.0)
        done = [task for task in tasks if task.done()]
        if done:
            done[0].result()
        print(json.dumps({"at": time.time(), **shared.counts}), flush=True)


if __name__ == "__main__":
    asyncio.run(drive(json.loads(sys.argv[1])))
