"""The in-process transport behaves like a broker: retained state, wills, take-over, faults by seed."""

from __future__ import annotations

import pytest

from fedmpq.edge_runtime.loopback import LoopbackBroker, LoopbackTransport
from fedmpq.edge_runtime.protocol import MAX_MESSAGE
from fedmpq.edge_runtime.transport import Connected, Disconnected, Incoming, Will
from fedmpq.errors import ProtocolError


def drain(link: LoopbackTransport) -> list[object]:
    found: list[object] = []
    while (event := link.poll(0.0)) is not None:
        found.append(event)
    return found


def test_retained_messages_reach_late_subscribers_and_wills_follow_a_crash() -> None:
    broker = LoopbackBroker()
    first, second = broker.transport("a"), broker.transport("b")
    first.connect(["x/+"], Will("w/a", b"gone"))
    first.publish("x/1", b"kept", retain=True)
    first.publish("x/2", b"passing")
    second.connect(["x/+", "w/a"])
    assert drain(second) == [Connected(), Incoming("x/1", b"kept", retained=True)]
    first.close(graceful=False)
    assert drain(second) == [Incoming("w/a", b"gone")]
    assert first.publish("x/1", b"") is False
    assert second.traffic.received_bytes == 8


def test_a_polite_leave_has_no_will_and_a_namesake_takes_over() -> None:
    broker = LoopbackBroker()
    link, watcher = broker.transport("a"), broker.transport("b")
    watcher.connect(["w/a"])
    link.connect([], Will("w/a", b"gone"))
    link.close()
    link.connect([], Will("w/a", b"gone"))
    namesake = broker.transport("a")
    namesake.connect([])
    found = drain(link)
    assert isinstance(found[-1], Disconnected)
    assert found[-1].final
    namesake.close()
    assert drain(watcher) == [Connected()]


def test_oversize_is_refused_before_it_is_sent() -> None:
    link = LoopbackBroker().transport("a")
    link.connect(["#"])
    assert link.publish("x", bytes(MAX_MESSAGE))
    with pytest.raises(ProtocolError, match="98305 bytes"):
        link.publish("x", bytes(MAX_MESSAGE + 1))


def faulty(seed: int) -> list[bytes]:
    broker = LoopbackBroker(seed, drop=0.2, duplicate=0.2, reorder=0.3)
    link = broker.transport("a")
    link.connect(["up"])
    for i in range(200):
        link.publish("up", bytes([i]))
    return [event.payload for event in drain(link) if isinstance(event, Incoming)]


def test_faults_repeat_with_their_seed() -> None:
    got = faulty(1)
    assert got == faulty(1)
    assert got != faulty(2)
    assert 120 < len(set(got)) < 190
    assert len(got) > len(set(got))
    assert got != sorted(got)


def test_retained_state_is_never_dropped() -> None:
    broker = LoopbackBroker(1, drop=1.0)
    link = broker.transport("a")
    link.connect(["#"])
    link.publish("up", b"lost")
    link.publish("state", b"kept", retain=True)
    assert drain(link) == [Connected(), Incoming("state", b"kept")]
