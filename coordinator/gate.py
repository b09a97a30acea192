"""The door of a coordinator: what comes from the network passes here before anything of it is parsed.

In order: the topic, the sender's enrolment, the size, the sender's rate, the seal. What does not pass is dropped with a
reason that is counted; it never reaches the run's journal more than once a minute for a device and reason, so that a
flood fills no disk. Nobody is put into quarantine for what fails here: without a good seal it is not known who sent it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from time import monotonic

from fedmpq.coordinator.enrolment import Enrolment
from fedmpq.edge_runtime import topics
from fedmpq.edge_runtime.chunks import is_chunk
from fedmpq.edge_runtime.protocol import MAX_MESSAGE
from fedmpq.edge_runtime.seal import SEAL_SIZE, SealError
from fedmpq.edge_runtime.topics import Topics
from fedmpq.errors import FedmpqError, ProtocolError

#: Control messages of one device: at once, and a second in the long run. A device in a round sends fewer than one.
CONTROL_BURST, CONTROL_RATE = 120.0, 20.0
#: Payload bytes of one device: a whole upload of the largest nets at once, then a rate that no modem passes.
BYTES_BURST, BYTES_RATE = 256e6, 16e6
#: Devices whose rates are remembered.
MOST_DEVICES = 200_000
#: Seconds between two journal entries of one device and reason.
NOTE_EVERY_S = 60.0


class RefusedError(FedmpqError):
    """A message that is not let in.

    Args:
        reason: code for metrics and journal.
        device: whose topic it came on, empty for none.
        detail: one sentence.
    """

    def __init__(self, reason: str, device: str, detail: str) -> None:
        super().__init__(detail)
        self.reason, self.device, self.detail = reason, device, detail


@dataclass
class _Bucket:
    """A token bucket."""

    level: float
    at: float

    def take(self, amount: float, burst: float, rate: float, now: float) -> bool:
        self.level = min(burst, self.level + (now - self.at) * rate)
        self.at = now
        if self.level < amount:
            return False
        self.level -= amount
        return True


@dataclass
class Gate:
    """Judges messages by their outside.

    Attributes:
        names: the fleet's topics.
        enrolment: who belongs to the fleet; None lets everyone in, unsealed (`--insecure`).
        clock: seconds, monotonic.
        refused: messages turned away so far, by reason.
    """

    names: Topics
    enrolment: Enrolment | None = None
    clock: Callable[[], float] = monotonic
    refused: dict[str, int] = field(default_factory=dict)
    _control: dict[str, _Bucket] = field(default_factory=dict)
    _bytes: dict[str, _Bucket] = field(default_factory=dict)
    _noted: dict[tuple[str, str], float] = field(default_factory=dict)

    def enter(self, topic: str, payload: bytes) -> tuple[topics.Route, bytes]:
        """The route of a message and its bare body.

        Raises:
            RefusedError: topic, unknown-device, revoked, oversize, rate or signature.
        """
        try:
            route, body = self._judge(topic, payload)
        except RefusedError as error:
            self.refused[error.reason] = self.refused.get(error.reason, 0) + 1
            raise
        return route, body

    def notable(self, error: RefusedError) -> bool:
        """Whether a refusal should be journalled: the first of its kind in a while."""
        now, key = self.clock(), (error.device, error.reason)
        if now - self._noted.get(key, -NOTE_EVERY_S) < NOTE_EVERY_S:
            return False
        if len(self._noted) >= 10_000:
            self._noted.clear()
        self._noted[key] = now
        return True

    def close(self, topic: str, device: str | None, payload: bytes) -> bytes | None:
        """A message to the fleet or a device as it travels; None if the device has no credentials any more."""
        if self.enrolment is None or device is None:
            return payload
        seal = self.enrolment.seal(device)
        return None if seal is None else seal.close(topic, payload)

    def _judge(self, topic: str, payload: bytes) -> tuple[topics.Route, bytes]:
        try:
            route = self.names.parse(topic)
        except ProtocolError as error:
            raise RefusedError("topic", "", error.message) from None
        device = route.device
        if device is None:
            raise RefusedError("topic", "", f"{topic}: only the coordinator speaks here")
        if self.enrolment is not None:
            member = self.enrolment.member(device)
            if member is None:
                raise RefusedError("unknown-device", device, "the device is not enrolled")
            if member.revoked:
                raise RefusedError("revoked", device, "the device's credentials were taken back")
        if len(payload) > MAX_MESSAGE + SEAL_SIZE:
            raise RefusedError("oversize", device, f"{len(payload)} bytes, a message has at most {MAX_MESSAGE}")
        now = self.clock()
        if len(self._bytes) >= MOST_DEVICES:  # made-up names at an open broker
            self._bytes.clear()
            self._control.clear()
        bucket = self._bytes.setdefault(device, _Bucket(BYTES_BURST, now))
        allowed = bucket.take(len(payload), BYTES_BURST, BYTES_RATE, now)
        if allowed and not is_chunk(payload):
            bucket = self._control.setdefault(device, _Bucket(CONTROL_BURST, now))
            allowed = bucket.take(1.0, CONTROL_BURST, CONTROL_RATE, now)
        if not allowed:
            raise RefusedError("rate", device, "the device sends too much")
        if self.enrolment is None:
            return route, payload
        seal = self.enrolment.seal(device)
        assert seal is not None
        try:
            return route, seal.open(topic, payload)
        except SealError as error:
            raise RefusedError("signature", device, error.message) from None
