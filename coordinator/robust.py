"""Aggregation that a few bad clients cannot steer: bounded influence, trimmed means and medians, in exact integers.

Four rules (`robust` in the run's configuration), all in the fixed units of `aggregate`, so the order in which updates
came changes no bit:

- ``clip``: a layer's change is scaled down to `CLIP` times what the round's clients typically reach, then averaged.
  Stochastic rounding moves a weight by whole steps, so a client with few bits makes larger changes than one with many
  from the same gradient: its squared norm grows with its step. A change is therefore typical if its squared norm is
  that of the median client, or if it is after division by the client's step.
- ``trimmed``: the same, then the weighted trimmed mean of every coordinate: sorted by value, `trim_percent` of the
  clients' total weight is cut off at both ends (Yin et al. 2018).
- ``median``: the same with everything cut off but the middle: the weighted median.
- ``referee``: `clip` over the clients that `referee` leaves in the round.

Batch-norm parameters, statistics and the bias, few numbers in which every client moves every entry, are trimmed under
all of them. A client's weight is at most `WEIGHT_CAP` times the median one: sample counts are its own claim.

Unlike sums, these rules need all of a round's updates at once. They are read layer by layer, so memory grows with the
number of clients times the largest layer.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from math import isqrt
from typing import Any

import numpy as np

from fedmpq.coordinator import quantise
from fedmpq.coordinator.fixed import I64, Fx, median, rdiv, shifted, shifted_array
from fedmpq.coordinator.global_model import GlobalLayer, GlobalModel
from fedmpq.errors import RoundError

RULES = ("none", "clip", "trimmed", "median", "referee")
#: Largest norm of a layer's change, in 1/1024 of the typical one.
CLIP = 1536
WEIGHT_CAP = 3
#: Coordinates handled at a time.
_BLOCK = 1 << 14


@dataclass(frozen=True)
class Contribution:
    """One accepted update.

    Attributes:
        weight: p_k as an integer.
        bits: final bit-width of each layer.
        steps: Delta of each layer.
        layer: start and end of a layer in global units, read when asked for.
    """

    weight: int
    bits: Sequence[int]
    steps: Sequence[Fx]
    layer: Callable[[int], tuple[GlobalLayer, GlobalLayer]]


def cap_weights(raw: Mapping[str, int]) -> dict[str, int]:
    """Client weights, none above `WEIGHT_CAP` times the median."""
    if not raw:
        return {}
    middle = median(raw.values())
    return {name: min(weight, WEIGHT_CAP * middle) for name, weight in raw.items()}


def merge(
    rule: str, trim_percent: int, mode: str, base: GlobalModel, contributions: Sequence[Contribution]
) -> GlobalModel:
    """The next global model from a round's updates.

    Args:
        rule: "clip", "trimmed", "median" or "referee".
        trim_percent: of the total weight, cut off at both ends.
        mode: "models" or "changes" (aggregate.PartialSum).
        base: the round's global model.
        contributions: the updates, in any order.
    """
    if not contributions:
        return base
    weights = np.array([c.weight for c in contributions], np.int64)
    total = int(weights.sum())
    cut = (total - 1) // 2 if rule == "median" else min(total * trim_percent // 100, (total - 1) // 2)
    layers = []
    for index, old in enumerate(base.layers):
        ends, moves = [], []
        for contribution in contributions:
            start, end = contribution.layer(index)
            ends.append(end)
            moves.append(end.weights - start.weights)
        _clip(moves, [c.steps[index] for c in contributions])
        if mode == "models":
            # A clipped model: where the client began, plus what is left of its change.
            starts = [c.layer(index)[0].weights for c in contributions]
            moves = [start + move for start, move in zip(starts, moves, strict=True)]
        merged = trimmed_mean(moves, weights, 0 if rule in {"clip", "referee"} else cut)
        if mode != "models":
            merged = merged + old.weights

        def trimmed(values: Sequence[Any], dtype: Any = np.int64) -> Any:
            return trimmed_mean([np.array(v, dtype) for v in values], weights, cut)

        layers.append(
            GlobalLayer(
                weights=np.clip(merged, -quantise.WEIGHT_LIMIT, quantise.WEIGHT_LIMIT),
                gamma=trimmed([end.gamma for end in ends]),
                beta=trimmed([end.beta for end in ends]),
                mean=[int(v) for v in trimmed([end.mean for end in ends], object)],
                var=[int(v) for v in trimmed([end.var for end in ends], object)],
                bias=trimmed([end.bias for end in ends]),
            )
        )
    return GlobalModel(base.layout, layers)


def mean_bits(contributions: Sequence[Contribution]) -> list[int]:
    """round(n-bar) of eq. 15, per layer, within 1..8."""
    total = sum(c.weight for c in contributions)
    if total == 0:
        raise RoundError("no update to take bit-widths from")
    sums = [sum(c.weight * bits for c, bits in zip(contributions, layer, strict=True))
            for layer in zip(*(c.bits for c in contributions), strict=True)]  # fmt: skip
    return [max(1, min(8, rdiv(value, total))) for value in sums]


def trimmed_mean(values: Sequence[Any], weights: I64, cut: int) -> Any:
    """Weighted mean of each coordinate without the `cut` of weight at either end.

    Exact and free of order: equal values stand side by side, and what is kept of them together does not depend on who
    is first.

    Args:
        values: one array for each client, int64 below 2**38 or Python integers of any size.
        weights: of the clients, their sum below 2**25.
        cut: weight cut off below and above, less than half of the sum.

    Returns:
        One number for each coordinate, rounded half up.
    """
    total = int(weights.sum())
    kept_total = total - 2 * cut
    found = np.zeros_like(values[0])
    for begin in range(0, len(found), _BLOCK):
        block = np.stack([array[begin : begin + _BLOCK] for array in values])
        if cut == 0:  # the plain mean needs no order
            found[begin : begin + _BLOCK] = ((weights[:, None] * block).sum(axis=0) + total // 2) // total
            continue
        order = np.argsort(block, axis=0, kind="stable")
        upper = np.cumsum(weights[order], axis=0)
        lower = upper - weights[order]
        kept = np.maximum(0, np.minimum(upper, total - cut) - np.maximum(lower, cut))
        sums = (kept * np.take_along_axis(block, order, axis=0)).sum(axis=0)
        found[begin : begin + _BLOCK] = (sums + kept_total // 2) // kept_total
    return found


def _clip(moves: list[I64], steps: Sequence[Fx]) -> None:
    """Scales changes that are too large, in place; see the module's text for what too large is."""
    if len(moves) < 3:
        return
    squares = [_square(move) for move in moves]
    units = [max(1, shifted(mantissa, exponent + quantise.WEIGHT_BITS)) for mantissa, exponent in steps]
    typical = median(squares)
    typical_by_step = median([(square << 32) // unit for square, unit in zip(squares, units, strict=True)])
    for index, (square, unit) in enumerate(zip(squares, units, strict=True)):
        allowed = max(typical, typical_by_step * unit >> 32) * CLIP**2 >> 20
        if square > allowed:
            share = (isqrt(allowed) << 15) // isqrt(square)
            moves[index] = shifted_array(moves[index] * share, -15)


def _square(move: I64) -> int:
    """Squared norm in 2**-32: changes, below 2**38, are taken in 2**-16 so that the sum fits int64."""
    coarse = shifted_array(move, -16)
    return int((coarse * coarse).sum())
