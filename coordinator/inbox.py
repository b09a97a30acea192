"""Updates on their way in: which blobs are still missing and the chunks that have come.

Held in memory only. After a restart a device's retry of its update (same bytes) starts this over, and asks for
nothing that the device's own plan already names.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from fedmpq.edge_runtime.chunks import Assembly, Chunk, bitmap_of, window
from fedmpq.edge_runtime.protocol import MAX_WANTS, FloatUpdate, Update, Want
from fedmpq.errors import HashError, ProtocolError

#: Uploads at a time: what they hold in memory is bounded, however many devices finish together.
UPLOADS = 64
#: Seconds without a chunk after which an upload loses its place to one that waits.
PATIENCE_S = 20.0


@dataclass
class Pending:
    """One device's update while its blobs arrive.

    Attributes:
        ref: SHA-256 of the update message.
        update: the message.
        blobs: complete blobs by hash.
        payload: the message's bytes.
        parts: blobs not complete yet.
        touched: when something of it last came, by the coordinator's clock.
    """

    ref: str
    update: Update | FloatUpdate
    blobs: dict[str, bytes]
    payload: bytes = b""
    parts: dict[str, Assembly] = field(default_factory=dict)
    asked: set[tuple[str, int]] = field(default_factory=set)
    touched: float = 0.0

    @classmethod
    def open(
        cls,
        ref: str,
        update: Update | FloatUpdate,
        sizes: dict[str, int],
        known: Callable[[str], bytes | None],
        payload: bytes,
    ) -> Pending:
        """Sorts the blobs of an update into those that are known and those to ask for."""
        blobs, parts = {}, {}
        for sha256, size in sizes.items():
            data = known(sha256)
            if data is not None and len(data) == size:
                blobs[sha256] = data
            else:
                parts[sha256] = Assembly(sha256, size)
        return cls(ref, update, blobs, payload, parts)

    @property
    def complete(self) -> bool:
        """Whether every blob is there."""
        return not self.parts

    def wants(self) -> tuple[Want, ...]:
        """The next chunks to ask for, and remembers having asked."""
        asked = window(self.parts.values(), MAX_WANTS)
        self.asked = {(sha256, index) for sha256, indices in asked.items() for index in indices}
        return tuple(Want(sha256, bitmap_of(indices, self.parts[sha256].count)) for sha256, indices in asked.items())

    def add(self, chunk: Chunk) -> bool:
        """Puts a chunk in place; returns whether all that was asked for has now come.

        Raises:
            ProtocolError: a chunk nobody asked for; HashError: a blob whose bytes have another hash.
        """
        if chunk.sha256 in self.blobs:
            return False
        part = self.parts.get(chunk.sha256)
        if part is None:
            raise ProtocolError(f"chunk of blob {chunk.sha256[:12]}, which the update does not name")
        part.add(chunk)
        self.asked.discard((chunk.sha256, chunk.index))
        if not part.missing:
            try:
                self.blobs[chunk.sha256] = part.finish()
            except HashError:
                self.asked.clear()
                raise
            del self.parts[chunk.sha256]
        return not self.asked


@dataclass
class Inbox:
    """The uploads under way, in a bounded number of places, and the updates that wait for one.

    Attributes:
        uploads: by device.
        waiting: message of each device that waits, the first one first.
    """

    uploads: dict[str, Pending] = field(default_factory=dict)
    waiting: dict[str, bytes] = field(default_factory=dict)

    def room_for(self, device: str, payload: bytes, now: float) -> bool:
        """Whether an upload may begin now; else it waits for its turn.

        Args:
            device: whose.
            payload: its update message.
            now: the coordinator's clock; an upload that has stood still for `PATIENCE_S` gives up its place.
        """
        self.waiting.pop(device, None)
        others = len(self.uploads) - (device in self.uploads)
        if others < UPLOADS:
            return True
        for name, pending in list(self.uploads.items()):
            if not 0 <= now - pending.touched < PATIENCE_S:
                del self.uploads[name]  # it will say again what it has
                return True
        self.waiting[device] = payload
        return False

    def next_waiting(self) -> tuple[str, bytes] | None:
        """The device that has waited longest and its message, if there is a place for it."""
        if not self.waiting or len(self.uploads) >= UPLOADS:
            return None
        device = next(iter(self.waiting))
        return device, self.waiting.pop(device)

    def drop(self, device: str) -> None:
        """Forgets what a device sends: its plan has changed, or it has given up."""
        self.uploads.pop(device, None)
        self.waiting.pop(device, None)

    def clear(self) -> None:
        """Forgets everything: the round has closed."""
        self.uploads.clear()
        self.waiting.clear()
