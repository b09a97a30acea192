"""Topics of a fleet: who publishes what where.

=====================================  ===========  ========  =============================================
topic under ``fmpq/v1/<fleet>/``       publisher    retained  carries
=====================================  ===========  ========  =============================================
``coord/state``                        coordinator  yes       CoordState; its will says offline
``round``                              coordinator  yes       RoundState
``d/<device>/state``                   device       yes       DeviceState (birth); its will says offline
``d/<device>/up/profile``              device       no        Profile
``d/<device>/up/update``               device       no        Update, Refusal, Chunk
``d/<device>/up/req``                  device       no        Request
``d/<device>/dn/plan``                 coordinator  no        PlanMessage
``d/<device>/dn/chunk``                coordinator  no        Chunk
``d/<device>/dn/ack``                  coordinator  no        Ack, Need
=====================================  ===========  ========  =============================================

Everything is QoS 1. Only small state is retained, never a model.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Final

from fedmpq.errors import ProtocolError, UsageError

ROOT: Final = "fmpq/v1"
#: Fleet, device and run names: no topic separators or wildcards, short enough for any broker's client id.
NAME: Final = r"[a-z0-9][a-z0-9._-]{0,62}"

COORD_STATE: Final = "coord/state"
ROUND: Final = "round"
STATE: Final = "state"
PROFILE: Final = "up/profile"
UPDATE: Final = "up/update"
REQUEST: Final = "up/req"
PLAN: Final = "dn/plan"
CHUNK: Final = "dn/chunk"
ACK: Final = "dn/ack"

FLEET_KINDS: Final = (COORD_STATE, ROUND)
DEVICE_KINDS: Final = (STATE, PROFILE, UPDATE, REQUEST, PLAN, CHUNK, ACK)


@dataclass(frozen=True, slots=True)
class Route:
    """A parsed topic: its kind (one of the constants above) and the device it belongs to, if any."""

    kind: str
    device: str | None


def checked_name(name: str, what: str) -> str:
    """`name` if it can stand in a topic; otherwise a `UsageError` that says what is allowed."""
    if re.fullmatch(NAME, name) is None:
        raise UsageError(
            f"{what} {name[:80]!r} is not usable as a name",
            "1 to 63 characters: lower-case letters, digits, '.', '_' and '-', starting with a letter or digit",
        )
    return name


class Topics:
    """The topics of one fleet."""

    def __init__(self, fleet: str) -> None:
        self.fleet = checked_name(fleet, "fleet")
        self.prefix = f"{ROOT}/{fleet}/"
        self.coord_state = self.prefix + COORD_STATE
        self.round = self.prefix + ROUND

    def device(self, device: str, kind: str) -> str:
        """The topic of one device; `kind` is one of `DEVICE_KINDS`."""
        assert kind in DEVICE_KINDS
        return f"{self.prefix}d/{checked_name(device, 'device')}/{kind}"

    def for_device(self, device: str) -> tuple[str, ...]:
        """What a device subscribes to."""
        return (self.coord_state, self.round, f"{self.prefix}d/{checked_name(device, 'device')}/dn/+")

    def for_coordinator(self) -> tuple[str, ...]:
        """What the coordinator subscribes to."""
        return (f"{self.prefix}d/+/state", f"{self.prefix}d/+/up/+")

    def parse(self, topic: str) -> Route:
        """The route of a topic. Raises `ProtocolError` for a topic that is not one of this fleet's."""
        if topic.startswith(self.prefix):
            rest = topic[len(self.prefix) :]
            if rest in FLEET_KINDS:
                return Route(rest, None)
            head, _, tail = rest.partition("/")
            device, _, kind = tail.partition("/")
            if head == "d" and kind in DEVICE_KINDS and re.fullmatch(NAME, device):
                return Route(kind, device)
        raise ProtocolError(f"topic {topic[:120]!r} is not one of fleet {self.fleet!r}")


def matches(pattern: str, topic: str) -> bool:
    """Whether an MQTT subscription pattern (with + and #) covers a topic."""
    wanted, parts = pattern.split("/"), topic.split("/")
    for i, level in enumerate(wanted):
        if level == "#":
            return True
        if i >= len(parts) or level not in ("+", parts[i]):
            return False
    return len(wanted) == len(parts)
