"""A file of named sections, each with its SHA-256 (docs/artifact.md, section "Container").

Every byte of a file is covered: header and table by the hash in the header, each section by its hash in the table,
padding by having to be zero. So a truncated, extended or altered file is always noticed, before anything in it is used.
Standard library only.
"""

from __future__ import annotations

import hashlib
import os
import struct
import tempfile
from collections.abc import Mapping
from pathlib import Path

from fedmpq.errors import FormatError, HashError, TruncatedError, VersionError

MAGIC = b"FMPQART1"
VERSION = 1
MAX_SECTIONS = 16
MAX_FILE = 1 << 32

_HEADER = struct.Struct("<8sHHIQ32s8s")
_ENTRY = struct.Struct("<8sQQ32s8s")
_HASHED_HEADER_BYTES = 24  # everything before the hash
assert _HEADER.size == 64
assert _ENTRY.size == 64


def pack(sections: Mapping[str, bytes]) -> bytes:
    """One file of the sections, in the order given. Names are ASCII, 1 to 8 letters."""
    start = _HEADER.size + _ENTRY.size * len(sections)
    entries, body = [], []
    offset = start
    for name, data in sections.items():
        entries.append(_ENTRY.pack(name.encode("ascii"), offset, len(data), hashlib.sha256(data).digest(), bytes(8)))
        body += [data, bytes(-len(data) % 8)]
        offset += len(data) + -len(data) % 8
    table = b"".join(entries)
    head = struct.pack("<8sHHIQ", MAGIC, VERSION, len(sections), start, offset)
    return b"".join([head, hashlib.sha256(head + table).digest(), bytes(8), table, *body])


def unpack(data: bytes | memoryview, source: str = "artifact") -> dict[str, memoryview]:
    """The sections of a file, as views into `data`.

    Args:
        data: the whole file.
        source: how errors name it.

    Raises:
        FormatError: not an artifact, or a table that contradicts itself.
        VersionError: a container version this build does not read.
        TruncatedError: the file ends before its sections do.
        HashError: a section, or the table, is not what its hash says.
    """
    view = memoryview(data).toreadonly().cast("B")
    if len(view) < len(MAGIC) or bytes(view[: len(MAGIC)]) != MAGIC:
        if len(view) < len(MAGIC) and bytes(view) == MAGIC[: len(view)]:
            raise TruncatedError(f"{source} ends after {len(view)} bytes, before its header is complete")
        raise FormatError(f"{source} is not a fedmpq artifact: it does not start with {MAGIC.decode()}")
    if len(view) < _HEADER.size:
        raise TruncatedError(f"{source} ends after {len(view)} bytes, its header takes {_HEADER.size}")
    _, version, count, start, total, table_hash, reserved = _HEADER.unpack_from(view)
    if version != VERSION:
        raise VersionError(f"{source} has container version {version}, this build reads version {VERSION}")
    if not 1 <= count <= MAX_SECTIONS or start != _HEADER.size + _ENTRY.size * count or any(reserved):
        raise FormatError(f"{source} has a damaged header ({count} sections, table of {start} bytes)")
    if len(view) < total or len(view) < start:
        raise TruncatedError(f"{source} has {len(view)} bytes, its header says {total}")
    if len(view) > total:
        raise FormatError(f"{source} has {len(view) - total} bytes after its end")
    table = view[_HEADER.size : start]
    if hashlib.sha256(bytes(view[:_HASHED_HEADER_BYTES]) + bytes(table)).digest() != table_hash:
        raise HashError(f"{source}: the section table does not match its SHA-256")
    return _sections(view, table, start, source)


def _sections(view: memoryview, table: memoryview, start: int, source: str) -> dict[str, memoryview]:
    sections: dict[str, memoryview] = {}
    expected = start
    for raw, offset, length, digest, reserved in _ENTRY.iter_unpack(table):
        name = raw.rstrip(b"\0").decode("ascii", errors="replace")
        padded = length + -length % 8
        if not name or name in sections or any(reserved) or offset != expected or offset + padded > len(view):
            raise FormatError(f"{source}: section {name!r} at {offset} (+{length}) does not fit the section table")
        content = view[offset : offset + length]
        if hashlib.sha256(content).digest() != digest:
            raise HashError(f"{source}: section {name!r} does not match its SHA-256")
        if any(view[offset + length : offset + padded]):
            raise FormatError(f"{source}: the padding after section {name!r} is not zero")
        sections[name] = content
        expected = offset + padded
    if expected != len(view):
        raise FormatError(f"{source}: its sections end at {expected}, the file at {len(view)}")
    return sections


def read_bytes(path: str | Path) -> bytes:
    """The bytes of a file, with errors that name it."""
    file = Path(path)
    try:
        if file.stat().st_size > MAX_FILE:
            raise FormatError(f"{file} has {file.stat().st_size} bytes, an artifact has at most {MAX_FILE}")
        return file.read_bytes()
    except FileNotFoundError:
        raise FormatError(f"there is no file {file}", "fedmpq export makes one") from None
    except OSError as error:
        raise FormatError(f"cannot read {file}: {error.strerror}") from None


def write_atomic(path: str | Path, data: bytes) -> None:
    """Writes a file so that a power cut leaves the old one or the new one, never a part."""
    file = Path(path)
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        handle, temporary = tempfile.mkstemp(dir=file.parent, prefix=f".{file.name}.")
    except OSError as error:
        raise FormatError(f"cannot write {file}: {error.strerror}") from None
    try:
        with os.fdopen(handle, "wb") as out:
            out.write(data)
            out.flush()
            os.fsync(out.fileno())
        umask = os.umask(0)
        os.umask(umask)
        Path(temporary).chmod(0o666 & ~umask)
        Path(temporary).replace(file)
    except BaseException as error:
        Path(temporary).unlink(missing_ok=True)
        if isinstance(error, OSError):
            raise FormatError(f"cannot write {file}: {error.strerror}") from None
        raise
    directory = os.open(file.parent, os.O_RDONLY)
    try:
        os.fsync(directory)
    finally:
        os.close(directory)
