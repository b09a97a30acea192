"""Batch-norm running statistics between a device's y units and the global, bit-width free units.

A device keeps the running mean `rm` in 2**-16 y units and the variance `rv` in 2**-16 y units squared, and one y unit
is `step * 2**E` of "weight times base step" (layout.LayerShape.unit_exponent), which differs with its bit-widths. The
global model keeps the mean in 2**-32 and the variance in 2**-48 of those fixed units. The values span more than 64
bits, so they are Python integers, stored as 128-bit two's complement.
"""

from __future__ import annotations

from collections.abc import Sequence

from fedmpq.coordinator.fixed import Fx, shifted
from fedmpq.coordinator.layout import LayerShape

MEAN_BITS = 32
VAR_BITS = 48
_DEVICE_BITS = 16
#: Limits of the fields on the device: rm is an int32, rv stays below 2**47 (V8 < 2**39, section 5).
RM_LIMIT = (1 << 31) - 1
RV_LIMIT = (1 << 47) - 1
_WIDE_LIMIT = (1 << 126) - 1


def to_global(
    layer: LayerShape, bits: int, act_bits: int, step: Fx, rm: Sequence[int], rv: Sequence[int]
) -> tuple[list[int], list[int]]:
    """Mean and variance in global units from the device's fields at (bits, act_bits, step)."""
    mantissa, exponent = step[0], step[1] + layer.unit_exponent(bits, act_bits)
    mean_shift = exponent + MEAN_BITS - _DEVICE_BITS
    var_shift = 2 * exponent + VAR_BITS - _DEVICE_BITS
    square = mantissa * mantissa
    return (
        [_clamped(shifted(value * mantissa, mean_shift)) for value in rm],
        [_clamped(shifted(value * square, var_shift)) for value in rv],
    )


def to_device(
    layer: LayerShape, bits: int, act_bits: int, step: Fx, mean: Sequence[int], var: Sequence[int]
) -> tuple[list[int], list[int]]:
    """The device's fields (rm, rv) at (bits, act_bits, step), rounded half up and clamped to their widths."""
    mantissa, exponent = step[0], step[1] + layer.unit_exponent(bits, act_bits)
    mean_shift = exponent + MEAN_BITS - _DEVICE_BITS
    var_shift = 2 * exponent + VAR_BITS - _DEVICE_BITS
    square = mantissa * mantissa
    rm = [max(-RM_LIMIT, min(RM_LIMIT, _quotient(value, mantissa, mean_shift))) for value in mean]
    rv = [max(0, min(RV_LIMIT, _quotient(value, square, var_shift))) for value in var]
    return rm, rv


def _quotient(value: int, factor: int, shift: int) -> int:
    """`value / (factor * 2**shift)`, rounded half up."""
    if shift >= 0:
        factor <<= shift
    else:
        value <<= -shift
    return (2 * value + factor) // (2 * factor)


def _clamped(value: int) -> int:
    return max(-_WIDE_LIMIT, min(_WIDE_LIMIT, value))
