"""A `Machine` on a transport: one thread, one loop, nothing that a restart would miss."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from time import monotonic

from fedmpq.coordinator.gate import Gate, RefusedError
from fedmpq.coordinator.machine import Machine, Outgoing
from fedmpq.edge_runtime import faults
from fedmpq.edge_runtime.topics import Topics
from fedmpq.edge_runtime.transport import Connected, Disconnected, Incoming, Transport, Will
from fedmpq.errors import NetworkError

#: Seconds between looks at the clock; a tick costs a few reads of the journal.
TICK_S = 0.1
#: Messages the broker has not taken yet: with so many, downloads wait, and with so many more everything does.
DOWNLOAD_BACKLOG = 64
MOST_BACKLOG = 1000


class Server:
    """Feeds a machine from a transport.

    Args:
        machine: the coordinator.
        transport: not connected yet.
        fleet: whose topics these are.
        say: receives lines for the operator.
        gate: judges messages before they are read; None takes any sender.
    """

    def __init__(
        self,
        machine: Machine,
        transport: Transport,
        fleet: str,
        say: Callable[[str], object] = str,
        gate: Gate | None = None,
    ) -> None:
        self.machine = machine
        machine.defer = True
        self.transport = transport
        self.topics = Topics(fleet)
        self.gate = gate or Gate(self.topics)
        self._say = say
        self._next_tick = 0.0

    def connect(self, timeout_s: float = 10.0) -> None:
        """Connects; the broker publishes the coordinator's end if it vanishes. NetworkError if it cannot."""
        will = Will(self.topics.coord_state, self.machine.coord_state(online=False))
        self.transport.connect(self.topics.for_coordinator(), will, timeout_s)

    def step(self, timeout_s: float = TICK_S) -> None:
        """Handles what has come, waiting up to `timeout_s` for it, and moves the round on."""
        event = self.transport.poll(timeout_s)
        while event is not None:
            if isinstance(event, Connected):
                self.send(self.machine.birth())
            elif isinstance(event, Disconnected):
                if event.final:
                    raise NetworkError(f"the coordinator lost its broker: {event.reason}", "is a second one running?")
                self._say(f"broker lost ({event.reason}), reconnecting")
            elif isinstance(event, Incoming):
                self._receive(event)
            if monotonic() >= self._next_tick or self.transport.backlog() > MOST_BACKLOG:
                break
            event = self.transport.poll(0.0)
        self.send(self.machine.settle())
        while self.machine.downloads and self.transport.backlog() < DOWNLOAD_BACKLOG:
            self.send(self.machine.next_download())
        self.send(self.machine.tick())
        self._next_tick = monotonic() + TICK_S  # counted from its end: a long tick must not eat the time for messages

    @property
    def counters(self) -> dict[str, int]:
        """Messages since the start that were turned away or made no sense, by reason."""
        return {**self.machine.counters, **self.gate.refused}

    def send(self, messages: Sequence[Outgoing]) -> None:
        """Publishes; what gets lost is asked for again by its receiver."""
        for message in messages:
            if message.device is None:
                topic = self.topics.prefix + message.kind
            else:
                topic = self.topics.device(message.device, message.kind)
            faults.point("message:sending")
            payload = self.gate.close(topic, message.device, message.payload)
            if payload is not None:
                self.transport.publish(topic, payload, retain=message.retain)

    def close(self) -> None:
        """Tells the fleet and disconnects."""
        state = self.machine.coord_state(online=False)
        self.transport.publish(self.topics.coord_state, state, retain=True)
        self.transport.close()

    def _receive(self, event: Incoming) -> None:
        try:
            route, payload = self.gate.enter(event.topic, event.payload)
        except RefusedError as error:
            if self.gate.notable(error):
                self.machine.note_refused(error.device, error.reason, error.detail)
            return
        assert route.device is not None
        self.send(self.machine.handle(route.kind, route.device, payload))
