"""Batch-norm: statistics, normaliser, running statistics, backward (sections 5 and 7); y and x̂ are [B, h·w, C]."""

from __future__ import annotations

from dataclasses import dataclass

from fedmpq.export.onnx_step.graph import Value
from fedmpq.export.onnx_step.numbers import bitlen, isqrt, power_of_two, rdiv, rshift, rshift_by, words

_ERROR_FRACTION = 22


@dataclass(frozen=True)
class Moments:
    """Mean in 1/256 of a y unit, variance in 1/256 of its square."""

    mu8: Value
    v8: Value


@dataclass(frozen=True)
class Normaliser:
    """x̂ = (y·a + b) >> sh."""

    a: Value
    b: Value
    sh: Value


@dataclass(frozen=True)
class Backward:
    """Error at the accumulator in 8 bits, its exponent relative to E, and the sums behind dβ and dγ."""

    e8: Value
    s: Value
    sum_e: Value
    sum_ex: Value


def moments(y: Value, m: Value) -> Moments:
    """Statistics over batch and positions (m of them)."""
    sum1, sum2 = y.sum([0, 1]), (y * y).sum([0, 1])
    mu0 = rdiv(sum1, m)
    centred1 = sum1 - m * mu0
    centred2 = sum2 - mu0 * sum1 * 2 + m * mu0 * mu0
    d8 = rdiv(centred1 * 256, m)
    v8 = (centred2 * 256).floordiv(m) - ((d8 * d8 + 128) >> 8) + 1
    return Moments(mu0 * 256 + d8, v8.max(1))


def normaliser(stats: Moments) -> Normaliser:
    """Integer 512 / √V8 as a 14-bit factor and a shift of 5 to 24."""
    bits = bitlen(stats.v8)
    j = 30 - bits - (bits & 1)
    scaled = stats.v8.sar((-j).max(0)) * power_of_two(j.graph, j.max(0))
    root = isqrt(scaled, 15)
    a = rdiv(root * 0 + 2**28, root).min(2**14 - 1)
    sh = 19 - (j >> 1)
    return Normaliser(a, power_of_two(j.graph, sh - 1) - ((stats.mu8 * a + 128) >> 8), sh)


def normalise(y: Value, n: Normaliser) -> Value:
    """x̂ of every position, ±127."""
    return (y * n.a + n.b).sar(n.sh).clamp(-127, 127)


def update_running(rm: Value, rv: Value, stats: Moments) -> tuple[Value, Value]:
    """Moving averages with weight 1/8."""
    return rm + rshift(stats.mu8 * 256 - rm, 3), rv + rshift(stats.v8 * 256 - rv, 3)


def running(rm: Value, rv: Value) -> Moments:
    """The statistics evaluation uses."""
    return Moments(rshift(rm, 8), rshift(rv, 8).max(1))


def backward(
    e: Value,
    xhat: Value,
    gamma: Value,
    n: Normaliser,
    key: tuple[Value, Value],
    m: Value,
    per_sample: tuple[int, int],
    *,
    constant: bool,
) -> Backward:
    """Masked error E through affine and normalisation, rounded to 8 bits at random.

    per_sample is (h·w, C); `constant`: the statistics were not those of the batch.
    """
    s1, s2 = e.sum([0, 1]), (e * xhat).sum([0, 1])
    largest = e.abs().largest([0, 1])
    live = largest > 0
    c = live.where(gamma * n.a, 0)
    d = 24 - n.sh
    spread = largest + 1
    if not constant:
        spread = spread + rdiv(s1.abs(), m) + rdiv(s2.abs() * 127, m * 1024) + 1
    bound = ((c.abs() * spread) >> 8) * power_of_two(d.graph, d)
    magnitude = bound.largest()
    silent = magnitude.equals(0)
    s = silent.where(0, bitlen(magnitude) - 7)
    ce = silent.where(0, rshift_by(c, s - d - 14))
    p = e * ce
    if not constant:
        p = p - xhat * rdiv(ce * s2, m * 1024) - rdiv(ce * s1, m)
    positions, channels = per_sample
    dither = (words(key, m * channels) & (2**_ERROR_FRACTION - 1)).reshape([-1, positions, channels])
    e8 = ((p + dither) >> _ERROR_FRACTION).clamp(-127, 127)
    return Backward(silent.where(0, e8), s, s1, s2)
