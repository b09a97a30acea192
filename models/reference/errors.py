"""Error tensors and how two contributions to one activation merge (section 7)."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from fedmpq.models.reference.fx import rshift_even, sat16


class Error(NamedTuple):
    """Gradient of the loss sum, `values · 2^exponent` per base step of the activation; values are int16."""

    values: Tensor
    exponent: int

    @property
    def largest(self) -> int:
        """The maximum of |values|, exact."""
        return int(self.values.abs().max())


def merge(first: Error | None, second: Error) -> Error:
    """The sum of two contributions at an exponent where both and their sum keep 15 bits."""
    if first is None:
        return second
    size1, size2 = first.largest, second.largest
    if size1 == 0:
        return second
    if size2 == 0:
        return first
    exponent = max(size1.bit_length() + first.exponent, size2.bit_length() + second.exponent) + 1 - 15
    total = _moved(first, exponent) + _moved(second, exponent)
    return Error(sat16(total), exponent)


def _moved(error: Error, exponent: int) -> Tensor:
    amount = exponent - error.exponent
    return rshift_even(error.values, amount) if amount <= 30 else torch.zeros_like(error.values)
