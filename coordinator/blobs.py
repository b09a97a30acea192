"""Content-addressed files: a blob's name is its SHA-256, so it is written once and can always be checked.

Written to a temporary file, synced, renamed, and the directory synced: after a power cut a blob is whole or absent.
"""

from __future__ import annotations

import errno
import hashlib
import os
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path

from fedmpq.edge_runtime import faults
from fedmpq.errors import HashError, StateError


class BlobStore:
    """Blobs under one directory, in 256 folders by the first two hex digits.

    Args:
        root: the directory; made if absent.
    """

    def __init__(self, root: Path) -> None:
        self.root = root
        root.mkdir(parents=True, exist_ok=True)

    def path(self, sha256: str) -> Path:
        """Where a blob lies (or would)."""
        return self.root / sha256[:2] / sha256

    def __contains__(self, sha256: str) -> bool:
        return self.path(sha256).is_file()

    def put(self, data: bytes) -> str:
        """Stores a blob durably and returns its hash. A blob that is there is not written again.

        Raises:
            StateError: the disk is full or cannot be written.
        """
        sha256 = hashlib.sha256(data).hexdigest()
        target = self.path(sha256)
        if target.is_file():
            return sha256
        try:
            target.parent.mkdir(exist_ok=True)
            handle, temporary = tempfile.mkstemp(dir=target.parent, prefix=".new-")
            try:
                with os.fdopen(handle, "wb") as out:
                    faults.point("blob:created")
                    for part in faults.split(data):
                        out.write(part)
                        out.flush()
                        faults.point("blob:half")
                    os.fsync(out.fileno())
                faults.point("blob:synced")
                Path(temporary).replace(target)
                faults.point("blob:renamed")
            except BaseException:
                Path(temporary).unlink(missing_ok=True)
                raise
            _sync_directory(target.parent)
            faults.point("blob:stored")
        except OSError as error:
            hint = "free some space; nothing is lost" if error.errno == errno.ENOSPC else ""
            raise StateError(f"cannot write blob {sha256[:12]} under {self.root}: {error.strerror}", hint) from None
        return sha256

    def get(self, sha256: str) -> bytes:
        """A blob's bytes, checked against its name.

        Raises:
            StateError: there is no such blob; HashError: the file is damaged.
        """
        try:
            data = self.path(sha256).read_bytes()
        except OSError as error:
            raise StateError(f"cannot read blob {sha256[:12]} under {self.root}: {error.strerror}") from None
        if hashlib.sha256(data).hexdigest() != sha256:
            raise HashError(f"blob {self.path(sha256)} is damaged: its SHA-256 is another one")
        return data

    def names(self) -> Iterator[str]:
        """Hashes of all blobs."""
        for folder in sorted(self.root.iterdir()):
            if folder.is_dir():
                yield from sorted(entry.name for entry in folder.iterdir() if len(entry.name) == 64)

    def collect_garbage(self, keep: Iterable[str]) -> int:
        """Removes blobs not in `keep` and leftovers of interrupted writes; returns how many files went."""
        wanted = set(keep)
        removed = 0
        for folder in sorted(self.root.iterdir()):
            for entry in sorted(folder.iterdir()) if folder.is_dir() else ():
                if entry.name not in wanted:
                    entry.unlink(missing_ok=True)
                    faults.point("blob:removed")
                    removed += 1
        return removed


def _sync_directory(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
