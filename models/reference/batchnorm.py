"""Batch normalisation in integers: statistics, normaliser, running statistics, backward (sections 5 and 7).

Per-channel quantities are int64 [C]; y and x̂ are [B, H, W, C].
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from fedmpq.models.reference.fx import bitlen, isqrt, rdiv, rshift, rshift_each
from fedmpq.models.reference.rng import Key, stochastic_shift

_MAPS = (0, 1, 2)
#: Bits below one unit of e8 in which the backward formula is evaluated; the dither fills them.
_ERROR_FRACTION = 22
_RUNNING_VARIANCE_LIMIT = 2**47 - 1


class Moments(NamedTuple):
    """Mean in 1/256 of a y unit, variance in 1/256 of its square (at least 1)."""

    mu8: Tensor
    v8: Tensor


class Normaliser(NamedTuple):
    """x̂ = (y·a + b) >> sh, 32 per standard deviation."""

    a: Tensor
    b: Tensor
    sh: Tensor


def moments(y: Tensor) -> Moments:
    """Statistics of a micro-batch; |y| < 2^15, so Σy² < 2^30·m."""
    m = y.numel() // y.shape[-1]
    sum1, sum2 = y.sum(_MAPS), (y * y).sum(_MAPS)
    mu0 = rdiv(sum1, m)
    centred1 = sum1 - m * mu0
    centred2 = sum2 - 2 * mu0 * sum1 + m * mu0 * mu0
    d8 = rdiv(256 * centred1, m)
    v8 = 256 * centred2 // m - ((d8 * d8 + 128) >> 8) + 1
    return Moments(256 * mu0 + d8, v8.clamp(min=1))


def normaliser(stats: Moments) -> Normaliser:
    """Integer 512 / √V8 as a 14-bit factor and a shift of 5 to 24."""
    bits = bitlen(stats.v8)
    j = torch.where(bits % 2 == 1, 29 - bits, 30 - bits)  # even, and V8·2^j has 29 or 30 bits
    scaled = torch.where(j >= 0, stats.v8 << j.clamp(min=0), stats.v8 >> (-j).clamp(min=0))
    root = isqrt(scaled)
    a = ((2**28 + root // 2) // root).clamp(max=2**14 - 1)
    sh = 19 - j // 2
    b = -((stats.mu8 * a + 128) >> 8) + (torch.ones_like(sh) << (sh - 1))
    return Normaliser(a, b, sh)


def normalise(y: Tensor, n: Normaliser) -> Tensor:
    """x̂ of every position, ±127 (±4 σ); the product stays below 2^31."""
    return ((y * n.a + n.b) >> n.sh).clamp(-127, 127)


def update_running(rm: Tensor, rv: Tensor, stats: Moments) -> tuple[Tensor, Tensor]:
    """Moving averages with weight 1/8; rm in 1/65536 of a y unit (int32), rv in 1/65536 of its square (int64)."""
    return rm + rshift(stats.mu8 * 256 - rm, 3), rv + rshift(stats.v8 * 256 - rv, 3)


def running_moments(rm: Tensor, rv: Tensor) -> Moments:
    """The statistics evaluation uses."""
    return Moments(rshift(rm, 8), rshift(rv, 8).clamp(min=1))


def rescale_running(rm: Tensor, rv: Tensor, j: int) -> tuple[Tensor, Tensor]:
    """Running statistics after the unit of y became 2^j times smaller (section 9)."""
    limit = 2**31 - 1
    return (rm << j).clamp(-limit, limit), (rv.clamp(max=2**47 >> 2 * j) << 2 * j).clamp(max=_RUNNING_VARIANCE_LIMIT)


class BackwardResult(NamedTuple):
    """Error at the accumulator, e8·2^(exponent of E + s − 28 − k), and the sums that are the gradients of β and γ."""

    e8: Tensor
    s: int
    sum_e: Tensor
    sum_ex: Tensor


def backward(
    e: Tensor, xhat: Tensor, gamma: Tensor, n: Normaliser, key: Key, *, constant: bool = False
) -> BackwardResult:
    """Error through affine and normalisation, stochastically rounded to 8 bits with one exponent for the layer.

    Args:
        e: masked error of the output, int16 values.
        xhat: as saved by the forward pass.
        gamma: [C], ±32767.
        n: the normaliser of the forward pass.
        key: random stream of this layer's errors.
        constant: statistics were constants, not those of the batch.
    """
    m = e.numel() // e.shape[-1]
    s1, s2 = e.sum(_MAPS), (e * xhat).sum(_MAPS)
    largest = e.abs().amax(_MAPS)
    live = largest > 0
    c = gamma * n.a
    d = 24 - n.sh
    through_moments = 0 if constant else rdiv(s1.abs(), m) + 1 + rdiv(127 * s2.abs(), 1024 * m)
    bound = torch.where(live, largest + through_moments + 1, 0)
    magnitude = int((((c.abs() * bound) >> 8) << d).max())
    if magnitude == 0:
        return BackwardResult(torch.zeros_like(e), 0, s1, s2)
    s = magnitude.bit_length() - 7
    ce = torch.where(live, rshift_each(torch.where(live, c, 0), s - d - 14), 0)
    p = e * ce  # |p| ≤ 2^29 and a little rounding
    if not constant:
        p = p - rdiv(ce * s1, m) - xhat * rdiv(ce * s2, 1024 * m)
    return BackwardResult(stochastic_shift(p, _ERROR_FRACTION, key).clamp(-127, 127), s, s1, s2)
