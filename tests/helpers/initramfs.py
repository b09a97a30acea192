"""Initial RAM file systems: a cpio archive ("newc") with a console and the files given, compressed."""

from __future__ import annotations

import gzip
from collections.abc import Mapping
from pathlib import Path

_FOLDER, _FILE, _DEVICE = 0o040755, 0o100755, 0o020600


def write(path: Path, files: Mapping[str, bytes]) -> Path:
    """Writes an archive of files in the root folder, all of them executable."""
    entries = [("dev", _FOLDER, b"", (0, 0)), ("dev/console", _DEVICE, b"", (5, 1))]
    entries += [(name, _FILE, data, (0, 0)) for name, data in files.items()]
    entries.append(("TRAILER!!!", 0, b"", (0, 0)))
    out = bytearray()
    for number, (name, mode, data, device) in enumerate(entries):
        fields = (number, mode, 0, 0, 1, 0, len(data), 0, 0, *device, len(name) + 1, 0)
        out += b"070701" + b"".join(b"%08X" % field for field in fields) + name.encode() + b"\0"
        out += bytes(-len(out) % 4)
        out += data + bytes(-len(data) % 4)
    path.write_bytes(gzip.compress(bytes(out), 1))
    return path
