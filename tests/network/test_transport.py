"""The MQTT transport on real brokers: wills, oversize, a killed broker, waiting messages, no TLS, amqtt."""

from __future__ import annotations

import signal
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import paho.mqtt.client as paho
import pytest

from fedmpq.coordinator.broker import ManagedBroker, find_mosquitto
from fedmpq.edge_runtime.mqtt import Broker, MqttTransport
from fedmpq.edge_runtime.protocol import MAX_MESSAGE
from fedmpq.edge_runtime.transport import Connected, Disconnected, Event, Incoming, Will
from fedmpq.errors import NetworkError, ProtocolError, UsageError

pytestmark = pytest.mark.network
needs_mosquitto = pytest.mark.skipif(find_mosquitto() is None, reason="there is no mosquitto on this machine")


@pytest.fixture(params=[pytest.param("mosquitto", marks=needs_mosquitto), "amqtt"])
def broker(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[ManagedBroker]:
    managed = ManagedBroker(tmp_path / "broker", port=0, kind=request.param)
    managed.start()
    yield managed
    managed.stop()


def client(broker: ManagedBroker, name: str, patterns: list[str], will: Will | None = None) -> MqttTransport:
    link = MqttTransport(Broker.from_url(broker.url), name)
    link.connect(patterns, will)
    assert link.poll(10.0) == Connected()
    return link


def expect(link: MqttTransport, kind: type[Event], seconds: float = 30.0) -> Event:
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        event = link.poll(0.2)
        if isinstance(event, kind):
            return event
    raise AssertionError(f"no {kind.__name__}")


class Ending(paho.Client):
    """Forgets its thread between two looks of `loop_stop`, as paho does when the thread ends just then."""

    looks = -(10**9)

    @property
    def _thread(self) -> threading.Thread | None:
        self.looks += 1
        found: threading.Thread | None = self.__dict__["_thread"]
        return found if self.looks <= 2 else None

    @_thread.setter
    def _thread(self, thread: threading.Thread | None) -> None:
        self.__dict__["_thread"] = thread

    def loop_stop(self) -> paho.MQTTErrorCode:
        self.looks = 0
        return super().loop_stop()


def test_a_network_thread_that_ends_first_is_no_error(broker: ManagedBroker) -> None:
    link = client(broker, "hasty", [])
    assert link._client is not None
    link._client.__class__ = Ending
    link.close()
    assert link._client is None


def test_messages_retained_state_and_wills(broker: ManagedBroker) -> None:
    early = client(broker, "early", ["t/+", "w/early"], Will("w/early", b"gone", 0))
    assert early.publish("t/state", b"kept", retain=True)
    expect(early, Incoming)  # the broker has it, so whoever comes later gets the retained one
    late = client(broker, "late", ["t/+", "w/+"])
    found = expect(late, Incoming)
    assert isinstance(found, Incoming)
    assert (found.topic, found.payload, found.retained) == ("t/state", b"kept", True)
    payload = bytes(range(256)) * (MAX_MESSAGE // 256)
    assert early.publish("t/big", payload, expiry_s=60)
    while found.topic != "t/big":  # amqtt may repeat retained messages
        found = expect(late, Incoming)
        assert isinstance(found, Incoming)
    assert (found.payload, found.retained) == (payload, False)
    assert late.traffic.received_bytes in (len(payload) + 4, len(payload) + 8)
    early.close(graceful=False)
    found = expect(late, Incoming)
    assert isinstance(found, Incoming)
    assert (found.topic, found.payload) == ("w/early", b"gone")
    assert early.publish("t/x", b"") is False
    late.close()


def test_oversize_never_reaches_the_broker(broker: ManagedBroker) -> None:
    link = client(broker, "a", ["t"])
    with pytest.raises(ProtocolError, match="98305"):
        link.publish("t", bytes(MAX_MESSAGE + 1))
    assert link.publish("t", b"still here")
    assert isinstance(expect(link, Incoming), Incoming)
    link.close()


def test_a_killed_broker_is_found_again_with_its_subscriptions(broker: ManagedBroker) -> None:
    link = client(broker, "a", ["t"])
    import os

    os.kill(broker.pid, signal.SIGKILL)
    lost = expect(link, Disconnected)
    assert isinstance(lost, Disconnected)
    assert not lost.final
    assert link.publish("t", b"lost") is False
    time.sleep(1.1)
    broker.ensure()
    expect(link, Connected)
    time.sleep(0.3)  # the subscription is on its way
    assert link.publish("t", b"back")
    found = expect(link, Incoming)
    assert isinstance(found, Incoming)
    assert found.payload == b"back"
    link.close()


@needs_mosquitto
def test_messages_wait_for_a_device_that_reboots(tmp_path: Path) -> None:
    managed = ManagedBroker(tmp_path / "broker", port=0, kind="mosquitto")
    managed.start()
    try:
        device = client(managed, "device", ["dn"])
        device.close()
        coordinator = client(managed, "coordinator", [])
        assert coordinator.publish("dn", b"plan")
        device = client(managed, "device", ["dn"])
        found = expect(device, Incoming)
        assert isinstance(found, Incoming)
        assert found.payload == b"plan"
        device.close()
        coordinator.close()
    finally:
        managed.stop()


def test_something_else_on_the_port_and_nothing_on_it() -> None:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        port = listener.getsockname()[1]
        link = MqttTransport(Broker.from_url(f"mqtt://127.0.0.1:{port}?version=5"), "a")
        with pytest.raises(NetworkError, match="no answer to CONNECT"):
            link.connect([], timeout_s=1.0)
    with pytest.raises(NetworkError, match="unreachable"):
        MqttTransport(Broker.from_url(f"mqtt://127.0.0.1:{port}"), "a").connect([])


def test_broker_addresses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FEDMPQ_MQTT_PASSWORD", "secret")
    found = Broker.from_url("mqtts://pi@example.org")
    assert (found.host, found.port, found.tls, found.username, found.password) == (
        "example.org", 8883, True, "pi", "secret",
    )  # fmt: skip
    assert str(found) == "mqtts://example.org:8883"
    assert Broker.from_url("localhost:1884").port == 1884
    assert Broker.from_url("mqtt://h?version=3.1.1").version == 4
    for bad in ("http://h", "mqtt://", "mqtt://h:99999", "mqtt://h?version=6", "mqtt://[::1", "mqtt://u:s3cret@h:99999",
                "http://u:s3cret@h", "mqtt://u:s3cret@[::1", "mqtt://u:s3/cret@h", "u:s3cret@h:port"):  # fmt: skip
        with pytest.raises(UsageError, match=r"no usable port|not understood") as error:
            Broker.from_url(bad)
        assert "s3" not in str(error.value)
