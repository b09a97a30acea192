"""Blobs in pieces: a chunk is at most 64 KiB of a content-addressed blob behind a 64-byte header.

Header, little-endian::

     0  4s  magic b"FMQC"            4  u8  version = 1        5  3s  zeros
     8  u32 index                   12  u32 count             16  u32 size of the blob in bytes
    20  u32 length of the payload   24  u32 CRC-32            28  4s  zeros
    32  32s SHA-256 of the blob     64  payload

The CRC runs over the header with a zero CRC field and then the payload. All chunks but the last are full, so index
and size fix the length. A receiver names what it lacks by a bitmap of chunks (bit i of byte i // 8, LSB first).

A message holds one chunk or several back to back (`bundles`): most planes are far smaller than a message may be.
"""

from __future__ import annotations

import hashlib
import struct
import zlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import ClassVar, Final

from fedmpq.errors import HashError, ProtocolError

MAGIC: Final = b"FMQC"
VERSION: Final = 1
CHUNK_SIZE: Final = 64 * 1024
#: A plane of 134 million weights; bounds what a header can make a receiver reserve.
MAX_BLOB: Final = 16 * 1024 * 1024
MAX_CHUNKS: Final = MAX_BLOB // CHUNK_SIZE
#: Bytes of the largest payload either side sends: below what AWS IoT (128 KB) lets through.
MAX_MESSAGE: Final = 96 * 1024
#: Bytes of chunks asked for at once: never more under way to one receiver, and never a broker's whole queue.
WINDOW_BYTES: Final = 4 * 1024 * 1024

_HEADER: Final = struct.Struct("<4sB3sIIIII4s32s")
HEADER_SIZE: Final = _HEADER.size


@dataclass(frozen=True, slots=True)
class Chunk:
    """Piece `index` of `count` of the blob `sha256` (hex) of `size` bytes."""

    TYPE: ClassVar[str] = "chunk"
    sha256: str
    index: int
    count: int
    size: int
    payload: bytes


def chunk_count(size: int) -> int:
    """How many chunks a blob of `size` bytes takes; an empty blob takes one."""
    return max(1, -(-size // CHUNK_SIZE))


def bitmap_of(indices: Iterable[int], count: int) -> str:
    """The bitmap (hex) with the bits of `indices` set; `count` bits, padded to whole bytes with zeros."""
    bits = bytearray(-(-count // 8))
    for index in indices:
        bits[index >> 3] |= 1 << (index & 7)
    return bits.hex()


def indices_of(bitmap: str, count: int) -> list[int]:
    """The chunk numbers set in a bitmap. Raises `ProtocolError` unless it has exactly `count` bits."""
    bits = bytes.fromhex(bitmap)
    if len(bits) != -(-count // 8) or (count % 8 and bits[-1] >> (count % 8)):
        raise ProtocolError(f"a bitmap of {len(bits)} bytes does not fit a blob of {count} chunks")
    return [i for i in range(count) if bits[i >> 3] >> (i & 7) & 1]


def encode_chunk(sha256: str, blob: bytes, index: int) -> bytes:
    """Chunk `index` of `blob`, whose SHA-256 the caller knows already."""
    payload = blob[index * CHUNK_SIZE : (index + 1) * CHUNK_SIZE]
    count = chunk_count(len(blob))
    assert 0 <= index < count
    fields = (index, count, len(blob), len(payload))
    head = _HEADER.pack(MAGIC, VERSION, bytes(3), *fields, 0, bytes(4), bytes.fromhex(sha256))
    crc = zlib.crc32(payload, zlib.crc32(head))
    return head[:24] + crc.to_bytes(4, "little") + head[28:] + payload


def encode_chunks(sha256: str, blob: bytes, indices: Iterable[int] | None = None) -> Iterator[bytes]:
    """The chunks `indices` of a blob, by default all."""
    for index in range(chunk_count(len(blob))) if indices is None else indices:
        yield encode_chunk(sha256, blob, index)


def bundles(encoded: Iterable[bytes], limit: int = MAX_MESSAGE) -> Iterator[bytes]:
    """Chunks packed into as few messages of at most `limit` bytes as their order allows."""
    parts: list[bytes] = []
    size = 0
    for chunk in encoded:
        if parts and size + len(chunk) > limit:
            yield b"".join(parts)
            parts, size = [], 0
        parts.append(chunk)
        size += len(chunk)
    if parts:
        yield b"".join(parts)


def is_chunk(data: bytes) -> bool:
    """Whether a payload claims to be of chunks (a control message starts with an opening brace)."""
    return data[:4] == MAGIC


def decode_chunks(data: bytes) -> tuple[Chunk, ...]:
    """The chunks of one message, at least one. Raises `ProtocolError` if any of them is wrong: all are dropped then."""
    found = []
    view = memoryview(data)
    while True:
        length = int.from_bytes(view[20:24], "little") if len(view) >= HEADER_SIZE else 0
        found.append(decode_chunk(bytes(view[: HEADER_SIZE + length])))
        view = view[HEADER_SIZE + length :]
        if not view:
            return tuple(found)


def decode_chunk(data: bytes) -> Chunk:
    """A chunk from its bytes. Raises `ProtocolError` naming the field that is wrong."""
    if len(data) < HEADER_SIZE:
        raise ProtocolError(f"chunk: {len(data)} bytes, the header alone has {HEADER_SIZE}")
    magic, version, pad, index, count, size, length, crc, pad2, digest = _HEADER.unpack_from(data)
    payload = data[HEADER_SIZE:]
    if magic != MAGIC:
        raise ProtocolError(f"chunk: starts with {magic!r}, not {MAGIC!r}")
    if version != VERSION:
        raise ProtocolError(f"chunk: version {version}, this build reads {VERSION}")
    if any(pad) or any(pad2):
        raise ProtocolError("chunk: reserved bytes are not zero")
    if size > MAX_BLOB:
        raise ProtocolError(f"chunk: a blob of {size} bytes, the limit is {MAX_BLOB}")
    if count != chunk_count(size) or index >= count:
        raise ProtocolError(f"chunk: number {index} of {count} cannot be of a blob of {size} bytes")
    expected = min(CHUNK_SIZE, size - index * CHUNK_SIZE)
    if length != expected or len(payload) != expected:
        raise ProtocolError(f"chunk: {len(payload)} bytes of payload, {expected} expected")
    if zlib.crc32(payload, zlib.crc32(data[:24] + bytes(4) + data[28:HEADER_SIZE])) != crc:
        raise ProtocolError("chunk: checksum does not match")
    return Chunk(digest.hex(), index, count, size, payload)


class Assembly:
    """A blob being received: holds its bytes and the chunks still missing.

    Args:
        sha256: hex digest the finished blob must have.
        size: bytes it must have, known from the program before the first chunk comes.
    """

    def __init__(self, sha256: str, size: int) -> None:
        if size > MAX_BLOB:
            raise ProtocolError(f"a blob of {size} bytes, the limit is {MAX_BLOB}")
        self.sha256 = sha256
        self.size = size
        self.count = chunk_count(size)
        self.missing = set(range(self.count))
        self._data = bytearray(size)

    def add(self, chunk: Chunk) -> bool:
        """Put a chunk in place; returns whether it was new. A chunk of another blob or size is refused."""
        if chunk.sha256 != self.sha256 or chunk.size != self.size:
            raise ProtocolError(
                f"chunk of {chunk.sha256[:12]}, {chunk.size} bytes, does not belong to {self.sha256[:12]}"
            )
        if chunk.index not in self.missing:
            return False
        start = chunk.index * CHUNK_SIZE
        self._data[start : start + len(chunk.payload)] = chunk.payload
        self.missing.discard(chunk.index)
        return True

    @property
    def bitmap(self) -> str:
        """The missing chunks as a bitmap (hex)."""
        return bitmap_of(self.missing, self.count)

    def finish(self) -> bytes:
        """The whole blob. On a hash that does not match, everything is missing again and `HashError` is raised."""
        assert not self.missing
        blob = bytes(self._data)
        if hashlib.sha256(blob).hexdigest() != self.sha256:
            self.missing = set(range(self.count))
            raise HashError(f"blob {self.sha256[:12]}: {self.size} bytes arrived with another SHA-256")
        return blob


def window(parts: Iterable[Assembly], most: int) -> dict[str, set[int]]:
    """The next chunks to ask for, by blob: at most `most` blobs and `WINDOW_BYTES` bytes, but one chunk at least."""
    asked: dict[str, set[int]] = {}
    room = WINDOW_BYTES
    for part in parts:
        if len(asked) == most or room <= 0:
            break
        for index in sorted(part.missing):
            room -= HEADER_SIZE + min(CHUNK_SIZE, part.size - index * CHUNK_SIZE)
            if room < 0 and asked:
                return asked
            asked.setdefault(part.sha256, set()).add(index)
    return asked
