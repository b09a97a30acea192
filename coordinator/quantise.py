"""Global fixed-point weights to n-bit integers and back, in integer arithmetic only (paper eq. 3 and 14).

The result depends on nothing but the weights and the options, so a restarted coordinator, a worker process and a
test derive the same planes to the bit.
"""

from __future__ import annotations

from typing import Literal

import numpy as np
from numpy.typing import NDArray

from fedmpq.coordinator import fixed
from fedmpq.coordinator.fixed import I64, Fx

#: Fraction bits of a global weight.
WEIGHT_BITS = 32
#: Global weights stay below 32 in size, so that sums over a fleet fit 63 bits (see aggregate.WEIGHT_TOTAL).
WEIGHT_LIMIT = (1 << (WEIGHT_BITS + 5)) - 1

Scale = Literal["max", "mse"]
Rounding = Literal["nearest", "stochastic"]

_BINS = 4095
_CANDIDATES = 128


def full_range(weights: I64, bits: int, scale: Scale) -> int:
    """S of eq. 14 in 2**-32: the largest weight ("max") or the clipping point of least squared error ("mse").

    The search tries s = j/128 of the maximum for j = 8..128 on a histogram of 4096 magnitudes, exactly in int64.
    """
    magnitude = np.abs(weights)
    top = int(magnitude.max(initial=0))
    if top == 0:
        return 1
    if scale == "max":
        return top
    counts = np.bincount((magnitude * _BINS + top // 2) // top, minlength=_BINS + 1).astype(np.int64)
    levels = (1 << bits) - 1
    value = np.arange(_BINS + 1, dtype=np.int64) * (_CANDIDATES * levels)
    best, best_error = _CANDIDATES, -1
    for candidate in range(_CANDIDATES, 7, -1):
        step = _BINS * candidate
        q = np.minimum(levels, (2 * value + step) // (2 * step))
        error = (value - q * step) // levels
        total = int((counts * error * error).sum())
        if best_error < 0 or total < best_error:
            best, best_error = candidate, total
    return max(1, top * best // _CANDIDATES)


def step_of(full: int, bits: int) -> Fx:
    """The step Delta = s / (2**n - 1) as an `fx`; `full` is s in 2**-32."""
    return fixed.div(fixed.norm(full, -WEIGHT_BITS), fixed.norm((1 << bits) - 1, 0))


def quantise(
    weights: I64, bits: int, step: Fx, rounding: Rounding = "nearest", key: tuple[int, int] = (0, 0)
) -> NDArray[np.int16]:
    """Integers q with |q| <= 2**bits - 1 and q * step close to the weights.

    Args:
        weights: flat, in 2**-32.
        bits: magnitude planes n.
        step: Delta.
        rounding: to nearest (halves away from zero) or unbiased stochastic with 24 random bits.
        key: random stream of the stochastic rounding.
    """
    mantissa, exponent = step
    levels = (1 << bits) - 1
    shift = -WEIGHT_BITS - exponent
    magnitude = np.abs(weights)
    # Weights beyond the clipping point saturate; clipping first keeps the products below 2**62.
    limit = fixed.shifted(mantissa * (levels + 1), exponent + WEIGHT_BITS)
    magnitude = np.minimum(magnitude, max(1, limit))
    numerator, denominator = (magnitude << shift, mantissa) if shift >= 0 else (magnitude, mantissa << -shift)
    if rounding == "nearest":
        q = (2 * numerator + denominator) // (2 * denominator)
    else:
        q = numerator // denominator
        remainder = numerator - q * denominator
        # P(up) = remainder / denominator, compared in 24 bits; denominators are below 2**62 and at least 2**30.
        drop = max(0, denominator.bit_length() - 31)
        threshold = ((remainder >> drop) << 24) // max(1, denominator >> drop)
        q = q + ((fixed.random_words(key, weights.size) >> np.uint32(8)).astype(np.int64) < threshold)
    signed: I64 = np.sign(weights) * np.minimum(q, levels)
    return signed.astype(np.int16)


def dequantise(q: NDArray[np.int16], step: Fx) -> I64:
    """`q * step` in 2**-32, rounded half up; |q * step| is within WEIGHT_LIMIT."""
    mantissa, exponent = step
    return fixed.shifted_array(q.astype(np.int64) * mantissa, exponent + WEIGHT_BITS)
