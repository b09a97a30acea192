"""Chunks put a blob together in any order, and a damaged one is refused."""

from __future__ import annotations

import hashlib
import random
import struct
import zlib
from pathlib import Path

import pytest

from fedmpq.edge_runtime import chunks
from fedmpq.edge_runtime.fetch import Fetch
from fedmpq.edge_runtime.store import Store
from fedmpq.errors import HashError, ProtocolError


def blob_of(size: int) -> tuple[str, bytes]:
    blob = random.Random(size).randbytes(size)
    return hashlib.sha256(blob).hexdigest(), blob


@pytest.mark.parametrize("size", [0, 1, 63, 65535, 65536, 65537, 3 * 65536, 200_001])
def test_any_order_with_duplicates(size: int) -> None:
    sha256, blob = blob_of(size)
    pieces = [chunks.decode_chunk(c) for c in chunks.encode_chunks(sha256, blob)]
    assert len(pieces) == chunks.chunk_count(size)
    random.Random(1).shuffle(pieces)
    whole = chunks.Assembly(sha256, size)
    for piece in pieces:
        assert whole.add(piece)
        assert not whole.add(piece)
    assert whole.finish() == blob


def test_the_bitmap_names_what_is_missing() -> None:
    sha256, blob = blob_of(10 * chunks.CHUNK_SIZE - 5)
    whole = chunks.Assembly(sha256, len(blob))
    assert whole.bitmap == "ff03"
    for index in (0, 3, 9):
        whole.add(chunks.decode_chunk(chunks.encode_chunk(sha256, blob, index)))
    missing = chunks.indices_of(whole.bitmap, whole.count)
    assert missing == [1, 2, 4, 5, 6, 7, 8]
    for data in chunks.encode_chunks(sha256, blob, missing):
        whole.add(chunks.decode_chunk(data))
    assert whole.finish() == blob


@pytest.mark.parametrize("bitmap", ["ff", "ff07", "ff0300"])
def test_a_bitmap_of_another_length_is_refused(bitmap: str) -> None:
    with pytest.raises(ProtocolError):
        chunks.indices_of(bitmap, 10)


def test_every_flipped_bit_and_every_truncation_is_refused() -> None:
    sha256, blob = blob_of(40)
    data = chunks.encode_chunk(sha256, blob, 0)
    for end in range(len(data)):
        with pytest.raises(ProtocolError):
            chunks.decode_chunk(data[:end])
    for bit in range(8 * len(data)):
        bad = bytearray(data)
        bad[bit // 8] ^= 1 << bit % 8
        with pytest.raises(ProtocolError):
            chunks.decode_chunk(bytes(bad))
    with pytest.raises(ProtocolError):
        chunks.decode_chunk(data + b"\0")


def test_a_header_cannot_make_a_receiver_reserve_much() -> None:
    head = struct.pack("<4sB3sIIIII4s32s", b"FMQC", 1, bytes(3), 0, 2**16, 2**32 - 1, 65536, 0, bytes(4), bytes(32))
    with pytest.raises(ProtocolError, match="limit"):
        chunks.decode_chunk(head + bytes(65536))
    with pytest.raises(ProtocolError, match="limit"):
        chunks.Assembly("0" * 64, chunks.MAX_BLOB + 1)


def test_a_blob_with_another_hash_is_wanted_again() -> None:
    _, blob = blob_of(70_000)
    whole = chunks.Assembly("0" * 64, len(blob))
    for data in chunks.encode_chunks("0" * 64, blob):
        whole.add(chunks.decode_chunk(data))
    with pytest.raises(HashError):
        whole.finish()
    assert whole.missing == {0, 1}


def test_a_chunk_of_another_blob_is_refused() -> None:
    sha256, blob = blob_of(10)
    chunk = chunks.decode_chunk(chunks.encode_chunk(sha256, blob, 0))
    with pytest.raises(ProtocolError):
        chunks.Assembly("1" * 64, 10).add(chunk)
    with pytest.raises(ProtocolError):
        chunks.Assembly(sha256, 11).add(chunk)


@pytest.mark.parametrize("at", [4, 5, 7, 28, 31])
def test_reserved_bytes_and_version_are_checked_behind_a_right_checksum(at: int) -> None:
    sha256, blob = blob_of(40)
    data = bytearray(chunks.encode_chunk(sha256, blob, 0))
    data[at] ^= 2
    data[24:28] = bytes(4)
    data[24:28] = zlib.crc32(data).to_bytes(4, "little")
    with pytest.raises(ProtocolError, match="version" if at == 4 else "reserved"):
        chunks.decode_chunk(bytes(data))


def test_a_window_of_a_fetch_is_bounded(tmp_path: Path) -> None:
    blobs = dict(blob_of(size) for size in (*range(1, 60), 20 * chunks.CHUNK_SIZE, 200 * chunks.CHUNK_SIZE))
    with Store(tmp_path, "pi-1") as store:
        fetch = Fetch(store, {sha256: len(blob) for sha256, blob in blobs.items()})
        windows = 0
        while not fetch.done:
            windows += 1
            asked = [
                (want.sha256, index)
                for want in fetch.wants()
                for index in chunks.indices_of(want.bitmap, chunks.chunk_count(len(blobs[want.sha256])))
            ]
            assert fetch.wants() == fetch.wants()
            pieces = [chunks.encode_chunk(sha256, blobs[sha256], index) for sha256, index in asked]
            assert sum(map(len, pieces)) <= chunks.WINDOW_BYTES
            for sha256, index in asked:
                assert fetch.add(chunks.decode_chunk(chunks.encode_chunk(sha256, blobs[sha256], index)))
            assert fetch.window_empty
        assert windows in {4, 5}
        assert all(store.get(sha256) == blob for sha256, blob in blobs.items())
        assert Fetch(store, {sha256: len(blob) for sha256, blob in blobs.items()}).done


def test_small_chunks_share_messages() -> None:
    made = dict(blob_of(size) for size in (0, 1, 30_000, 40_000, 50_000, chunks.CHUNK_SIZE))
    pieces = [piece for sha256, blob in made.items() for piece in chunks.encode_chunks(sha256, blob)]
    messages = list(chunks.bundles(pieces))
    assert len(messages) < len(pieces)
    assert all(len(message) <= chunks.MAX_MESSAGE for message in messages)
    found = [chunk for message in messages for chunk in chunks.decode_chunks(message)]
    assert [(chunk.sha256, chunk.payload) for chunk in found] == list(made.items())
    assert list(chunks.bundles([])) == []


def test_one_wrong_chunk_spoils_its_message() -> None:
    pieces = [chunks.encode_chunk(*blob_of(size), 0) for size in (10, 20)]
    for at in range(len(pieces[0]) + len(pieces[1])):
        data = bytearray(b"".join(pieces))
        data[at] ^= 0x40
        with pytest.raises(ProtocolError):
            chunks.decode_chunks(bytes(data))
    with pytest.raises(ProtocolError):
        chunks.decode_chunks(pieces[0] + b"FMQC")
