"""Aggregation by workers: each sums a part of a round's updates, the sums are merged, and the bytes are the same.

A worker gets everything as bytes and gives `PartialSum.to_bytes` back, so it may be a process, or a machine. How a
round is cut into parts changes nothing, because nothing but integers is added (see aggregate).
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable
from concurrent.futures import Executor, Future
from dataclasses import dataclass
from itertools import islice

from fedmpq.coordinator import updates
from fedmpq.coordinator.aggregate import Mode, PartialSum
from fedmpq.coordinator.config import RunConfig
from fedmpq.coordinator.global_model import GlobalModel
from fedmpq.coordinator.layout import Layout, of_program
from fedmpq.coordinator.serving import Serving
from fedmpq.edge_runtime import protocol, topics


@dataclass(frozen=True)
class RoundInput:
    """What is equal for all updates of a round: the program, its global model, configuration and number."""

    program: bytes
    model: bytes
    config: RunConfig
    round_no: int

    @property
    def mode(self) -> Mode:
        """What is averaged."""
        return "models" if self.config.aggregation == "models" else "changes"


@dataclass(frozen=True)
class UpdateInput:
    """One accepted update: its message, its blobs in one piece, the weight and bits it was given."""

    manifest: bytes
    pack: bytes
    weight: int
    start_bits: tuple[int, ...]


#: Sums a number of updates of a round, in whatever way: none of the ways changes a bit.
Summer = Callable[[RoundInput, Iterable[UpdateInput], int], PartialSum]

#: Updates in one share at most, about ten megabytes of ResNet20 at 4 bits.
SHARE = 64


def part(given: RoundInput, given_updates: Iterable[UpdateInput]) -> bytes:
    """One worker's share as `PartialSum.to_bytes`."""
    layout = of_program(given.program)
    return add_all(layout, Serving(GlobalModel.from_bytes(given.model, layout), given.config, given.round_no), given,
                   given_updates).to_bytes()  # fmt: skip


def add_all(layout: Layout, serving: Serving, given: RoundInput, given_updates: Iterable[UpdateInput]) -> PartialSum:
    """The exact sum over updates."""
    total = PartialSum.zero(layout, given.mode)
    for update in given_updates:
        manifest = protocol.decode(topics.UPDATE, update.manifest)
        assert isinstance(manifest, protocol.Update)
        blobs = updates.unpack_file(layout, manifest.layers, update.pack)
        contents = updates.read_contents(layout, manifest.layers, blobs.__getitem__)
        end = updates.to_global(layout, contents, given.config.act_bits)
        start = [serving.start(index, n) for index, n in enumerate(update.start_bits)]
        total.add(update.weight, [layer.bits for layer in manifest.layers], end, start)
    return total


def gather(
    given: RoundInput,
    all_updates: Iterable[UpdateInput],
    count: int,
    workers: int,
    submit: Callable[[list[UpdateInput]], Future[bytes]],
) -> PartialSum:
    """Hands out shares, at most two a worker at a time, and merges what comes back.

    Args:
        given: of the round.
        all_updates: read one after the other, so that memory holds a few shares only.
        count: number of updates.
        workers: how many work at a time.
        submit: starts `part` on a share somewhere.
    """
    layout = of_program(given.program)
    total = PartialSum.zero(layout, given.mode)
    waiting: deque[Future[bytes]] = deque()
    source = iter(all_updates)
    size = max(1, min(SHARE, -(-count // max(1, workers))))
    while share := list(islice(source, size)):
        waiting.append(submit(share))
        if len(waiting) >= 2 * workers:
            total.merge(PartialSum.from_bytes(waiting.popleft().result(), layout))
    for future in waiting:
        total.merge(PartialSum.from_bytes(future.result(), layout))
    return total


def in_processes(pool: Executor, workers: int) -> Summer:
    """Sums in the workers of an executor."""

    def sums(given: RoundInput, all_updates: Iterable[UpdateInput], count: int) -> PartialSum:
        return gather(given, all_updates, count, workers, lambda share: pool.submit(part, given, share))

    return sums
