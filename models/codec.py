"""Bit-planes of integer weights (FedMPQ eq. 3, 4): packing, dropping, growing, density, quantising floats.

A weight is sign · magnitude with magnitude below 2^n. A plane is a bit string of ⌈θ/8⌉ bytes, bit j (least significant
first in each byte) for weight j in row-major OHWI order; pad bits are zero. Planes come as [sign, plane 1 (least
significant), …, plane n]; the sign bit is 1 for negative weights and 0 for zero.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal

import numpy as np
import numpy.typing as npt

from fedmpq.errors import FormatError, TruncatedError

Planes = Sequence[bytes]
Integers = npt.NDArray[np.int16]
Floats = npt.NDArray[np.float64]
Fx = tuple[int, int]
Scale = Literal["max", "mse"]

#: Most magnitude planes of a stored weight, guard planes included: it fits int16.
MAX_PLANES = 15
#: Layers without a larger weight count as zero; their step would leave the range of the arithmetic.
_SMALLEST_WEIGHT = 2.0**-100


def plane_bytes(theta: int) -> int:
    """Bytes of one plane of `theta` weights."""
    return (theta + 7) // 8


def pack(q: npt.ArrayLike, n: int) -> list[bytes]:
    """Integer weights of any shape to their n + 1 planes.

    Raises:
        ValueError: if a magnitude does not fit n bits.
    """
    values = np.asarray(q, dtype=np.int32).reshape(-1)
    magnitude = np.abs(values)
    if values.size and int(magnitude.max()) >> n:
        raise ValueError(f"a weight of magnitude {int(magnitude.max())} does not fit {n} planes")
    planes = [values < 0, *((magnitude >> i) & 1 != 0 for i in range(n))]
    return [np.packbits(plane, bitorder="little").tobytes() for plane in planes]


def unpack(planes: Planes, theta: int) -> Integers:
    """Planes to `theta` integer weights, flat.

    Raises:
        TruncatedError: a plane is not ⌈theta/8⌉ bytes long.
        FormatError: a pad bit is set, a zero weight is negative, or there are too many planes.
    """
    if not 2 <= len(planes) <= MAX_PLANES + 1:
        raise FormatError(f"a layer has {len(planes)} planes, expected a sign plane and 1 to {MAX_PLANES} more")
    sign, *magnitudes = (_bits(plane, theta, index) for index, plane in enumerate(planes))
    total = np.zeros(theta, np.int16)
    for i, plane in enumerate(magnitudes):
        total |= plane.astype(total.dtype) << i
    if bool(np.any(sign.astype(bool) & (total == 0))):
        raise FormatError("a zero weight has its sign bit set")
    return np.where(sign, -total, total).astype(total.dtype)


def drop(planes: Planes) -> list[bytes]:
    """One magnitude plane fewer: weights that use the top plane saturate to the new maximum (the step size stays).

    Raises:
        ValueError: if only one magnitude plane is left.
    """
    sign, *magnitudes = planes
    if len(magnitudes) < 2:
        raise ValueError("the last magnitude plane cannot be dropped")
    top = np.frombuffer(magnitudes.pop(), np.uint8)
    return [bytes(sign), *((np.frombuffer(plane, np.uint8) | top).tobytes() for plane in magnitudes)]


def grow(planes: Planes) -> list[bytes]:
    """One more magnitude plane, all zero: the values stay, the range doubles.

    Raises:
        ValueError: if there are MAX_PLANES already.
    """
    if len(planes) > MAX_PLANES:
        raise ValueError(f"a weight has at most {MAX_PLANES} magnitude planes")
    return [*(bytes(plane) for plane in planes), bytes(len(planes[0]))]


def density(planes: Planes, theta: int) -> tuple[float, ...]:
    """Share of set bits of each magnitude plane, least significant first (eq. 13)."""
    return tuple(int(_bits(plane, theta, i + 1).sum()) / theta for i, plane in enumerate(planes[1:]))


def quantise(weights: npt.ArrayLike, n: int, scale: Scale = "max", *, guard: int = 0) -> tuple[Integers, Fx]:
    """Float weights of any shape to integers |q| ≤ (2^n − 1)·2^guard of the same shape, and the step Δ as fx.

    The real weight is q · 2^−guard · Δ. `max` takes the largest magnitude as the top of the range (eq. 14); `mse`
    searches the clipping point with the smallest squared error on these weights, which is much better for n ≤ 3.
    """
    values = np.asarray(weights, dtype=np.float64)
    top = 2**n - 1
    largest = float(np.abs(values).max(initial=0.0))
    if not math.isfinite(largest):
        raise ValueError("weights must be finite")
    if largest < _SMALLEST_WEIGHT:
        return np.zeros(values.shape, np.int16), fx_from_float(1.0 / top)
    clip = largest if scale == "max" else _best_clip(values.reshape(-1), largest, top)
    step = fx_from_float(clip / top)
    limit = top << guard
    q = np.rint(values / (fx_to_float(step) / 2**guard))
    return np.clip(q, -limit, limit).astype(np.int16), step


def dequantise(q: npt.ArrayLike, step: Fx, *, guard: int = 0) -> Floats:
    """Real weights of integer ones."""
    values: Floats = np.asarray(q, dtype=np.float64) * (fx_to_float(step) / 2**guard)
    return values


def fx_from_float(value: float) -> Fx:
    """A non-negative float as (m, e), m · 2^e with 2^30 ≤ m < 2^31; truncated, exact for any float32."""
    if value == 0.0:
        return 0, 0
    mantissa, exponent = math.frexp(value)
    return int(mantissa * 2.0**31), exponent - 31


def fx_to_float(fx: Fx) -> float:
    """The value of an fx pair."""
    return math.ldexp(fx[0], fx[1])


def _bits(plane: bytes, theta: int, index: int) -> npt.NDArray[np.uint8]:
    if len(plane) != plane_bytes(theta):
        raise TruncatedError(f"plane {index} has {len(plane)} bytes, {theta} weights take {plane_bytes(theta)}")
    bits = np.unpackbits(np.frombuffer(plane, np.uint8), bitorder="little")
    if bool(bits[theta:].any()):
        raise FormatError(f"plane {index} has a pad bit set")
    return bits[:theta]


def _best_clip(values: Floats, largest: float, top: int) -> float:
    """The clipping point of least squared error: a coarse grid over the range, then a finer one around its best."""
    magnitude = np.abs(values)

    def error(clip: float) -> float:
        step = clip / top
        return float(np.square(magnitude - np.minimum(np.rint(magnitude / step), top) * step).sum())

    low, high = 0.1 * largest, largest
    best = largest
    for _ in range(3):
        grid = [*np.linspace(low, high, 25).tolist(), best]
        best = min(grid, key=error)
        width = (high - low) / 24
        low, high = max(best - width, 1e-3 * largest), min(best + width, largest)
    return best
