"""Content-addressed files: a blob's name is its SHA-256, so it is written once and can always be checked.

Written to a temporary file, synced, renamed, and the directory synced: after a power cut a blob is whole or absent.
"""

from __future__ import annotations

import errno
import hashlib
import os
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from fedmpq.edge_runtime import faults
from fedmpq.errors import HashError, StateError

#: What a write says when there is no room: the disk, the quota, or the process's own limit of a file.
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


class BlobStore:
    """Blobs under one directory, in 256 folders by the first two hex digits.

    Args:
        root: the directory; made if absent.
    """

    def __init__(self, root: Path) -> None:
        self.root = root
        self._pool: ThreadPoolExecutor | None = None
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
        return self.put_many([data])[0]

    def put_many(self, blobs: Sequence[bytes]) -> list[str]:
        """Stores blobs durably and returns their hashes; they wait for the disk together.

        Raises:
            StateError: the disk is full or cannot be written.
        """
        names = [hashlib.sha256(data).hexdigest() for data in blobs]
        new = {name: data for name, data in zip(names, blobs, strict=True) if not self.path(name).is_file()}
        written: dict[str, Path] = {}
        try:
            try:
                for name, data in new.items():
                    written[name] = self._write(name, data)
                self._wait_for([*written.values()])
                faults.point("blob:synced")
                for name, temporary in written.items():
                    temporary.replace(self.path(name))
                    faults.point("blob:renamed")
            except BaseException:
                for temporary in written.values():
                    temporary.unlink(missing_ok=True)
                raise
            self._wait_for(sorted({self.path(name).parent for name in written}))
            faults.point("blob:stored")
        except OSError as error:
            what = f"{len(new)} blobs" if len(new) > 1 else f"blob {next(iter(new))[:12]}"
            hint = "free some space; nothing is lost" if error.errno in _FULL else ""
            raise StateError(f"cannot write {what} under {self.root}: {error.strerror}", hint) from None
        return names

    def _write(self, name: str, data: bytes) -> Path:
        folder = self.path(name).parent
        folder.mkdir(exist_ok=True)
        handle, temporary = tempfile.mkstemp(dir=folder, prefix=".new-")
        try:
            with os.fdopen(handle, "wb") as out:
                faults.point("blob:created")
                for part in faults.split(data):
                    out.write(part)
                    out.flush()
                    faults.point("blob:half")
        except BaseException:
            Path(temporary).unlink(missing_ok=True)
            raise
        return Path(temporary)

    def _wait_for(self, paths: Sequence[Path]) -> None:
        """Until files or folders are on the disk. Several wait together: the disk serves them in one go."""
        if len(paths) < 2:
            for path in paths:
                sync(path)
            return
        if self._pool is None:
            self._pool = ThreadPoolExecutor(8, "fedmpq-sync")
        for _ in self._pool.map(sync, paths):
            pass

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


def sync(path: Path) -> None:
    """Waits until a file, or the names in a folder, are on the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
