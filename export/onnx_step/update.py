"""The update of weights and parameters, with momentum and Lasso (section 8)."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from fedmpq.export.onnx_step.graph import Value
from fedmpq.export.onnx_step.numbers import Fx, apply, bitlen, div, isqrt, mul, norm, power_of_two, rshift, words

FRACTION = 24
UPDATE_LIMIT, GRADIENT_LIMIT, VELOCITY_LIMIT = 2**30, 2**28, 2**29
PARAM_LIMITS = {"gamma": 32767 << 16, "beta": 2**30, "bias": 2**30}


@dataclass(frozen=True)
class Rates:
    """Rates of a step as graph values; momentum is None for a plan without it."""

    lr: Fx
    decay: Fx  #: lr · weight decay
    momentum: Value | None


@dataclass(frozen=True)
class Weights:
    """q and its momentum [rows, row length]; `planes` and `limit` are those of the stored q."""

    q: Value
    v8: Value | None
    ev: Value | None
    planes: int
    limit: int
    rows: int
    row_length: int

    @property
    def theta(self) -> int:
        """Number of weights."""
        return self.rows * self.row_length


def weight_rate(lr: Fx, step: Fx, guard: int, batch: Value) -> Fx:
    """Lr · 2^g / Δ² / batch."""
    return div(div(Fx(lr.m, lr.e + guard), mul(step, step)), norm(batch))


def update_weights(
    w: Weights, u: Value, rates: Rates, lasso: Fx | None, keys: tuple[tuple[Value, Value], tuple[Value, Value]]
) -> Weights:
    """The weights after one stochastically rounded step; `keys` are those of weights and momentum."""
    pull = apply(w.q, rates.decay.shifted(FRACTION)).clamp(-UPDATE_LIMIT, UPDATE_LIMIT)
    total = u + pull
    if lasso is not None:
        total = total + lasso_pull(w, lasso)
    if rates.momentum is None or w.v8 is None or w.ev is None:
        v, v8, ev = total.clamp(-UPDATE_LIMIT, UPDATE_LIMIT), None, None
    else:
        carried = w.v8 * power_of_two(w.q.graph, w.ev) * rates.momentum
        v = (total + rshift(carried, 15)).clamp(-UPDATE_LIMIT, UPDATE_LIMIT)
        ev = (bitlen(v.abs().largest([1], keep=True)) - 7).max(0)
        dither = words(keys[1], w.theta).reshape([w.rows, w.row_length]) & (power_of_two(v.graph, ev) - 1)
        v8 = (v + dither).sar(ev).clamp(-127, 127)
    dither = words(keys[0], w.theta).reshape([w.rows, w.row_length]) & (2**FRACTION - 1)
    q = (w.q - ((v + dither) >> FRACTION)).clamp(-w.limit, w.limit)
    return replace(w, q=q, v8=v8, ev=ev)


def lasso_pull(w: Weights, rate: Fx) -> Value:
    """Gradient of the group Lasso over planes (eq. 11, 12) times lr · λ, in 2^−24 of a stored step."""
    graph, magnitude = w.q.graph, w.q.abs()
    set_bits = [magnitude.logical_right(i) & 1 for i in range(w.planes)]
    counts = [bits.sum([0, 1]).reshape([1]) for bits in set_bits]
    count = graph.op("Concat", counts, axis=0)  # [planes]
    root = norm(isqrt((count * 2**20).max(1), 26), -10)
    ratio = div(rate, root)
    powers = graph.constant(np.arange(w.planes) + FRACTION)
    pull = apply(graph.constant(1), Fx(ratio.m, ratio.e + powers)).min(UPDATE_LIMIT)
    pull = (count > 0).where(pull, 0)
    total = magnitude * 0
    for i, bits in enumerate(set_bits):
        total = total + bits * pull.take(graph.constant(i), 0)
    return w.q.sign() * total.min(UPDATE_LIMIT)


def update_parameter(
    name: str, p: Value, velocity: Value | None, gradient: Value, decay: Fx | None, momentum: Value | None
) -> tuple[Value, Value | None]:
    """γ, β or the bias and its velocity after the step."""
    v = gradient
    if decay is not None:
        v = v + apply(p, decay).clamp(-GRADIENT_LIMIT, GRADIENT_LIMIT)
    if momentum is not None and velocity is not None:
        v = v + rshift(velocity * momentum, 15)
    v = v.clamp(-VELOCITY_LIMIT, VELOCITY_LIMIT)
    moved = (p - v).clamp(-PARAM_LIMITS[name], PARAM_LIMITS[name])
    return moved, v if velocity is not None else None
