"""Counter-based random bits (docs/arithmetic.md, section 2).

A random word depends on a key and an element's index only, so neither threads nor tiles nor devices change a result.
Words are uint32 values in int64 tensors.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from fedmpq.models.reference.fx import IntLike

_MASK = 0xFFFFFFFF
#: Stream of the crop and flip draws; layers use 4·l + 0, 1, 2.
AUGMENT_STREAM = 0xFFFF0000


class StepKey(NamedTuple):
    """What identifies one micro-batch of one client."""

    seed: int
    round: int
    client: int
    step: int


class Key(NamedTuple):
    """Two 32-bit words that select one random stream."""

    k0: int
    k1: int


def mix(x: IntLike, k1: int) -> IntLike:
    """A keyed permutation of uint32."""
    x = x ^ (x >> 16)
    x = (x * 0x7FEB352D) & _MASK
    x = x ^ k1
    x = x ^ (x >> 15)
    # The factor minus 2^32: equal modulo 2^32, and the product stays inside int64.
    x = (x * (0x846CA68B - 2**32)) & _MASK
    return x ^ (x >> 16)


def derive(key: StepKey, stream: int) -> Key:
    """The key of one stream of one step."""
    k0, k1 = 0x9E3779B9, 0x85EBCA6B
    for value in (*key, stream):
        k0 = mix(k0 ^ (value & _MASK), k1)
        k1 = mix((k1 + value) & _MASK, k0)
    return Key(k0, k1)


def words(key: Key, shape: tuple[int, ...], device: torch.device) -> Tensor:
    """One random word for each element of a tensor of this shape, row-major."""
    count = torch.Size(shape).numel()
    index = torch.arange(count, dtype=torch.int64, device=device)
    return mix((index + key.k0) & _MASK, key.k1).reshape(shape)


def stochastic_shift(x: Tensor, s: int, key: Key) -> Tensor:
    """`x / 2^s` rounded up or down at random without bias: floor after adding s random bits, 0 ≤ s ≤ 32."""
    return (x + (words(key, tuple(x.shape), x.device) & ((1 << s) - 1))) >> s
