"""The order in which local training visits its samples: part of the definition, so that every engine sees the same.

Epoch e of a round permutes the shard by Fisher-Yates with the counter hash of docs/arithmetic.md section 2, keyed by
(seed, round, client, e, stream 0xffff0001): for i = N-1 down to 1, swap i with ``(rand(key, i)·(i+1)) >> 32``. The
permutation is cut into full batches; the rest of the epoch is left out (it is another rest in the next epoch). A
shard smaller than a batch is one short batch.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterator
from typing import Final

STREAM: Final = 0xFFFF0001
_MASK: Final = 0xFFFFFFFF


def mix(x: int, k1: int) -> int:
    """The mixing step of docs/arithmetic.md section 2 on uint32."""
    x ^= x >> 16
    x = x * 0x7FEB352D & _MASK
    x ^= k1
    x ^= x >> 15
    x = x * 0x846CA68B & _MASK
    return x ^ x >> 16


def derive(*values: int) -> tuple[int, int]:
    """The key (k0, k1) of (seed, round, client, step, stream), each uint32."""
    k0, k1 = 0x9E3779B9, 0x85EBCA6B
    for v in values:
        k0 = mix(k0 ^ v, k1)
        k1 = mix(k1 + v & _MASK, k0)
    return k0, k1


def rand(key: tuple[int, int], index: int) -> int:
    """Random number `index` of a stream, uint32."""
    return mix(index + key[0] & _MASK, key[1])


def permutation(count: int, key: tuple[int, int]) -> array[int]:
    """A permutation of 0..count-1 (uint32 array)."""
    order = array("I", range(count))
    for i in range(count - 1, 0, -1):
        j = rand(key, i) * (i + 1) >> 32
        order[i], order[j] = order[j], order[i]
    return order


def batches(count: int, batch: int, epochs: int, seed: int, round_: int, client: int) -> Iterator[array[int]]:
    """The batches (sample numbers) of a whole local training."""
    size = min(batch, count)
    for epoch in range(epochs):
        order = permutation(count, derive(seed, round_, client, epoch, STREAM))
        for start in range(0, count - size + 1, size):
            yield order[start : start + size]


def steps_per_epoch(count: int, batch: int) -> int:
    """Batches of one epoch."""
    return count // min(batch, count)
