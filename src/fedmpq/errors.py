"""The errors a user can meet: one base class, one named subclass for each kind, one exit code for each group.

Raise the most specific class with a message that names the thing and the place, and a hint that names the way out.
`fedmpq.__main__.main` catches `FedmpqError` once, prints one line and exits with `exit_code`.
"""

from __future__ import annotations

from typing import ClassVar


class FedmpqError(Exception):
    """Anything that stops a command for a reason the user can act on.

    Args:
        message: what is wrong and where, one sentence without a full stop.
        hint: what to do about it, shown in brackets after the message; empty if there is nothing to add.
    """

    exit_code: ClassVar[int] = 1

    def __init__(self, message: str, hint: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint

    def __str__(self) -> str:
        """The message and its hint on one line."""
        return f"{self.message} ({self.hint})" if self.hint else self.message


class UsageError(FedmpqError):
    """An option or argument that cannot be meant as given."""

    exit_code = 2


class ConfigError(FedmpqError):
    """A configuration file or environment variable that cannot be used; names file and key."""

    exit_code = 3


class MissingExtraError(ConfigError):
    """A command needs packages of an extra that is not installed."""

    def __init__(self, missing: str, extra: str) -> None:
        super().__init__(f"this command needs {missing}, which is not installed", f"pip install 'fedmpq[{extra}]'")


class DataError(FedmpqError):
    """A data set or shard that is absent, empty, damaged or of the wrong shape."""

    exit_code = 4


class FormatError(FedmpqError):
    """Bytes from a file or the network that are not what they claim: artifact, program, plane, plan, message."""

    exit_code = 5


class VersionError(FormatError):
    """Bytes of a format version this build does not read."""


class TruncatedError(FormatError):
    """Bytes that end before they should."""


class HashError(FormatError):
    """Bytes whose SHA-256 is not the one they are addressed by."""


class ModelError(FedmpqError):
    """A model that is unknown or cannot be built with the parameters given."""

    exit_code = 6


class UnsupportedOpError(ModelError):
    """A module with operations the integer program has no record for; lists all of them."""


class BudgetError(FedmpqError):
    """A plan that does not fit the memory or bit budget; carries the two numbers.

    Args:
        message: what does not fit.
        needed: bytes (or bits) the smallest admissible plan takes.
        available: bytes (or bits) there are.
        hint: the way out.
    """

    exit_code = 7

    def __init__(self, message: str, *, needed: int = 0, available: int = 0, hint: str = "") -> None:
        super().__init__(message, hint)
        self.needed = needed
        self.available = available


class CoreError(FedmpqError):
    """The C core refused a call, or its library is missing or of another ABI version."""

    exit_code = 8


class ArenaTooSmall(BudgetError, CoreError):  # noqa: N818
    """A session's plan takes more bytes than the device may use.

    Args:
        planned: exact bytes of the plan, as the core's planner gives them.
        limit: bytes the caller allows.
    """

    exit_code = 7

    def __init__(self, planned: int, limit: int) -> None:
        super().__init__(
            f"the plan takes {planned} bytes but {limit} are allowed, {planned - limit} too few",
            needed=planned,
            available=limit,
            hint="fewer bits, a smaller micro-batch or a smaller model; `fedmpq plan` shows where the bytes go",
        )
        self.planned = planned
        self.limit = limit


class NetworkError(FedmpqError):
    """A broker that cannot be reached, refuses the client, or a port that is taken."""

    exit_code = 9


class ProtocolError(NetworkError):
    """A peer sent a message that breaks the protocol."""


class LinkError(NetworkError):
    """A device behind a gateway does not answer, or the line to it stays closed."""


class ResetError(LinkError):
    """A device behind a gateway has started anew: its session is gone, the round's training begins again."""


class StateError(FedmpqError):
    """A journal, lock or device state that is in use, damaged or belongs to another run."""

    exit_code = 10


class RoundError(FedmpqError):
    """A federated run that cannot go on, for example because no quorum was reached."""

    exit_code = 11


#: Exit codes for the documentation and the help text; each group of errors has one.
EXIT_CODES: dict[int, str] = {
    0: "success",
    1: "any other failure",
    2: "wrong usage",
    3: "configuration or a missing extra",
    4: "data set or shard",
    5: "malformed bytes: artifact, program, plane, plan or message",
    6: "model unknown or not supported",
    7: "memory or bit budget too small",
    8: "integer core",
    9: "network, broker or protocol",
    10: "journal, lock or device state",
    11: "the federated run cannot go on",
    130: "interrupted",
}
