"""Error tensors and how two contributions to one activation merge (section 7)."""

from __future__ import annotations

from dataclasses import dataclass

from fedmpq.export.onnx_step.graph import Value
from fedmpq.export.onnx_step.numbers import bitlen, reven_by


@dataclass(frozen=True)
class Error:
    """Gradient `values · 2^exponent` per base step; values are int16, the exponent is computed."""

    values: Value
    exponent: Value

    @property
    def largest(self) -> Value:
        """The maximum of |values|."""
        return self.values.abs().largest()


def merge(first: Error | None, second: Error) -> Error:
    """The sum of two contributions at an exponent where both and their sum keep 15 bits."""
    if first is None:
        return second
    size1, size2 = first.largest, second.largest
    exponent = (bitlen(size1) + first.exponent).max(bitlen(size2) + second.exponent) + (1 - 15)
    total = (_moved(first, exponent) + _moved(second, exponent)).clamp(-32767, 32767)
    empty1, empty2 = size1.equals(0), size2.equals(0)
    values = empty1.where(second.values, empty2.where(first.values, total))
    return Error(values, empty1.where(second.exponent, empty2.where(first.exponent, exponent)))


def _moved(error: Error, exponent: Value) -> Value:
    amount = exponent - error.exponent
    return (amount > 30).where(0, reven_by(error.values, amount))
