"""Exact, order-free aggregation (paper eq. 15).

Every contribution becomes integers in fixed units first, rounded one by one; from there on there are only integer
additions, which commute and associate. So arrival order, the shape of the merge tree and the number of workers cannot
change one bit of the sums, and the one division at the end sees the same numbers.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np

from fedmpq.coordinator import quantise
from fedmpq.coordinator.fixed import I64, rdiv, rdiv_array, shifted_array
from fedmpq.coordinator.global_model import GlobalLayer, GlobalModel
from fedmpq.coordinator.layout import Layout
from fedmpq.errors import FormatError, RoundError

#: Largest sum of client weights of a round: a change is below 2**38 (WEIGHT_LIMIT twice), 38 + 25 = 63 bits.
WEIGHT_TOTAL = (1 << 25) - 1

Mode = Literal["models", "changes"]


def weight_shift(weights: Iterable[int]) -> int:
    """How far the round's client weights |D_k| * b_k are shifted down so that no sum can overflow.

    Fixed when the round is configured, from everyone selected, before an update arrives. 0 up to a total of 2**25.
    """
    total, count = 0, 0
    for weight in weights:
        total, count = total + weight, count + 1
    if count > WEIGHT_TOTAL // 2:
        raise RoundError(f"{count} clients in one round, at most {WEIGHT_TOTAL // 2} can be summed exactly")
    shift = 0
    while (total >> shift) + 2 * count > WEIGHT_TOTAL:
        shift += 1
    return shift


def scaled_weight(weight: int, shift: int) -> int:
    """One client's weight after the round's shift, at least 1."""
    return max(1, (weight + ((1 << shift) >> 1)) >> shift)


@dataclass
class PartialSum:
    """Sums over any subset of a round's clients; merging is addition.

    Attributes:
        layout: the program's layers.
        mode: average the clients' models, or their changes (end minus start).
        clients: number of contributions.
        weight: sum of the clients' weights p_k (unnormalised).
        bits: per layer, sum of weight * n_k.
        layers: per layer, the weighted sums in the global model's units.
        squares: per layer and channel, sum of weight * mean**2, for the pooled variance.
    """

    layout: Layout
    mode: Mode
    clients: int
    weight: int
    bits: list[int]
    layers: list[GlobalLayer]
    squares: list[list[int]]

    @classmethod
    def zero(cls, layout: Layout, mode: Mode) -> PartialSum:
        """The sum over nobody."""
        layers = []
        for shape in layout.layers:
            blank = GlobalLayer.blank(shape)
            blank.gamma[:] = 0
            blank.var = [0] * len(blank.var)
            layers.append(blank)
        squares = [[0] * len(layer.mean) for layer in layers]
        return cls(layout, mode, 0, 0, [0] * len(layers), layers, squares)

    def add(
        self,
        weight: int,
        bits: Sequence[int],
        end: Sequence[GlobalLayer],
        start: Sequence[GlobalLayer] | None = None,
    ) -> None:
        """Counts one client.

        Args:
            weight: p_k as an integer (scaled_weight).
            bits: its final bit-width per layer.
            end: its layers after local training, in global units.
            start: its layers before (needed by mode "changes", weights only).
        """
        if weight < 1 or self.weight + weight > WEIGHT_TOTAL:
            raise RoundError(f"client weight {weight} would pass the overflow bound of the round")
        if self.mode == "changes" and start is None:
            raise ValueError("mode 'changes' needs the client's starting weights")
        self.clients += 1
        self.weight += weight
        for index, (total, layer) in enumerate(zip(self.layers, end, strict=True)):
            self.bits[index] += weight * bits[index]
            moved = layer.weights if self.mode == "models" or start is None else layer.weights - start[index].weights
            total.weights += weight * moved
            total.gamma += weight * layer.gamma
            total.beta += weight * layer.beta
            total.bias += weight * layer.bias
            total.mean = [a + weight * b for a, b in zip(total.mean, layer.mean, strict=True)]
            total.var = [a + weight * b for a, b in zip(total.var, layer.var, strict=True)]
            self.squares[index] = [a + weight * b * b for a, b in zip(self.squares[index], layer.mean, strict=True)]

    def merge(self, other: PartialSum) -> None:
        """Adds another partial sum of the same round."""
        if (self.layout.program, self.mode) != (other.layout.program, other.mode):
            raise FormatError("partial sums of different rounds cannot be merged")
        if self.weight + other.weight > WEIGHT_TOTAL:
            raise RoundError("merged client weights would pass the overflow bound of the round")
        self.clients += other.clients
        self.weight += other.weight
        self.bits = [a + b for a, b in zip(self.bits, other.bits, strict=True)]
        for total, more in zip(self.layers, other.layers, strict=True):
            total.weights += more.weights
            total.gamma += more.gamma
            total.beta += more.beta
            total.bias += more.bias
            total.mean = [a + b for a, b in zip(total.mean, more.mean, strict=True)]
            total.var = [a + b for a, b in zip(total.var, more.var, strict=True)]
        self.squares = [
            [a + b for a, b in zip(left, right, strict=True)]
            for left, right in zip(self.squares, other.squares, strict=True)
        ]

    def mean_bits(self) -> list[int]:
        """round(n-bar) of eq. 15, per layer, within 1..8."""
        return [max(1, min(8, rdiv(total, self.weight))) for total in self.bits]

    def finish(self, base: GlobalModel, *, pooled_variance: bool = False) -> GlobalModel:
        """The next global model: the one division of eq. 15.

        Args:
            base: the round's global model; mode "changes" adds to it.
            pooled_variance: running variance of the pooled population (mean of variances plus variance of means)
                instead of the mean of variances.
        """
        if self.clients == 0:
            return base
        layers = []
        for total, old, squares in zip(self.layers, base.layers, self.squares, strict=True):
            weights = rdiv_array(total.weights, self.weight)
            if self.mode == "changes":
                weights = weights + old.weights
            mean = [rdiv(value, self.weight) for value in total.mean]
            var = [rdiv(value, self.weight) for value in total.var]
            if pooled_variance:
                # mean is in 2**-32, squared in 2**-64; the variance in 2**-48.
                var = [
                    v + max(0, (rdiv(square, self.weight) - m * m) >> 16)
                    for v, square, m in zip(var, squares, mean, strict=True)
                ]
            layers.append(
                GlobalLayer(
                    weights=np.clip(weights, -quantise.WEIGHT_LIMIT, quantise.WEIGHT_LIMIT),
                    gamma=rdiv_array(total.gamma, self.weight),
                    beta=rdiv_array(total.beta, self.weight),
                    mean=mean,
                    var=var,
                    bias=rdiv_array(total.bias, self.weight),
                )
            )
        return GlobalModel(base.layout, layers)

    def to_bytes(self) -> bytes:
        """All sums, for workers that send them and for comparing: equal sums give equal bytes."""
        parts = [
            struct.pack("<8sBQQ", b"FMPQPSUM", int(self.mode == "changes"), self.clients, self.weight),
            bytes.fromhex(self.layout.program),
        ]
        for bits, layer, squares in zip(self.bits, self.layers, self.squares, strict=True):
            parts.append(struct.pack("<q", bits))
            parts.extend(_le(values) for values in (layer.weights, layer.gamma, layer.beta, layer.bias))
            parts.extend(v.to_bytes(40, "little", signed=True) for v in (*layer.mean, *layer.var, *squares))
        return b"".join(parts)

    @classmethod
    def from_bytes(cls, data: bytes, layout: Layout) -> PartialSum:
        """Reads `to_bytes` back; FormatError if it is of another program or length."""
        total = cls.zero(layout, "models")
        if len(data) != len(total.to_bytes()) or data[:8] != b"FMPQPSUM" or data[25:57].hex() != layout.program:
            raise FormatError("not a partial sum of this program")
        _, changes, total.clients, total.weight = struct.unpack_from("<8sBQQ", data)
        total.mode = "changes" if changes else "models"
        at = 57
        for index, layer in enumerate(total.layers):
            (total.bits[index],) = struct.unpack_from("<q", data, at)
            at += 8
            for values in (layer.weights, layer.gamma, layer.beta, layer.bias):
                values[:] = np.frombuffer(data, "<i8", values.size, at)
                at += 8 * values.size
            co = len(layer.mean)
            wide = [int.from_bytes(data[at + 40 * i : at + 40 * i + 40], "little", signed=True) for i in range(3 * co)]
            at += 120 * co
            layer.mean, layer.var, total.squares[index] = wide[:co], wide[co : 2 * co], wide[2 * co :]
        return total


def go_on(merged: GlobalModel, base: GlobalModel, before: GlobalModel, momentum_q15: int) -> GlobalModel:
    """Server momentum (FedAvgM, Hsu et al. 2019): the weights also repeat a share of their last movement.

    The last movement is the difference of two global models, which are kept anyway: no other state.

    Args:
        merged: what the round's updates gave.
        base: the round's global model.
        before: the global model of the round before.
        momentum_q15: the share in 2**-15, below 1.
    """
    limit = quantise.WEIGHT_LIMIT
    layers = []
    for new, now, old in zip(merged.layers, base.layers, before.layers, strict=True):
        step = shifted_array((now.weights - old.weights) * momentum_q15, -15)
        layers.append(replace(new, weights=np.clip(new.weights + step, -limit, limit)))
    return GlobalModel(merged.layout, layers)


def _le(values: I64) -> bytes:
    return values.astype("<i8").tobytes()
