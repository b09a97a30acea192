"""The shard format: what is written is what is read, and every damage is told in one line."""

from __future__ import annotations

import hashlib
import struct
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fedmpq.edge_runtime.shard import HEADER, Shard, ShardError, write_shard

SMALL = {"shape": (3, 2, 2), "classes": 4, "mean": b"\x10\x20", "name": "tiny"}


def make(path: Path, count: int = 5) -> Path:
    images = bytes(range(12)) * count
    labels = struct.pack(f"<{count}H", *(i % 4 for i in range(count)))
    write_shard(path, images, labels, **SMALL)
    return path


@settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=60)
@given(
    count=st.integers(1, 70),
    shape=st.tuples(st.integers(1, 5), st.integers(1, 5), st.integers(1, 16)),
    classes=st.integers(2, 1024),
    seed=st.integers(0, 2**32 - 1),
    name=st.text(max_size=40).filter(lambda text: "\0" not in text),
)
def test_read_returns_what_was_written(tmp_path, count, shape, classes, seed, name):
    generator = np.random.default_rng(seed)
    images = generator.integers(0, 256, (count, *shape), dtype=np.uint8)
    labels = generator.integers(0, classes, count, dtype=np.uint16)
    mean = bytes(generator.integers(0, 256, shape[2], dtype=np.uint8))
    path = tmp_path / "x.shard"
    digest = write_shard(path, images.tobytes(), labels.tobytes(), shape=shape, classes=classes, mean=mean, name=name)
    with Shard(path) as shard:
        assert (shard.count, shard.shape, shard.classes, shard.mean) == (count, shape, classes, mean)
        assert shard.sha256 == digest
        assert name.startswith(shard.name)
        assert len(shard.name.encode()) > min(len(name.encode()), 32) - 4
        assert bytes(shard.images(0, count)) == images.tobytes()
        assert shard.labels(0, count).tolist() == labels.tolist()
        order = generator.permutation(count)[: 1 + count // 2].tolist()
        batch, batch_labels = shard.batch(order)
        assert bytes(batch) == images[order].tobytes()
        assert batch_labels.tolist() == labels[order].tolist()


def test_the_layout_is_the_documented_one(tmp_path):
    content = make(tmp_path / "a.shard", count=17).read_bytes()
    assert content[:8] == b"FMPQSHRD"
    assert struct.unpack_from("<HHIHHHH", content, 8) == (1, 0, 17, 3, 2, 2, 4)
    assert content[24:40] == b"\x10\x20" + bytes(14)
    assert struct.unpack_from("<Q", content, 40) == (len(content),)
    assert content[64:96] == hashlib.sha256(content[:64] + bytes(32) + content[96:]).digest()
    assert content[96:128] == b"tiny" + bytes(28)
    assert struct.unpack_from("<17H", content, 128) == (*(0, 1, 2, 3) * 4, 0)
    assert not any(content[162:192])
    assert content[192:] == bytes(range(12)) * 17


def test_every_truncation_is_refused(tmp_path):
    content = make(tmp_path / "a.shard").read_bytes()
    cut = tmp_path / "cut.shard"
    for length in range(len(content)):
        cut.write_bytes(content[:length])
        with pytest.raises(ShardError, match=r"cut\.shard"):
            Shard(cut)


def test_every_flipped_bit_is_refused(tmp_path):
    content = make(tmp_path / "a.shard", count=2).read_bytes()
    bad = tmp_path / "bad.shard"
    for at in range(len(content)):
        for bit in (0, 7):
            flipped = bytearray(content)
            flipped[at] ^= 1 << bit
            bad.write_bytes(flipped)
            with pytest.raises(ShardError):
                Shard(bad)


@pytest.mark.parametrize(
    ("offset", "value", "problem"),
    [
        (0, b"NOTSHARD", "is not a shard"),
        (8, struct.pack("<H", 2), "has shard version 2, this build reads 1"),
        (10, struct.pack("<H", 1), "reserved"),
        (12, struct.pack("<I", 0), "out of range"),
        (20, struct.pack("<H", 17), "out of range"),
        (22, struct.pack("<H", 1025), "out of range"),
        (16, struct.pack("<H", 4), "need another length"),
        (26, b"\x01", "reserved"),
        (48, b"\x01", "reserved"),
        (96, b"\xff\xfe", "UTF-8"),
        (128, struct.pack("<H", 4), "labels image 0 with 4 but has 4 classes"),
    ],
)
def test_bad_fields_are_named_even_without_the_hash(tmp_path, offset, value, problem):
    path = make(tmp_path / "a.shard")
    content = bytearray(path.read_bytes())
    content[offset : offset + len(value)] = value
    path.write_bytes(content)
    with pytest.raises(ShardError, match=problem) as caught:
        Shard(path, verify=False)
    assert str(path) in caught.value.message
    assert "\n" not in str(caught.value)


def test_a_file_longer_than_its_header_says_is_refused(tmp_path):
    path = make(tmp_path / "a.shard")
    path.write_bytes(path.read_bytes() + b"\0")
    with pytest.raises(ShardError, match="too long"):
        Shard(path)


@pytest.mark.parametrize("make_path", [lambda folder: folder / "absent.shard", lambda folder: folder])
def test_absent_files_and_folders(tmp_path, make_path):
    with pytest.raises(ShardError, match=r"does not exist|cannot be read"):
        Shard(make_path(tmp_path))


@pytest.mark.parametrize(
    "change",
    [
        {"labels": b"\0\0\0"},
        {"labels": b""},
        {"labels": struct.pack("<5H", 0, 1, 2, 3, 4)},
        {"images": b"\0" * 59},
        {"shape": (3, 2, 17)},
        {"mean": b"\0"},
        {"classes": 1},
        {"classes": 1025},
    ],
)
def test_the_writer_refuses_what_the_reader_would(tmp_path, change):
    arguments = {"images": bytes(60), "labels": bytes(10), **SMALL} | change
    with pytest.raises(ShardError, match="cannot write shard"):
        write_shard(tmp_path / "a.shard", **arguments)
    assert list(tmp_path.iterdir()) == []


def test_a_failed_write_leaves_the_old_file(tmp_path, monkeypatch):
    path = make(tmp_path / "a.shard")
    before = path.read_bytes()
    monkeypatch.setattr("os.fsync", lambda _: (_ for _ in ()).throw(OSError(28, "No space left on device")))
    with pytest.raises(ShardError, match="No space left"):
        make(path, count=9)
    assert path.read_bytes() == before
    assert [each.name for each in tmp_path.iterdir()] == ["a.shard"]


def test_gather_fills_the_callers_buffers_and_checks_them(tmp_path):
    with Shard(make(tmp_path / "a.shard")) as shard:
        images, labels = bytearray(24), memoryview(bytearray(4)).cast("H")
        shard.gather([4, 1], images, labels)
        assert images == bytes(range(12)) * 2
        assert labels.tolist() == [0, 1]
        with pytest.raises(ValueError, match="3 images need 36 bytes"):
            shard.gather([0, 1, 2], images, labels)
        for bad in (-1, 5):
            with pytest.raises(IndexError, match="of a shard of 5"):
                shard.gather([bad], images, labels)
        with pytest.raises(IndexError):
            shard.images(3, 6)


def test_views_are_not_copies_and_outlive_close(tmp_path):
    shard = Shard(make(tmp_path / "a.shard"))
    view = shard.images(1, 2)
    assert view.readonly
    assert view.obj is shard.images(0, 1).obj
    shard.close()
    assert bytes(view) == bytes(range(12))


def test_the_reader_needs_only_the_standard_library(tmp_path):
    path = make(tmp_path / "a.shard")
    code = (
        "import sys; from fedmpq.edge_runtime.shard import Shard; Shard(sys.argv[1]).batch([0]);"
        "print(sorted({'numpy', 'torch', 'PIL', 'click', 'rich'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code, str(path)], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_the_header_is_128_bytes():
    assert HEADER.size == 128
