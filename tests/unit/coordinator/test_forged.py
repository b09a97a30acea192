"""Forged messages, one kind each: refused with its reason, counted, and not one bit of the model changed."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from fedmpq.coordinator import metrics, virtual
from fedmpq.coordinator.enrolment import Enrolment
from fedmpq.coordinator.gate import CONTROL_BURST, Gate
from fedmpq.coordinator.server import Server
from fedmpq.edge_runtime import chunks, protocol, topics
from fedmpq.edge_runtime.loopback import LoopbackBroker
from fedmpq.edge_runtime.protocol import MAX_MESSAGE, LayerBlobs, Update, decode, encode
from fedmpq.edge_runtime.seal import Seal
from fedmpq.edge_runtime.transport import Connected, Incoming
from tests.helpers.fleet import LAYOUT, Clock, Fleet, config, limits

THREE = limits(a=3, b=5, c=8)


class Closed:
    """A fleet behind a server with a gate; the virtual devices hold keys, and so may an attacker."""

    def __init__(self, directory: Path, **values: object) -> None:
        self.fleet = Fleet(directory / "run", config(**{"rounds": 1, **values}), dict(THREE))
        self.enrolment = Enrolment(directory / "security", "fleet")
        self.keys = {name: self.enrolment.enroll(name, "mqtts://x").seal for name in THREE}
        self.clock = Clock()
        self.gate = Gate(topics.Topics("fleet"), self.enrolment, self.clock)
        self.link = LoopbackBroker(seed=1)
        transport = self.link.transport("coordinator")
        self.server = Server(self.fleet.machine, transport, "fleet", gate=self.gate)
        self.server.connect()
        self.devices = self.link.transport("devices")
        self.devices.connect(["#"])
        assert self.devices.poll(1.0) == Connected()
        for name, device in self.fleet.devices.items():
            self.say(name, device.birth())

    def topic(self, device: str, kind: str) -> str:
        return self.gate.names.device(device, kind)

    def say(self, name: str, messages: Sequence[virtual.Up], key: Seal | None = None) -> None:
        """Publishes a device's messages under its seal and lets everyone answer."""
        for kind, payload in messages:
            topic = self.topic(name, kind)
            self.publish(topic, (key or self.keys[name]).close(topic, payload))

    def publish(self, topic: str, payload: bytes) -> None:
        self.devices.publish(topic, payload)
        self.settle()

    def settle(self) -> None:
        for _ in range(400):
            self.server.step(0.0)
            moved = False
            while (event := self.devices.poll(0.0)) is not None:
                if isinstance(event, Incoming) and "/dn/" in event.topic:
                    moved = True
                    route = self.gate.names.parse(event.topic)
                    assert route.device is not None
                    body = self.keys[route.device].open(event.topic, event.payload)
                    for kind, payload in self.fleet.devices[route.device].receive(route.kind, body):
                        topic = self.topic(route.device, kind)
                        self.devices.publish(topic, self.keys[route.device].close(topic, payload))
            if not moved:
                return
        raise AssertionError("the fleet does not come to rest")

    def finish_round(self) -> None:
        for name, device in self.fleet.devices.items():
            if device.work is not None:
                self.say(name, self.fleet.train(name))
        self.settle()

    def play(self) -> bytes:
        while not self.fleet.machine.finished:
            self.settle()
            self.finish_round()
        return self.fleet.model()

    def verdicts(self) -> list[str]:
        rows = self.fleet.run.journal.rows("SELECT verdict FROM verdicts WHERE of='update'")
        return [row["verdict"] for row in rows]

    def counted(self, reason: str) -> float:
        found = metrics.values(self.fleet.run.journal, self.server.counters)
        return found.get(f'fedmpq_refused_total{{reason="{reason}"}}', 0.0)


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    return Closed(tmp_path_factory.mktemp("plain")).play()


def update_of(messages: Sequence[virtual.Up]) -> Update:
    update = decode(topics.UPDATE, messages[0][1])
    assert isinstance(update, Update)
    return update


def with_layer(update: Update, **changes: object) -> Update:
    first: LayerBlobs = dataclasses.replace(update.layers[0], **changes)  # type: ignore[arg-type]
    return dataclasses.replace(update, layers=(first, *update.layers[1:]))


Attack = Callable[[Closed], None]


def other_devices_topic(closed: Closed) -> None:
    """b trains and publishes its update as a's, under its own key."""
    forged = closed.fleet.train("b")
    topic = closed.topic("a", topics.UPDATE)
    closed.publish(topic, closed.keys["b"].close(topic, forged[0][1]))


def moved_seal(closed: Closed) -> None:
    """A good message of a, sealed for another topic."""
    request = encode(protocol.Request("test", 1, True, ()))
    closed.publish(closed.topic("a", topics.UPDATE), closed.keys["a"].close(closed.topic("a", topics.REQUEST), request))


def wrong_signature(closed: Closed) -> None:
    topic = closed.topic("a", topics.UPDATE)
    sealed = closed.keys["a"].close(topic, closed.fleet.train("a")[0][1])
    closed.publish(topic, sealed[:-1] + (b"0" if sealed[-1:] != b"0" else b"1"))


def unsigned(closed: Closed) -> None:
    closed.publish(closed.topic("a", topics.UPDATE), closed.fleet.train("a")[0][1])


def unknown_device(closed: Closed) -> None:
    topic = closed.topic("stranger", topics.STATE)
    state = encode(protocol.DeviceState("stranger", True, 1, "1"))
    closed.publish(topic, Seal(b"k" * 32).close(topic, state))
    assert closed.fleet.run.device("stranger") is None


def revoked(closed: Closed) -> None:
    closed.enrolment.enroll("d", "mqtts://x")
    key = closed.enrolment.seal("d")
    assert key is not None
    closed.enrolment.revoke("d")
    topic = closed.topic("d", topics.STATE)
    closed.publish(topic, key.close(topic, encode(protocol.DeviceState("d", True, 1, "1"))))


def old_key(closed: Closed) -> None:
    """A device enrolled again: what it held before opens nothing."""
    old = closed.keys["a"]
    closed.keys["a"] = closed.enrolment.enroll("a", "mqtts://x").seal
    topic = closed.topic("a", topics.REQUEST)
    closed.publish(topic, old.close(topic, encode(protocol.Request("test", 1, True, ()))))


def oversize(closed: Closed) -> None:
    topic = closed.topic("a", topics.UPDATE)
    transport = closed.server
    transport._receive(Incoming(topic, b"{" + bytes(MAX_MESSAGE + 100)))


def flood(closed: Closed) -> None:
    topic = closed.topic("a", topics.REQUEST)
    sealed = closed.keys["a"].close(topic, encode(protocol.Request("other-run", 1, False, ())))
    for _ in range(int(CONTROL_BURST) + 50):
        closed.server._receive(Incoming(topic, sealed))
    closed.clock.now += 60  # the device comes to its senses


def foreign_topic(closed: Closed) -> None:
    closed.server._receive(Incoming("fmpq/v1/other/d/a/state", b"{}"))


def stale_round(closed: Closed) -> None:
    old = dataclasses.replace(update_of(closed.fleet.train("a")), round=7)
    closed.say("a", [(topics.UPDATE, encode(old))])


def other_plan(closed: Closed) -> None:
    """The right round, but trained under a plan that nobody gave; the device is out of this round."""
    closed.say("a", [(topics.UPDATE, encode(dataclasses.replace(update_of(closed.fleet.train("a")), plan="0" * 64)))])


def wrong_shape(closed: Closed) -> None:
    update = update_of(closed.fleet.train("a"))
    closed.say("a", [(topics.UPDATE, encode(dataclasses.replace(update, layers=update.layers[:-1])))])


def more_bits(closed: Closed) -> None:
    update = update_of(closed.fleet.train("a"))
    layer = update.layers[0]
    more = with_layer(update, bits=layer.bits + 1, planes=(*layer.planes, layer.planes[-1]))
    closed.say("a", [(topics.UPDATE, encode(more))])


def wrong_length(closed: Closed) -> None:
    """A plane whose bytes are those of its hash, but one byte too few: the chunk's own size gives it away."""
    update = update_of(closed.fleet.train("a"))
    short = bytes(LAYOUT.layers[0].plane_bytes - 1)
    sha256 = protocol.digest(short)
    forged = with_layer(update, planes=(sha256, *update.layers[0].planes[1:]))
    device = closed.fleet.devices["a"]
    device._sent[sha256] = short
    closed.say("a", [(topics.UPDATE, encode(forged))])


def damaged_parameters(closed: Closed) -> None:
    """Batch-norm parameters far outside what training can reach."""
    update = update_of(closed.fleet.train("a"))
    params = b"\xff\xff\xff\x7f" * (LAYOUT.layers[0].params_bytes // 4)
    closed.fleet.devices["a"]._sent[protocol.digest(params)] = params
    closed.say("a", [(topics.UPDATE, encode(with_layer(update, params=protocol.digest(params))))])


def not_unicode(closed: Closed) -> None:
    """An enrolled device's refusal with half a surrogate pair, which no database takes."""
    refusal = encode(protocol.Refusal("test", 1, "0" * 64, "memory", 1, 1, "half"))
    closed.say("a", [(topics.UPDATE, refusal.replace(b'"half"', b'"\\ud800"'))])


def another_form(closed: Closed) -> None:
    """A good update with a space in it."""
    update = closed.fleet.train("a")[0][1]
    closed.say("a", [(topics.UPDATE, update.replace(b",", b", ", 1))])


#: Attack, the reason counted, and whether the device whose name was used is out of the round (its own fault, or its
#: enrolled key was used).
ATTACKS: list[tuple[Attack, str, bool]] = [
    (other_devices_topic, "signature", False),
    (moved_seal, "signature", False),
    (wrong_signature, "signature", False),
    (unsigned, "signature", False),
    (unknown_device, "unknown-device", False),
    (revoked, "revoked", False),
    (old_key, "signature", False),
    (oversize, "oversize", False),
    (flood, "rate", False),
    (foreign_topic, "topic", False),
    (stale_round, "stale-round", False),
    (other_plan, "stale-round", True),
    (wrong_shape, "shape", True),
    (more_bits, "range", True),
    (wrong_length, "malformed", False),
    (not_unicode, "malformed", False),
    (another_form, "malformed", False),
    (damaged_parameters, "range", True),
]


@pytest.mark.parametrize(("attack", "reason", "out"), ATTACKS, ids=[attack.__name__ for attack, *_ in ATTACKS])
def test_forged(tmp_path: Path, undisturbed: bytes, attack: Attack, reason: str, out: bool) -> None:
    closed = Closed(tmp_path)
    before = closed.counted(reason)
    works = {name: device.work for name, device in closed.fleet.devices.items()}
    attack(closed)
    assert closed.counted(reason) > before
    if out:
        row = closed.fleet.run.assignment(1, "a")
        assert row is not None
        assert (row["state"], row["reason"]) == ("rejected", reason)
        closed.finish_round()
        accepted = closed.fleet.run.journal.rows("SELECT device FROM assignments WHERE round=1 AND state='accepted'")
        assert [row["device"] for row in accepted] == ["b", "c"]
        return
    for name, device in closed.fleet.devices.items():
        if device.work is None and closed.fleet.run.assignment(1, name)["state"] != "accepted":  # type: ignore[index]
            device.work = works[name]  # the device itself is untouched: it trains as it was told
    assert closed.play() == undisturbed


def test_a_replayed_update_counts_once(tmp_path: Path) -> None:
    """Recorded and sent again by anyone: in its round it is the same answer again, later nothing changes."""
    undisturbed = Closed(tmp_path / "plain", rounds=2).play()
    closed = Closed(tmp_path / "replayed", rounds=2)
    recorded = closed.fleet.train("a")
    for _ in range(3):
        closed.say("a", recorded)
    assert closed.verdicts() == ["accepted"]
    closed.finish_round()
    closed.say("a", recorded)
    assert closed.play() == undisturbed
    rows = closed.fleet.run.journal.rows("SELECT round FROM assignments WHERE device='a' AND state='accepted'")
    assert [row["round"] for row in rows] == [1, 2]
    assert closed.counted("repeated") >= 3


def test_chunks_nobody_asked_for_do_nothing(tmp_path: Path, undisturbed: bytes) -> None:
    closed = Closed(tmp_path)
    blob = bytes(1000)
    closed.publish(closed.topic("a", topics.UPDATE), chunks.encode_chunk(protocol.digest(blob), blob, 0))
    assert closed.play() == undisturbed


def test_a_device_takes_only_what_its_coordinator_sealed(tmp_path: Path) -> None:
    """Everything a device is sent on its own topics opens with its key, for that topic, and with no other."""
    closed = Closed(tmp_path)
    row = closed.fleet.run.assignment(1, "a")
    assert row is not None
    topic = closed.topic("a", topics.PLAN)
    sealed = closed.gate.close(topic, "a", row["plan"])
    assert sealed is not None
    assert closed.keys["a"].open(topic, sealed) == row["plan"]
    for key, where in ((closed.keys["b"], topic), (closed.keys["a"], closed.topic("a", topics.ACK))):
        with pytest.raises(protocol.ProtocolError, match="seal is wrong"):
            key.open(where, sealed)
    assert closed.gate.close(topic, "stranger", row["plan"]) is None


def test_a_flood_fills_no_disk(tmp_path: Path) -> None:
    closed = Closed(tmp_path)
    topic = closed.topic("a", topics.UPDATE)
    for number in range(500):
        closed.server._receive(Incoming(topic, b"{}%d" % number))
    events = closed.fleet.run.journal.rows("SELECT detail FROM events WHERE kind='refused'")
    assert len(events) == 2  # the first wrong signature, the first over the rate
    assert closed.gate.refused["signature"] + closed.gate.refused["rate"] == 500


def test_three_rejects_in_a_row_are_quarantine(tmp_path: Path) -> None:
    closed = Closed(tmp_path, rounds=6, quarantine_after=2, quarantine_rounds=2, min_devices=2)
    selected = []
    while not closed.fleet.machine.finished:
        closed.settle()
        row = closed.fleet.run.round_row()
        assert row is not None
        names = [a["device"] for a in closed.fleet.run.assignments(row["round"])]
        selected.append("a" in names)
        if closed.fleet.devices["a"].work is not None:
            damaged_parameters(closed)
            closed.fleet.devices["a"].work = None
        closed.finish_round()
    assert selected == [True, True, False, False, True, False]
