"""Requests to a device and their replies over a line that may lose, alter or repeat bytes, or go away and come back.

One request is under way at a time. It is sent again until its reply comes; the device recognises the sequence number
of a request that it has done and repeats its reply, so each is carried out once. A line that is lost is opened again
and the request goes on where it was: the device knows the link by a number that the gateway drew. A device that has
forgotten the number was reset, and everything it held is gone (`ResetError`).
"""

from __future__ import annotations

import logging
import random
import struct
from collections.abc import Callable
from dataclasses import dataclass, replace
from time import monotonic, sleep
from typing import Final, Protocol

from fedmpq.edge_runtime.serial.frames import Decoder, Frame, encode
from fedmpq.edge_runtime.serial.wire import Address, Wire, WireError
from fedmpq.errors import FormatError, LinkError, ResetError, VersionError

log = logging.getLogger("fedmpq.gateway")

VERSION: Final = 1
REPLY: Final = 0x40
HELLO: Final = 1
_DAMAGED, _REFUSED = 0x7E, 0x7F
_STRANGER: Final = 202
_INFO: Final = struct.Struct("<HHIQII16s16s32s32s")
_KNOWN, _HAS_PROGRAM, _HAS_SHARD = 1, 2, 8
#: Largest payload of the smallest device: the reply to a hello takes 120 bytes.
_LEAST_PAYLOAD: Final = 128


class FirmwareError(VersionError):
    """The device runs firmware that this gateway cannot work with."""


class RefusedError(FormatError):
    """The device refuses a request; carries its code."""

    def __init__(self, message: str, code: int) -> None:
        super().__init__(message)
        self.code = code


@dataclass(frozen=True, slots=True)
class Info:
    """What a device says of itself: the reply to a hello.

    Attributes:
        payload: bytes of the largest payload.
        limit: bytes of memory for session and samples together.
        records: of the largest program.
        version: of its integer core.
        isa, board: names.
        program: SHA-256 of the program it holds, empty without one.
        has_shard: whether it holds images of its own.
    """

    protocol: int
    payload: int
    limit: int
    records: int
    version: str
    isa: str
    board: str
    program: str
    has_shard: bool

    def with_program(self, sha256: str) -> Info:
        """The same once the device has been given a program."""
        return replace(self, program=sha256)


class Line(Protocol):
    """What a link needs of a wire."""

    def read(self, timeout_s: float) -> bytes:
        """Bytes that have come."""

    def write(self, data: bytes) -> None:
        """Send bytes."""

    def close(self) -> None:
        """Let it go."""


@dataclass(frozen=True, slots=True)
class Patience:
    """How long to wait, in seconds.

    Attributes:
        first, most: for a reply before the request is sent again; doubled each time.
        quick, work: until a device that does not answer counts as dead, in a training step or otherwise.
        closed: until a line that cannot be opened again does.
    """

    first: float = 1.0
    most: float = 5.0
    quick: float = 20.0
    work: float = 900.0
    closed: float = 30.0


@dataclass(slots=True)
class Counters:
    """Of a link's life: requests done, frames sent again, damaged ones noticed on either side, lines reopened."""

    requests: int = 0
    repeats: int = 0
    damaged: int = 0
    reopened: int = 0
    bytes_out: int = 0
    bytes_in: int = 0


class Link:
    """The connection to one device.

    Args:
        address: where it is.
        core_version: the version that its firmware must have been built from.
        patience: timeouts.
        open_line: how a line is opened; replaced in tests.

    Attributes:
        info: what the device said of itself last.
        counters: of this link.
        stopping: asked before a request is sent again; True gives up with a LinkError.

    Raises:
        FirmwareError: another protocol or another version of the core.
        LinkError: nothing answers.
    """

    def __init__(
        self,
        address: Address,
        core_version: str,
        patience: Patience | None = None,
        open_line: Callable[[Address], Line] = Wire,
    ) -> None:
        self.address = address
        self.counters = Counters()
        self.patience = patience or Patience()
        self.stopping: Callable[[], bool] = lambda: False
        self._core_version = core_version
        self._open_line = open_line
        self._line: Line | None = None
        self._decoder = Decoder()
        self._number = random.SystemRandom().randrange(1, 2**32)
        self._seq = 0
        self.info = self._greet(fresh=True)

    def request(self, kind: int, payload: bytes = b"", *, size: int | None = None, work: bool = False) -> bytes:
        """Has the device carry out a request, once, and returns the payload of its reply.

        Args:
            kind: of the request.
            payload: at most `info.payload` bytes.
            size: bytes that the reply must have, where that is known.
            work: a training step: it may take long.

        Raises:
            RefusedError: the device refuses it.
            ResetError: the device has started anew in between; open a session again.
            FirmwareError: the device takes no payload of this length.
            LinkError: no answer, a reply of another length, or no line.
        """
        if len(payload) > self.info.payload:
            raise FirmwareError(
                f"{self.address}: request {kind} has {len(payload)} bytes, the firmware of {self.info.board} takes "
                f"{self.info.payload}"
            )
        self._seq = self._seq % 0xFFFF + 1  # 0 is the hello's
        frame = Frame(kind, self._seq, payload)
        patience = self.patience.work if work else self.patience.quick
        closed_since: float | None = None
        while True:
            try:
                if self._line is None:
                    self.info = self._greet(fresh=False)
                    closed_since = None
                answer = self._exchange(frame, patience)
                break
            except WireError as error:
                now = monotonic()
                closed_since = closed_since or now
                self._drop_line()
                if now - closed_since > self.patience.closed:
                    raise LinkError(f"{error.message}, for {self.patience.closed:.0f} s") from None
                sleep(0.2)
        self.counters.requests += 1
        if answer.type == kind | REPLY:
            if size is not None and len(answer.payload) != size:
                raise LinkError(
                    f"{self.address}: the reply to request {kind} has {len(answer.payload)} bytes instead of {size}"
                )
            return answer.payload
        return self._refused(answer)

    def close(self) -> None:
        """Let the line go."""
        self._drop_line()

    # --- inside -------------------------------------------------------------------------------------------------

    def _refused(self, answer: Frame) -> bytes:
        if answer.type != _REFUSED or len(answer.payload) < 2:
            raise LinkError(f"{self.address}: the device answers with type {answer.type}, which is no reply")
        code = int.from_bytes(answer.payload[:2], "little")
        text = answer.payload[2:].decode("ascii", "replace")
        if code == _STRANGER:
            self.info = self._greet(fresh=True)
            raise ResetError(f"{self.address}: the device was reset")
        raise RefusedError(f"{self.address}: {text} [{code}]", code)

    def _greet(self, *, fresh: bool) -> Info:
        """Says hello; not fresh: the device must still know this link."""
        if self._line is None:
            self._line = self._open_line(self.address)
            self._decoder = Decoder()
            if not fresh:
                self.counters.reopened += 1
        hello = Frame(HELLO, 0, struct.pack("<II", VERSION, self._number))
        answer = self._exchange(hello, self.patience.quick)
        info, known = self._parse(answer)
        if not fresh and not known:
            self.info = (
                info  # the device has taken our number by this very hello: the link goes on, what it held is gone
            )
            raise ResetError(f"{self.address}: the device was reset while the line was closed")
        return info

    def _parse(self, answer: Frame) -> tuple[Info, bool]:
        if answer.type != HELLO | REPLY or len(answer.payload) < 2:
            raise FirmwareError(f"{self.address}: the device's hello is not one of fedmpq's firmware")
        spoken = int.from_bytes(answer.payload[:2], "little")
        hint = "build and load it again: fedmpq build --profile NAME --what gateway"
        if spoken != VERSION:
            raise FirmwareError(
                f"{self.address}: the firmware speaks version {spoken} of the serial protocol, this gateway {VERSION}",
                hint,
            )
        if len(answer.payload) != _INFO.size:
            raise FirmwareError(f"{self.address}: the device's hello has {len(answer.payload)} bytes", hint)
        protocol, payload, flags, limit, records, _, version, isa, board, program = _INFO.unpack(answer.payload)
        info = Info(
            protocol, payload, limit, records, _text(version), _text(isa), _text(board),
            program.hex() if flags & _HAS_PROGRAM else "", bool(flags & _HAS_SHARD),
        )  # fmt: skip
        if info.version != self._core_version:
            raise FirmwareError(
                f"{self.address}: the firmware of {info.board} was built from fedmpq {info.version}, "
                f"this gateway is {self._core_version}",
                hint,
            )
        if payload < _LEAST_PAYLOAD:
            raise FirmwareError(
                f"{self.address}: the firmware of {info.board} takes payloads of {payload} bytes, at least "
                f"{_LEAST_PAYLOAD} are needed",
                hint,
            )
        return info, bool(flags & _KNOWN)

    def _exchange(self, frame: Frame, patience: float) -> Frame:
        """Sends a frame until its reply comes."""
        assert self._line is not None
        data = encode(frame)
        end = monotonic() + patience
        wait = self.patience.first
        while True:
            self._line.write(data)
            self.counters.bytes_out += len(data)
            answer = self._await(frame.seq, min(end, monotonic() + wait))
            if answer is not None:
                return answer
            if self.stopping():
                raise LinkError(f"{self.address}: the gateway stops")
            if monotonic() >= end:
                raise LinkError(
                    f"{self.address}: no answer for {patience:.0f} s", "is the device running the gateway firmware?"
                )
            self.counters.repeats += 1
            wait = min(2 * wait, self.patience.most)

    def _await(self, seq: int, until: float) -> Frame | None:
        """The reply with this number; None when it is time to send again."""
        assert self._line is not None
        while (left := until - monotonic()) > 0:
            data = self._line.read(left)
            self.counters.bytes_in += len(data)
            before = self._decoder.damaged
            frames = self._decoder.feed(data)
            if self._decoder.damaged > before:
                self.counters.damaged += self._decoder.damaged - before
                if not frames:
                    return None  # probably the reply: ask for it again
            for frame in frames:
                if frame.type == _DAMAGED:
                    self.counters.damaged += 1
                    return None
                if frame.type & REPLY and frame.seq == seq:
                    return frame
        return None

    def _drop_line(self) -> None:
        if self._line is not None:
            self._line.close()
            self._line = None


def _text(field: bytes) -> str:
    return field.rstrip(b"\0").decode("ascii", "replace")
