"""The device's state survives a power cut at every byte of its last write, and says so where it cannot be used."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from fedmpq.edge_runtime import store as module
from fedmpq.edge_runtime.store import SLOTS, Store
from fedmpq.errors import StateError


def reopened(directory: Path) -> tuple[int, bytes | None, bool]:
    with Store(directory, "pi-1") as store:
        return store.record.bd_seq, store.record.plan, store.record.settled


def newest(directory: Path) -> Path:
    """The slot of the last write: the one with the higher sequence number."""
    return max((directory / s for s in SLOTS), key=lambda p: int.from_bytes(p.read_bytes()[16:24], "little"))


@pytest.fixture
def two_writes(tmp_path: Path) -> Path:
    with Store(tmp_path, "pi-1") as store:
        store.update(bd_seq=1, plan=b"first")
        store.update(bd_seq=2, plan=b"second", settled=True)
    assert reopened(tmp_path) == (2, b"second", True)
    return tmp_path


def test_truncation_at_every_byte_gives_the_state_before(two_writes: Path) -> None:
    last = newest(two_writes)
    data = last.read_bytes()
    for end in range(len(data)):
        last.write_bytes(data[:end])
        assert reopened(two_writes) == (1, b"first", False), end
    last.write_bytes(data)
    assert reopened(two_writes) == (2, b"second", True)


def test_every_damaged_byte_gives_the_state_before(two_writes: Path) -> None:
    last = newest(two_writes)
    data = last.read_bytes()
    for at in range(len(data)):
        last.write_bytes(data[:at] + bytes([data[at] ^ 0x55]) + data[at + 1 :])
        assert reopened(two_writes) == (1, b"first", False), at


def test_each_of_many_writes_is_the_one_that_is_read(tmp_path: Path) -> None:
    for number in range(1, 6):
        with Store(tmp_path, "pi-1") as store:
            store.update(bd_seq=number)
        assert reopened(tmp_path)[0] == number


def test_a_slot_that_vanished_gives_the_state_before(two_writes: Path) -> None:
    newest(two_writes).unlink()
    assert reopened(two_writes) == (1, b"first", False)


def test_writing_goes_on_after_a_recovery(two_writes: Path) -> None:
    newest(two_writes).write_bytes(b"")
    with Store(two_writes, "pi-1") as store:
        store.update(bd_seq=5, plan=b"third")
    assert reopened(two_writes) == (5, b"third", False)
    newest(two_writes).write_bytes(b"")
    assert reopened(two_writes)[0] == 1


@pytest.mark.parametrize("fault", ["replace", "fsync", "write"])
def test_a_failing_disk_leaves_the_old_state(two_writes: Path, fault: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*args: object) -> None:
        raise OSError(28, "No space left on device")

    with Store(two_writes, "pi-1") as store:
        with monkeypatch.context() as patch:
            if fault == "replace":
                patch.setattr(Path, "replace", fail)
            elif fault == "fsync":
                patch.setattr(os, "fsync", fail)
            else:
                patch.setattr(Path, "open", fail)
            with pytest.raises(StateError, match="No space left"):
                store.update(bd_seq=3)
        assert store.record.bd_seq == 2
    assert reopened(two_writes) == (2, b"second", True)


def test_a_first_write_cut_short_is_a_new_device(tmp_path: Path) -> None:
    with Store(tmp_path, "pi-1") as store:
        store.update(bd_seq=1)
    newest_slot = next(tmp_path / s for s in SLOTS if (tmp_path / s).exists())
    newest_slot.write_bytes(newest_slot.read_bytes()[:30])
    assert reopened(tmp_path) == (0, None, False)


def test_two_damaged_slots_are_reported(two_writes: Path) -> None:
    for name in SLOTS:
        (two_writes / name).write_bytes(b"x" * 100)
    with pytest.raises(StateError, match="damaged"):
        Store(two_writes, "pi-1")


def test_another_device_and_a_second_process_are_refused(two_writes: Path) -> None:
    with pytest.raises(StateError, match="belongs to device 'pi-1'"):
        Store(two_writes, "pi-2")
    with Store(two_writes, "pi-1"), pytest.raises(StateError, match="in use"):
        Store(two_writes, "pi-1")


def test_a_folder_that_cannot_be_made_is_reported(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(StateError, match="cannot be used"):
        Store(tmp_path / "file", "pi-1")


def test_blobs_are_checked_when_read(tmp_path: Path) -> None:
    with Store(tmp_path, "pi-1") as store:
        name = store.put(b"a plane")
        assert store.has(name)
        assert store.get(name) == b"a plane"
        other = store.put(b"another")
        path = tmp_path / "blobs" / name
        for end in range(7):
            path.write_bytes(b"a plane"[:end])
            assert store.get(name) is None
            assert not store.has(name)
        store.put(b"a plane")
        store.keep_only([name])
        assert store.get(name) == b"a plane"
        assert store.get(other) is None


def test_state_files_are_private(two_writes: Path) -> None:
    assert (two_writes / "lock").stat().st_mode & 0o077 == 0
    assert module.VERSION == 1
