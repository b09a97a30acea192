"""Integer scales and rounding (docs/arithmetic.md, notation and section 1).

Scalars are Python integers, so they cannot overflow; tensors are int64 and each function states the bound under which
it is exact. A function that takes either is written so that the same expression means the same on both.
"""

from __future__ import annotations

import math
from typing import NamedTuple, TypeVar

import torch
from torch import Tensor

IntLike = TypeVar("IntLike", int, Tensor)

#: Largest value `apply` returns; results saturate to plus or minus this.
SATURATED = 2**31 - 1


class Fx(NamedTuple):
    """A non-negative number `m · 2^e` with m = 0 or 2^30 ≤ m < 2^31."""

    m: int
    e: int

    def shifted(self, power: int) -> Fx:
        """This number times `2^power`, exactly."""
        return Fx(self.m, self.e + power) if self.m else self

    def __float__(self) -> float:
        """The nearest double, exact in the range of normal doubles."""
        return math.ldexp(self.m, self.e)


def norm(value: int, e: int = 0) -> Fx:
    """`value · 2^e` for value ≥ 0, truncated to 31 significant bits."""
    if value == 0:
        return Fx(0, 0)
    extra = value.bit_length() - 31
    return Fx(value >> extra if extra > 0 else value << -extra, e + extra)


def mul(a: Fx, b: Fx) -> Fx:
    """The product, truncated."""
    return norm(a.m * b.m, a.e + b.e)


def div(a: Fx, b: Fx) -> Fx:
    """The quotient, truncated; b must not be zero."""
    return norm((a.m << 31) // b.m, a.e - b.e - 31)


def from_float(value: float) -> Fx:
    """A non-negative float, truncated to 31 significant bits (exact for any float32). For the host only."""
    mantissa, exponent = math.frexp(value)
    return norm(int(mantissa * 2.0**53), exponent - 53)


def bitlen(x: Tensor) -> Tensor:
    """Number of significant bits of each non-negative int64; 0 for 0."""
    bits = torch.zeros_like(x)
    rest = x
    for step in (32, 16, 8, 4, 2, 1):
        large = rest >= 1 << step
        bits = bits + large * step
        rest = torch.where(large, rest >> step, rest)
    return bits + (rest > 0)


def isqrt(x: Tensor) -> Tensor:
    """⌊√x⌋ of each non-negative int64 below 2^52: a double's root, corrected by at most one."""
    root = x.to(torch.float64).sqrt().to(torch.int64)
    root = root - (root * root > x).to(torch.int64)
    return root + ((root + 1) * (root + 1) <= x).to(torch.int64)


def rshift(x: IntLike, s: int) -> IntLike:
    """`x / 2^s` rounded half up; a left shift for s ≤ 0, zero for s > 62. Needs |x| + 2^(s−1) < 2^63."""
    if s <= 0:
        return x << -s
    if s > 62:
        return x * 0
    return (x + (1 << (s - 1))) >> s


def rshift_even(x: Tensor, s: int) -> Tensor:
    """`x / 2^s` rounded to nearest, ties to even, so that sums over many x carry no bias; else like `rshift`."""
    if s <= 0 or s > 62:
        return rshift(x, s)
    return (x + (1 << (s - 1)) - 1 + (x >> s & 1)) >> s


def rshift_each(x: Tensor, s: Tensor) -> Tensor:
    """`rshift` with an amount for each element, |s| ≤ 62."""
    right = s.clamp(min=0)
    half = (torch.ones_like(right) << right) >> 1
    return torch.where(s > 0, (x + half) >> right, x << (-s).clamp(min=0))


def rdiv(a: IntLike, d: int) -> IntLike:
    """`a / d` rounded to nearest, halves up; d > 0."""
    return (a + d // 2) // d


def sat16(x: Tensor) -> Tensor:
    """Clamp to ±32767."""
    return x.clamp(-32767, 32767)


def apply(x: Tensor, a: Fx) -> Tensor:
    """`x · a` rounded, saturated to ±(2^31 − 1), for |x| ≤ 2^31."""
    if a.m == 0 or -a.e > 62:
        return torch.zeros_like(x)
    if a.e > 0:  # already |x| = 1 gives 2^30 · 2
        return x.sign() * SATURATED
    return rshift(x * a.m, -a.e).clamp(-SATURATED, SATURATED)


def apply_int(x: int, a: Fx) -> int:
    """`apply` of one integer."""
    return int(apply(torch.tensor(x), a))


def apply64(x: Tensor, a: Fx) -> Tensor:
    """`apply` for any int64 below 2^62: bits beyond 31 are rounded away first, element by element."""
    extra = (bitlen(x.abs()) - 31).clamp(min=0)
    result = torch.zeros_like(x)
    for j in torch.unique(extra).tolist():
        result = torch.where(extra == j, apply(torch.where(extra == j, rshift(x, j), 0), a.shifted(j)), result)
    return result
