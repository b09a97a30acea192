"""Frames of the serial protocol: type, a zero, sequence number, payload, CRC-32, in COBS between zero bytes.

The C side is core/port/serial_frame.c. A stream may lose, flip and invent bytes: what `Decoder` returns is whole.
"""

from __future__ import annotations

import struct
import zlib
from dataclasses import dataclass
from typing import Final

_HEAD: Final = struct.Struct("<BBH")
_CRC: Final = struct.Struct("<I")
#: Bytes without a zero between them that can still become a frame of the largest payload (64 KiB).
_LONGEST: Final = 68_000


@dataclass(frozen=True, slots=True)
class Frame:
    """One frame; `seq` ties a reply to its request."""

    type: int
    seq: int
    payload: bytes


def encode(frame: Frame) -> bytes:
    """The bytes on the line, both delimiters included."""
    body = _HEAD.pack(frame.type, 0, frame.seq) + frame.payload
    return b"\0" + stuff(body + _CRC.pack(zlib.crc32(body))) + b"\0"


def stuff(data: bytes) -> bytes:
    """COBS: the data without zero bytes, one byte longer for each 254."""
    out = bytearray()
    for part in data.split(b"\0"):
        full = len(part) // 254 * 254
        for at in range(0, full, 254):
            out += b"\xff" + part[at : at + 254]
        out.append(len(part) - full + 1)
        out += part[full:]
    return bytes(out)


def unstuff(data: bytes) -> bytes | None:
    """The inverse; None for bytes that `stuff` does not give."""
    out = bytearray()
    at = 0
    while at < len(data):
        code = data[at]
        block = data[at + 1 : at + code]
        if code == 0 or len(block) != code - 1 or 0 in block:
            return None
        out += block
        at += code
        if code != 255 and at < len(data):
            out.append(0)
    return bytes(out)


class Decoder:
    """Finds frames in a stream. `damaged` counts runs of bytes that were none."""

    def __init__(self) -> None:
        self.damaged = 0
        self._rest = bytearray()

    def feed(self, data: bytes) -> list[Frame]:
        """The frames that these bytes complete."""
        self._rest += data
        *runs, last = self._rest.split(b"\0")
        self._rest = last if len(last) <= _LONGEST else bytearray(b"\xff")
        found = []
        for run in runs:
            if run:
                frame = _parse(bytes(run))
                if frame is None:
                    self.damaged += 1
                else:
                    found.append(frame)
        return found


def _parse(run: bytes) -> Frame | None:
    body = unstuff(run)
    if body is None or len(body) < _HEAD.size + _CRC.size:
        return None
    (crc,) = _CRC.unpack_from(body, len(body) - _CRC.size)
    body = body[: -_CRC.size]
    kind, zero, seq = _HEAD.unpack_from(body)
    if zero or zlib.crc32(body) != crc:
        return None
    return Frame(kind, seq, body[_HEAD.size :])
