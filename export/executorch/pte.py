"""Reading `.pte` files: is it one, and the artifact inside. Standard library only.

ExecuTorch's program starts with an offset and "ET12"; the artifact lies in a data segment, unchanged. It is found by
its magic bytes and proves itself by its hashes.
"""

from __future__ import annotations

import struct
from pathlib import Path

from fedmpq.edge_runtime import artifact, container
from fedmpq.errors import FormatError

SUFFIX = ".pte"
#: Alignment of the artifact in the file's data segments.
ALIGNMENT = 64
_ARTIFACT_MAGIC = b"FMPQART1"
_LENGTH = struct.Struct("<Q")


def is_pte(path: str | Path) -> bool:
    """Whether the file claims to be an ExecuTorch program."""
    try:
        with Path(path).open("rb") as file:
            return _looks_like_pte(file.read(8))
    except OSError:
        return False


def read(path: str | Path) -> artifact.Artifact:
    """The artifact inside a `.pte` training program.

    Raises:
        FormatError: no such file, not an ExecuTorch program, none of ours, or a damaged one.
    """
    return unpack(container.read_bytes(path), str(path))


def unpack(data: bytes, source: str) -> artifact.Artifact:
    """The artifact inside the bytes of a `.pte`; see `read`."""
    if not _looks_like_pte(data):
        raise FormatError(f"{source} is not an ExecuTorch program")
    start = data.find(_ARTIFACT_MAGIC)
    if start < 0:
        raise FormatError(
            f"{source} is an ExecuTorch program without a fedmpq training step", "fedmpq export --target executorch"
        )
    end = start
    if len(data) >= start + 24:
        end = start + _LENGTH.unpack_from(data, start + 16)[0]
    return artifact.unpack(data[start : min(max(end, start + 24), len(data))], f"{source}: artifact")


def open_any(path: str | Path) -> artifact.Artifact:
    """The artifact of an artifact file or of a `.pte`."""
    return read(path) if is_pte(path) else artifact.read(path)


def _looks_like_pte(head: bytes) -> bool:
    return len(head) >= 8 and head[4:6] == b"ET"
