"""Lines to `fedmpq-edge serve` that misbehave as real ones do: flipped, lost and invented bytes, ends, resets."""

from __future__ import annotations

import random
import struct
from collections.abc import Callable, Mapping

from fedmpq.edge_runtime import core
from fedmpq.edge_runtime.native import library
from fedmpq.edge_runtime.serial.frames import Decoder, Frame, encode
from fedmpq.edge_runtime.serial.link import HELLO, REPLY, Line, Link, Patience
from fedmpq.edge_runtime.serial.wire import Address, Wire, WireError
from tests.helpers import edge

#: Short enough for tests, long enough for a busy machine.
PATIENCE = Patience(first=0.1, most=0.4, quick=20.0, work=60.0, closed=2.0)


def version() -> str:
    found: str = library().fmpq_version().decode()
    return found


def serve_command(limit: int) -> Address:
    return Address.parse(f"exec:{edge.native()} serve --limit {limit}")


def hello(payload: int = 512, limit: int = 1 << 20) -> bytes:
    """The reply of firmware of this version to a hello: it holds images, and no program."""
    names = version().encode(), b"scalar", b"board", bytes(32)
    return struct.pack("<HHIQII16s16s32s32s", 1, payload, 8, limit, 64, 0, *names)


class Told:
    """A device that replies what it is told to.

    Args:
        replies: of each kind of request, the payload or (type, payload) of the reply; nothing else: an empty one.
        greeting: payload of the reply to a hello.
    """

    def __init__(self, replies: Mapping[int, bytes | tuple[int, bytes]], greeting: bytes) -> None:
        self._replies, self._greeting = replies, greeting
        self._decoder = Decoder()
        self._out = b""
        self._asked = 0

    def write(self, data: bytes) -> None:
        for frame in self._decoder.feed(data):
            self._asked += 1
            assert self._asked < 5000, "asked again and again"
            told = self._greeting if frame.type == HELLO else self._replies.get(frame.type, b"")
            kind, payload = told if isinstance(told, tuple) else (frame.type | REPLY, told)
            self._out += encode(Frame(kind, frame.seq, payload))

    def read(self, _: float) -> bytes:
        out, self._out = self._out, b""
        return out

    def close(self) -> None:
        """Nothing to let go."""


class Noise:
    """A line with noise on it, the same for the same seed.

    Args:
        line: the good line.
        rate: share of bytes that are flipped, lost or followed by an invented one.
    """

    def __init__(self, line: Line, rate: float, seed: int) -> None:
        self._line, self._rate, self._rng = line, rate, random.Random(seed)

    def read(self, timeout_s: float) -> bytes:
        return self._spoil(self._line.read(timeout_s))

    def write(self, data: bytes) -> None:
        self._line.write(self._spoil(data))

    def close(self) -> None:
        self._line.close()

    def _spoil(self, data: bytes) -> bytes:
        out = bytearray()
        for byte in data:
            kind = self._rng.random() / self._rate if self._rate else 1.0
            if kind < 0.4:
                out.append(byte ^ 1 << self._rng.randrange(8))
            elif kind < 0.7:
                out += bytes([byte, self._rng.randrange(256)])
            elif kind >= 1.0:
                out.append(byte)
        return bytes(out)


class Kept:
    """The pipes of a device process that outlives the line to it: closing hangs up, opening again finds it as it was.

    Args:
        address: of the command.
        when: called with the number of bytes written so far; "hang-up" loses the line, "reset" the process, too.
    """

    def __init__(self, address: Address, when: Callable[[int], str] = lambda _: "") -> None:
        self._address, self._when = address, when
        self._wire: Wire | None = None
        self.written = 0
        self.opened = 0

    def open(self, _: Address) -> Line:
        self.opened += 1
        if self._wire is None:
            self._wire = Wire(self._address)
        return self

    def read(self, timeout_s: float) -> bytes:
        assert self._wire is not None
        return self._wire.read(timeout_s)

    def write(self, data: bytes) -> None:
        assert self._wire is not None
        event = self._when(self.written)
        self.written += len(data)
        if event:
            self._wire.write(data[: len(data) // 2])  # the line goes in the middle of a frame
            if event == "reset":
                self.end()
            raise WireError("the line was cut by the test")
        self._wire.write(data)

    def close(self) -> None:
        """Only hangs up."""

    def end(self) -> None:
        """Ends the process."""
        if self._wire is not None:
            self._wire.close()
            self._wire = None


def link_to(address: Address, **options: object) -> Link:
    return Link(address, version(), PATIENCE, **options)  # type: ignore[arg-type]


def sample(program: core.Program, count: int) -> tuple[bytes, memoryview]:
    """Images and labels that differ from one another."""
    height, width, channels = program.in_shape
    rng = random.Random(count)
    labels = memoryview(bytes(v for i in range(count) for v in (i % program.classes, 0))).cast("H")
    return rng.randbytes(count * height * width * channels), labels
