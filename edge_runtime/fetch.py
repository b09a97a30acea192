"""Pulling blobs: ask for what is missing, a window at a time, until everything is in the store."""

from __future__ import annotations

from collections.abc import Mapping

from fedmpq.edge_runtime.chunks import WINDOW_BYTES, Assembly, Chunk, bitmap_of, window
from fedmpq.edge_runtime.protocol import MAX_WANTS, Want
from fedmpq.edge_runtime.store import Store
from fedmpq.errors import HashError, ProtocolError


class Fetch:
    """A set of blobs on their way into the store.

    Args:
        store: where finished blobs go.
        sizes: bytes of each wanted blob by SHA-256; those the store has already are left out.
    """

    def __init__(self, store: Store, sizes: Mapping[str, int]) -> None:
        self._store = store
        self._waiting = {sha256: size for sha256, size in sizes.items() if not store.has(sha256)}
        self._open: dict[str, Assembly] = {}
        self._asked: dict[str, set[int]] = {}

    @property
    def done(self) -> bool:
        """Whether every blob has arrived."""
        return not self._waiting and not self._open

    @property
    def window_empty(self) -> bool:
        """Whether everything asked for so far has arrived, so that the next window is due."""
        return not self._asked

    def wants(self) -> tuple[Want, ...]:
        """What to ask for now: what is still missing of the present window, or else the next window."""
        if not self._asked:
            self._fill()
        return tuple(
            Want(sha256, bitmap_of(indices, self._open[sha256].count)) for sha256, indices in self._asked.items()
        )

    def _fill(self) -> None:
        room = WINDOW_BYTES - sum(part.size for part in self._open.values())
        while self._waiting and (room > 0 or not self._open) and len(self._open) < MAX_WANTS:
            sha256, size = self._waiting.popitem()
            self._open[sha256] = Assembly(sha256, size)
            room -= size
        self._asked = window(self._open.values(), MAX_WANTS)

    def add(self, chunk: Chunk) -> bool:
        """Take a chunk; returns whether it was wanted. A blob with a wrong hash is dropped and wanted again."""
        assembly = self._open.get(chunk.sha256)
        try:
            if assembly is None or not assembly.add(chunk):
                return False
            if not assembly.missing:
                self._store.put(assembly.finish(), durable=False)
                del self._open[chunk.sha256]
        except ProtocolError:
            return False
        except HashError:  # all of it is missing again, and asked for again
            self._asked.pop(chunk.sha256, None)
            return False
        asked = self._asked.get(chunk.sha256, set())
        asked.discard(chunk.index)
        if not asked:
            self._asked.pop(chunk.sha256, None)
        return True
