"""What the agent and the coordinator need of a message transport, and nothing more.

A transport delivers events to one consumer through `poll`; it never calls back into its user, so agents and
coordinator are single-threaded whatever runs beneath. Two implementations: `mqtt.MqttTransport` over a broker and
`loopback.LoopbackTransport` inside one process, which can also drop, duplicate and reorder.

Correctness never rests on the transport: `publish` may lose a message (offline, queue full, broker killed), every
exchange has an application answer and is repeated until it comes.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Protocol, TypeAlias

from fedmpq.edge_runtime.protocol import MAX_MESSAGE
from fedmpq.errors import ProtocolError


@dataclass(frozen=True, slots=True)
class Incoming:
    """A message. `retained` is set when the broker had kept it from before the subscription."""

    topic: str
    payload: bytes
    retained: bool = False


@dataclass(frozen=True, slots=True)
class Connected:
    """The link is up (again) and subscriptions are in place; births are due."""


@dataclass(frozen=True, slots=True)
class Disconnected:
    """The link is down. `final` means that reconnecting is useless, for the reason given."""

    reason: str
    final: bool = False


Event: TypeAlias = Incoming | Connected | Disconnected


@dataclass(frozen=True, slots=True)
class Will:
    """What the broker publishes (retained) when the client vanishes, `delay_s` seconds after the link is lost."""

    topic: str
    payload: bytes
    delay_s: int = 30


@dataclass(slots=True)
class Traffic:
    """Payload bytes and messages through one transport since it was made."""

    sent_bytes: int = 0
    received_bytes: int = 0
    sent: int = 0
    received: int = 0


class Transport(Protocol):
    """A connection of one client. Use from one thread."""

    traffic: Traffic

    def connect(self, subscriptions: Iterable[str], will: Will | None = None, timeout_s: float = 10.0) -> None:
        """Connect and subscribe; the first event is `Connected`. Raises `NetworkError` naming the broker."""

    def publish(self, topic: str, payload: bytes, *, retain: bool = False, expiry_s: int | None = None) -> bool:
        """Hand a message over, at least once if the link holds. False: lost here and now (offline, queue full).

        `expiry_s` lets the broker drop a message nobody has fetched for so many seconds. Raises `ProtocolError` for
        a payload over the limit, which a broker would answer by closing the link.
        """

    def poll(self, timeout_s: float) -> Event | None:
        """The next event, waiting up to `timeout_s` seconds for one; None if there was none."""

    def backlog(self) -> int:
        """Published messages that the broker has not confirmed yet."""

    def close(self, *, graceful: bool = True) -> None:
        """Disconnect; when not graceful the broker publishes the will, as after a crash."""


def check_size(topic: str, payload: bytes, limit: int = MAX_MESSAGE) -> None:
    """Refuse a payload over `limit` bytes before it reaches a client library that would reconnect for ever."""
    if len(payload) > limit:
        raise ProtocolError(f"{topic}: {len(payload)} bytes to publish, the limit is {limit}")
