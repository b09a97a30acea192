"""What a device must not forget: its outbox, its last plan and the blobs it has fetched. Survives a power cut.

A state directory holds::

    lock          held by the one process that uses the directory
    state.a/b     two slots, written in turn: magic, version, sequence, length, SHA-256, then canonical JSON
    blobs/<hash>  planes, parameters and programs, each named by its SHA-256

A write goes to a temporary file, is flushed to the disk, and replaces the *older* slot; the newer one is not touched.
Whatever a crash or power cut leaves of the last write, the other slot holds the state before it. Reading takes the
valid slot with the highest sequence number.
"""

from __future__ import annotations

import base64
import binascii
import fcntl
import hashlib
import os
import re
import struct
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from types import TracebackType
from typing import Annotated, Any, Final, Self

from fedmpq.edge_runtime import faults, topics
from fedmpq.edge_runtime.schema import (
    U32,
    Bool,
    Check,
    Int,
    Opt,
    Str,
    dump_json,
    dump_object,
    load_object,
    parse_json,
    refuse,
)
from fedmpq.errors import FedmpqError, StateError

MAGIC: Final = b"FMPQDEVS"
VERSION: Final = 1
SLOTS: Final = ("state.a", "state.b")

_HEADER: Final = struct.Struct("<8sHHIQ32s")  # magic, version, zero, length, sequence, SHA-256 of the rest


class _Bytes(Check):
    """Bytes as base64 in JSON."""

    def load(self, value: object, where: str) -> bytes:
        if not isinstance(value, str):
            raise refuse(where, "expected base64")
        try:
            return base64.b64decode(value, validate=True)
        except binascii.Error:
            raise refuse(where, "not base64") from None

    def dump(self, value: Any, where: str) -> object:
        del where
        return base64.b64encode(value).decode("ascii")


@dataclass(frozen=True, slots=True)
class DeviceRecord:
    """The persistent state of a device.

    Attributes:
        device: its name; a directory belongs to one device.
        bd_seq: number of connections so far (birth and will carry it).
        plan: bytes of the last plan message, exactly as received; the unit of work.
        update: bytes of the update or refusal that answers `plan`, once there is one: then the round is not
            trained again, whatever happens.
        settled: the coordinator has given its verdict on `update`.
    """

    device: Annotated[str, Str(topics.NAME, "a device name")]
    bd_seq: Annotated[int, Int(0, U32)]
    plan: Annotated[bytes | None, Opt(_Bytes())]
    update: Annotated[bytes | None, Opt(_Bytes())]
    settled: Annotated[bool, Bool()]


class Store:
    """The state directory of one device.

    Args:
        directory: made where it does not exist.
        device: name of the device; a directory of another device is refused.

    Raises:
        StateError: another process holds the directory, it is another device's, or both slots are damaged.
    """

    def __init__(self, directory: Path, device: str) -> None:
        self.directory = directory
        try:
            (directory / "blobs").mkdir(parents=True, exist_ok=True, mode=0o700)
            self._lock = os.open(directory / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except OSError as error:
            raise StateError(f"state directory {directory} cannot be used: {error.strerror}") from None
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            os.close(self._lock)
            raise StateError(
                f"state directory {directory} is in use by another process", "stop it or give --state another folder"
            ) from None
        self._sequence, found = self._read()
        if found is not None and found.device != device:
            self.close()
            raise StateError(
                f"state directory {directory} belongs to device {found.device!r}, not {device!r}",
                "give --state another folder",
            )
        self.record = found or DeviceRecord(device=device, bd_seq=0, plan=None, update=None, settled=False)

    def update(self, **changes: Any) -> DeviceRecord:
        """Change fields of the record and put it on the disk before returning."""
        record = replace(self.record, **changes)
        payload = dump_json(dump_object(record, "state"))
        sequence = self._sequence + 1
        head = _HEADER.pack(MAGIC, VERSION, 0, len(payload), sequence, bytes(32))
        digest = hashlib.sha256(head + payload).digest()
        self._replace(self.directory / SLOTS[sequence % 2], head[:-32] + digest + payload)
        self._sequence, self.record = sequence, record
        return record

    # --- blobs --------------------------------------------------------------------------------------------------

    def has(self, sha256: str) -> bool:
        """Whether a blob is here (its content is checked when it is read)."""
        return self._blob(sha256).is_file()

    def put(self, blob: bytes, *, durable: bool = True) -> str:
        """Keep a blob; returns its SHA-256. Costs nothing when it is here already.

        `durable` waits for the disk; what can be fetched again need not (its hash tells whether it is whole).
        """
        sha256 = hashlib.sha256(blob).hexdigest()
        if not self.has(sha256):
            self._replace(self._blob(sha256), blob, durable)
        return sha256

    def get(self, sha256: str) -> bytes | None:
        """A blob, or None where it is absent or damaged (a damaged one is removed, to be fetched again)."""
        path = self._blob(sha256)
        try:
            blob = path.read_bytes()
        except OSError:
            return None
        if hashlib.sha256(blob).hexdigest() != sha256:
            path.unlink(missing_ok=True)
            return None
        return blob

    def keep_only(self, hashes: Iterable[str]) -> None:
        """Remove every blob that is not named."""
        keep = set(hashes)
        for path in (self.directory / "blobs").iterdir():
            if path.name not in keep:
                path.unlink(missing_ok=True)
                faults.point("device-blob:removed")

    def close(self) -> None:
        """Release the lock."""
        os.close(self._lock)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    # --- inside -------------------------------------------------------------------------------------------------

    def _blob(self, sha256: str) -> Path:
        assert re.fullmatch(r"[0-9a-f]{64}", sha256)
        return self.directory / "blobs" / sha256

    def _read(self) -> tuple[int, DeviceRecord | None]:
        found = [slot for slot in (_read_slot(self.directory / name) for name in SLOTS) if slot is not None]
        if found:
            return max(found, key=lambda slot: slot[0])
        damaged = [name for name in SLOTS if (self.directory / name).is_file()]
        if len(damaged) == len(SLOTS):
            raise StateError(
                f"state directory {self.directory}: both slots are damaged", "remove it: the device starts afresh"
            )
        return 0, None  # new, or the very first write was cut short

    def _replace(self, path: Path, data: bytes, durable: bool = True) -> None:
        temporary = path.with_name(f".{path.name}.new")
        of = "device-blob" if path.parent.name == "blobs" else "device-state"
        try:
            with temporary.open("wb") as file:
                faults.point(f"{of}:created")
                for part in faults.split(data):
                    file.write(part)
                    file.flush()
                    faults.point(f"{of}:half")
                if durable:
                    os.fsync(file.fileno())
            faults.point(f"{of}:synced")
            temporary.replace(path)
            faults.point(f"{of}:renamed")
            if not durable:
                return
            folder = os.open(path.parent, os.O_RDONLY)
            try:
                os.fsync(folder)
            finally:
                os.close(folder)
        except OSError as error:
            raise StateError(f"{path} cannot be written: {error.strerror}", "is the disk full?") from None


def _read_slot(path: Path) -> tuple[int, DeviceRecord] | None:
    """Sequence number and record of a slot; None where it is absent or not whole."""
    try:
        data = path.read_bytes()
    except OSError:
        return None
    if len(data) < _HEADER.size:
        return None
    magic, version, zero, length, sequence, digest = _HEADER.unpack_from(data)
    payload = data[_HEADER.size :]
    if magic != MAGIC or version != VERSION or zero or length != len(payload):
        return None
    if hashlib.sha256(data[: _HEADER.size - 32] + bytes(32) + payload).digest() != digest:
        return None
    try:
        return sequence, load_object(DeviceRecord, parse_json(payload, "state"), "state")
    except FedmpqError as error:
        raise StateError(f"{path} was written by another version: {error}", "remove the state directory") from None
