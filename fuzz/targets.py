"""What is fuzzed in Python: every parser that sees bytes from a network, a file or another version of ourselves.

A target takes bytes and may raise `FedmpqError` only; whatever it accepts must survive being written again.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import struct
import tempfile
from collections.abc import Callable
from pathlib import Path

from fedmpq.coordinator import layout
from fedmpq.coordinator.aggregate import PartialSum
from fedmpq.coordinator.config import RunConfig
from fedmpq.coordinator.global_model import GlobalModel
from fedmpq.coordinator.service import read_config
from fedmpq.edge_runtime import artifact, chunks, protocol, store, topics
from fedmpq.edge_runtime.serial import frames
from fedmpq.edge_runtime.shard import Shard
from fedmpq.errors import FedmpqError
from tests.helpers.fleet import LAYOUT

_FOLDER = Path(tempfile.mkdtemp(prefix="fedmpq-fuzz-"))


def messages(data: bytes) -> None:
    """Control messages and chunks, on the kind of topic that the first byte names."""
    if not data:
        return
    kinds = sorted(protocol.ALLOWED)
    message = protocol.decode(kinds[data[0] % len(kinds)], data[1:])
    if isinstance(message, chunks.Chunk):
        assert chunks.chunk_count(message.size) == message.count
    elif isinstance(message, protocol.Bundle):
        assert len(message.chunks) > 1
    else:
        again = protocol.encode(message)
        assert protocol.decode(kinds[data[0] % len(kinds)], again) == message


def bundles(data: bytes) -> None:
    """Chunks whose checksums are put right first."""
    fixed = bytearray(data)
    at = 0
    while at + chunks.HEADER_SIZE <= len(fixed):
        length = int.from_bytes(fixed[at + 20 : at + 24], "little")
        piece = fixed[at : at + chunks.HEADER_SIZE + length]
        piece[24:28] = bytes(4)
        import zlib

        fixed[at + 24 : at + 28] = zlib.crc32(piece).to_bytes(4, "little")
        at += chunks.HEADER_SIZE + length
    for chunk in chunks.decode_chunks(bytes(fixed)):
        part = chunks.Assembly(chunk.sha256, chunk.size)
        part.add(chunk)
        if not part.missing:
            part.finish()


def topic(data: bytes) -> None:
    """Topics of a fleet."""
    names = topics.Topics("lab")
    route = names.parse(data.decode("utf-8", "replace"))
    if route.device is not None:
        assert names.parse(names.device(route.device, route.kind)) == route


def artifacts(data: bytes) -> None:
    """Artifact files, hashes put right first."""
    found = artifact.unpack(_mended(data))
    assert artifact.unpack(artifact.pack(found)).layers == found.layers


def programs(data: bytes) -> None:
    """Programs, as the coordinator reads them."""
    found = layout.of_program(data)
    assert all(shape.theta > 0 for shape in found.layers)


def configuration(data: bytes) -> None:
    """A run's configuration from the journal (JSON) or a file (TOML)."""
    if data[:1] == b"{":
        try:
            values = json.loads(data)
        except (ValueError, RecursionError):
            return
        if isinstance(values, dict):
            config = RunConfig.from_dict(values)
            assert RunConfig.from_dict(config.to_dict()) == config
        return
    path = _FOLDER / "run.toml"
    path.write_bytes(data)
    read_config(path)


def models(data: bytes) -> None:
    """Global models, partial sums: what the coordinator finds on its disk or a worker sends."""
    if data[:1] == b"P":
        total = PartialSum.from_bytes(b"FMPQ" + data, LAYOUT)
        assert total.to_bytes() == b"FMPQ" + data
        return
    body = data[1:-32] if len(data) > 33 else data
    model = GlobalModel.from_bytes(body + hashlib.sha256(body).digest(), LAYOUT)
    assert model.to_bytes() == body + hashlib.sha256(body).digest()


def device_state(data: bytes) -> None:
    """A slot of a device's state, hash put right first."""
    if len(data) >= 56:
        head = data[:12] + struct.pack("<I", len(data) - 56) + data[16:24]
        head = b"FMPQDEVS" + head[8:]
        data = head + hashlib.sha256(head + bytes(32) + data[56:]).digest() + data[56:]
    path = _FOLDER / "state.a"
    path.write_bytes(data)
    store._read_slot(path)


def shards(data: bytes) -> None:
    """Shard files."""
    path = _FOLDER / "a.shard"
    path.write_bytes(data)
    Shard(path, verify=False).close()


def serial(data: bytes) -> None:
    """Frames of the serial line."""
    decoder = frames.Decoder()
    for frame in decoder.feed(data):
        if frame is not None:
            frames.encode(frame)


TARGETS: dict[str, Callable[[bytes], None]] = {
    target.__name__: target
    for target in (
        messages, bundles, topic, artifacts, programs, configuration, models, device_state, shards, serial,
    )
}  # fmt: skip


def run(name: str, data: bytes) -> None:
    """One execution: our own errors are answers, everything else is a crash."""
    with contextlib.suppress(FedmpqError):
        TARGETS[name](data)


def _mended(data: bytes) -> bytes:
    """An artifact with the hashes its bytes should have."""
    fixed = bytearray(data)
    if len(fixed) < 64:
        return data
    count = min(16, int.from_bytes(fixed[10:12], "little"))
    spans: dict[bytes, tuple[int, int, int]] = {}
    for entry in range(64, 64 + 64 * count, 64):
        at, size = struct.unpack_from("<QQ", bytes(fixed[entry + 8 : entry + 24]).ljust(16, b"\0"))
        if entry + 64 <= len(fixed) and at <= len(fixed) and size <= len(fixed) - at:
            spans[bytes(fixed[entry : entry + 8]).rstrip(b"\0")] = entry, at, size
    if b"manifest" in spans:
        _, start, size = spans[b"manifest"]
        text = bytes(fixed[start : start + size])
        for name, (_, at, length) in spans.items():
            key = b'"' + name + b'":"'
            where = text.find(key)
            if name != b"manifest" and 0 <= where <= len(text) - len(key) - 64:
                digest = hashlib.sha256(fixed[at : at + length]).hexdigest().encode()
                text = text[: where + len(key)] + digest + text[where + len(key) + 64 :]
        fixed[start : start + size] = text
    for entry, at, size in spans.values():
        fixed[entry + 24 : entry + 56] = hashlib.sha256(fixed[at : at + size]).digest()
    end = 64 + 64 * count
    fixed[24:56] = hashlib.sha256(bytes(fixed[:24]) + bytes(fixed[64:end])).digest()
    return bytes(fixed)
