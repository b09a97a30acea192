"""A broker inside one process, for simulation and tests; by seed it drops, doubles, reorders, delays and damages.

Faults hit messages of the ``up`` and ``dn`` topics. Retained state is spared from dropping, as a real broker hands
it out again on every subscription, but may arrive twice or late. Only chunks are damaged: they carry a checksum of
their own because they are what a faulty store or memory would damage; the link itself is guarded by TCP and TLS.
"""

from __future__ import annotations

import random
import threading
from collections import deque
from collections.abc import Iterable
from time import monotonic

from fedmpq.edge_runtime.chunks import is_chunk
from fedmpq.edge_runtime.topics import matches
from fedmpq.edge_runtime.transport import Connected, Disconnected, Event, Incoming, Traffic, Will, check_size


class LoopbackBroker:
    """Routes messages between `LoopbackTransport`s of one process.

    Args:
        seed: of the faults; the same sequence of calls meets the same faults.
        drop, duplicate, reorder, delay, corrupt: probability of each, per delivery, in 0..1. A reordered message
            overtakes up to `depth` messages that wait in the receiver's inbox; a delayed one comes up to 50 looks of
            the receiver later, whatever came since; in a corrupted chunk one byte has changed.

    Attributes:
        faults: how often each happened.
    """

    def __init__(
        self,
        seed: int = 0,
        *,
        drop: float = 0.0,
        duplicate: float = 0.0,
        reorder: float = 0.0,
        delay: float = 0.0,
        corrupt: float = 0.0,
        depth: int = 8,
    ) -> None:
        self._random = random.Random(seed)
        self._chances = {"drop": drop, "duplicate": duplicate, "reorder": reorder, "delay": delay, "corrupt": corrupt}
        self._depth = depth
        self.faults = dict.fromkeys(self._chances, 0)
        self._lock = threading.RLock()
        self._clients: dict[str, LoopbackTransport] = {}
        self._retained: dict[str, bytes] = {}

    def transport(self, client_id: str) -> LoopbackTransport:
        """A new, unconnected client. An older one of the same id loses its link when this one connects."""
        return LoopbackTransport(self, client_id)

    def attach(self, client: LoopbackTransport) -> None:
        """Connect a client: a `Connected` event, then the retained messages it subscribes to."""
        with self._lock:
            older = self._clients.get(client.client_id)
            if older is not None and older is not client:
                older.put(Disconnected("the session was taken over by another client of this id", final=True))
            self._clients[client.client_id] = client
            client.put(Connected())
            for topic, payload in self._retained.items():
                if client.wants(topic):
                    client.put(Incoming(topic, payload, retained=True))

    def detach(self, client: LoopbackTransport, *, graceful: bool) -> None:
        """Disconnect a client and, unless it said goodbye, publish its will."""
        with self._lock:
            if self._clients.get(client.client_id) is client:
                del self._clients[client.client_id]
                if client.will is not None and not graceful:
                    self.route(client.will.topic, client.will.payload, retain=True)

    def connected(self, client: LoopbackTransport) -> bool:
        """Whether this very client holds the link of its id."""
        return self._clients.get(client.client_id) is client

    def route(self, topic: str, payload: bytes, *, retain: bool) -> None:
        """Deliver to every subscriber, through the faults."""
        with self._lock:
            if retain:
                self._retained[topic] = payload
            for client in list(self._clients.values()):
                if not client.wants(topic) or (not retain and self._happens("drop")):
                    continue
                for _ in range(2 if self._happens("duplicate") else 1):
                    overtakes = self._random.randint(1, self._depth) if self._happens("reorder") else 0
                    delay = self._random.randint(1, 50) if self._happens("delay") else 0
                    data = payload
                    if is_chunk(payload) and self._happens("corrupt"):
                        at = self._random.randrange(len(payload))
                        data = payload[:at] + bytes([payload[at] ^ self._random.randint(1, 255)]) + payload[at + 1 :]
                    client.put(Incoming(topic, data), overtakes, delay)

    def _happens(self, fault: str) -> bool:
        happens = self._chances[fault] > 0 and self._random.random() < self._chances[fault]
        self.faults[fault] += happens
        return happens


class LoopbackTransport:
    """One client of a `LoopbackBroker`; see `transport.Transport`."""

    def __init__(self, broker: LoopbackBroker, client_id: str) -> None:
        self.client_id = client_id
        self.traffic = Traffic()
        self.will: Will | None = None
        self._broker = broker
        self._patterns: tuple[str, ...] = ()
        self._inbox: deque[Event] = deque()
        self._late: list[tuple[int, Event]] = []
        self._looks = 0
        self._ready = threading.Condition()

    def connect(self, subscriptions: Iterable[str], will: Will | None = None, timeout_s: float = 10.0) -> None:
        """Never fails."""
        del timeout_s
        self._patterns = tuple(subscriptions)
        self.will = will
        self._broker.attach(self)

    def publish(self, topic: str, payload: bytes, *, retain: bool = False, expiry_s: int | None = None) -> bool:
        """Routes at once; False when disconnected."""
        del expiry_s
        check_size(topic, payload)
        if not self._broker.connected(self):
            return False
        self.traffic.sent += 1
        self.traffic.sent_bytes += len(payload)
        self._broker.route(topic, payload, retain=retain)
        return True

    def poll(self, timeout_s: float) -> Event | None:
        """The next event of the inbox."""
        deadline = monotonic() + timeout_s
        with self._ready:
            self._looks += 1
            while self._late and self._late[0][0] <= self._looks:
                self._inbox.append(self._late.pop(0)[1])
            while not self._inbox:
                left = deadline - monotonic()
                if left <= 0 or not self._ready.wait(left):
                    return None
            event = self._inbox.popleft()
        if isinstance(event, Incoming):
            self.traffic.received += 1
            self.traffic.received_bytes += len(event.payload)
        return event

    def backlog(self) -> int:
        """Nothing: delivery is at once."""
        return 0

    def close(self, *, graceful: bool = True) -> None:
        """Leaves the broker; the inbox is lost, as with a process that ends."""
        self._broker.detach(self, graceful=graceful)
        self._inbox.clear()
        self._late.clear()

    def wants(self, topic: str) -> bool:
        """Whether a subscription covers a topic."""
        return any(matches(pattern, topic) for pattern in self._patterns)

    def put(self, event: Event, overtakes: int = 0, delay: int = 0) -> None:
        """Append an event, let it overtake up to `overtakes` waiting messages, or keep it back for `delay` looks."""
        with self._ready:
            if delay:
                self._late.append((self._looks + delay, event))
                self._late.sort(key=lambda late: late[0])
                return
            at = max(0, len(self._inbox) - overtakes)
            if at < len(self._inbox) and not isinstance(self._inbox[at], Incoming):
                at = len(self._inbox)
            self._inbox.insert(at, event)
            self._ready.notify()
