"""Exact scalar and array arithmetic of the coordinator: `fx` pairs, shifts and random bits of docs/arithmetic.md.

Scalars are Python integers (no width limit); arrays are numpy int64 whose callers have checked the bounds.
"""

from __future__ import annotations

from collections.abc import Collection

import numpy as np
from numpy.typing import NDArray

#: A scale `m * 2**e` with m = 0 or 2**30 <= m < 2**31.
Fx = tuple[int, int]
I64 = NDArray[np.int64]


def norm(value: int, exponent: int) -> Fx:
    """`value * 2**exponent` as an `fx`; the mantissa is truncated (section 1)."""
    if value == 0:
        return (0, 0)
    bits = value.bit_length()
    mantissa = value >> (bits - 31) if bits > 31 else value << (31 - bits)
    return (mantissa, exponent + bits - 31)


def mul(a: Fx, b: Fx) -> Fx:
    """Product of two scales, truncated."""
    return norm(a[0] * b[0], a[1] + b[1])


def div(a: Fx, b: Fx) -> Fx:
    """Quotient of two scales, truncated; b is not zero."""
    return norm((a[0] << 31) // b[0], a[1] - b[1] - 31)


def shifted(value: int, shift: int) -> int:
    """`value * 2**shift`, rounded half up where bits are lost."""
    if shift >= 0:
        return value << shift
    return (value + (1 << (-shift - 1))) >> -shift


def rdiv(value: int, divisor: int) -> int:
    """Nearest integer to `value / divisor`, halves up; divisor > 0."""
    return (value + divisor // 2) // divisor


def shifted_array(values: I64, shift: int) -> I64:
    """Elementwise `values * 2**shift` with round half up; the caller guarantees the range."""
    if shift >= 0:
        return values << shift
    if shift < -62:
        return np.zeros_like(values)
    return (values + (1 << (-shift - 1))) >> -shift


def rdiv_array(values: I64, divisor: int) -> I64:
    """Elementwise nearest integer to `values / divisor`, halves up; divisor > 0 and no overflow in the sum."""
    return (values + divisor // 2) // divisor


_MASK = 0xFFFFFFFF


def median(values: Collection[int]) -> int:
    """The middle of integers, the lower one of two."""
    return sorted(values)[(len(values) - 1) // 2]


def _mix(x: int, k1: int) -> int:
    x ^= x >> 16
    x = (x * 0x7FEB352D) & _MASK
    x ^= k1
    x ^= x >> 15
    x = (x * 0x846CA68B) & _MASK
    return x ^ (x >> 16)


def stream_key(seed: int, round_no: int, client: int, step: int, stream: int) -> tuple[int, int]:
    """Key of a random stream (section 2); every argument is taken modulo 2**32."""
    k0, k1 = 0x9E3779B9, 0x85EBCA6B
    for value in (seed, round_no, client, step, stream):
        k0 = _mix(k0 ^ (value & _MASK), k1)
        k1 = _mix((k1 + (value & _MASK)) & _MASK, k0)
    return k0, k1


def random_words(key: tuple[int, int], count: int) -> NDArray[np.uint32]:
    """`rand(key, i)` for i = 0..count-1."""
    x = np.arange(count, dtype=np.uint32) + np.uint32(key[0])
    x ^= x >> np.uint32(16)
    x *= np.uint32(0x7FEB352D)
    x ^= np.uint32(key[1])
    x ^= x >> np.uint32(15)
    x *= np.uint32(0x846CA68B)
    x ^= x >> np.uint32(16)
    return x
