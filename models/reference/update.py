"""The update of weights and parameters, Lasso, momentum, pruning (sections 8 and 9)."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from fedmpq.models.reference.fx import Fx, apply, apply_int, bitlen, div, mul, norm, rshift
from fedmpq.models.reference.rng import Key, words
from fedmpq.models.reference.state import Layer

#: Fraction bits of an update below one stored step.
FRACTION = 24
UPDATE_LIMIT = 2**30
GRADIENT_LIMIT = 2**28
VELOCITY_LIMIT = 2**29
#: Largest magnitude of each parameter's accumulator.
PARAM_LIMITS = {"gamma": 32767 << 16, "beta": 2**30, "bias": 2**30}


def weight_rate(lr: Fx, layer: Layer, batch: int) -> Fx:
    """Rate lr · 2^g / Δ² / batch: stored steps for one unit of gradient per multiplied step."""
    return div(div(norm(lr.m, lr.e + layer.guard), mul(layer.step, layer.step)), norm(batch))


def clamped(x: Tensor, limit: int) -> Tensor:
    """±limit."""
    return x.clamp(-limit, limit)


def update_weights(
    layer: Layer, u: Tensor, *, decay: Fx, lasso: Fx, momentum: int | None, weight_key: Key, momentum_key: Key
) -> None:
    """Move q by one stochastically rounded step.

    Args:
        layer: changed in place.
        u: rate times gradient in 2^−24 of a stored step, ±2^30.
        decay: lr · weight decay.
        lasso: lr · λ of this layer; zero for none.
        momentum: Q15 factor, None for a plan without momentum.
        weight_key: random stream of the weights.
        momentum_key: random stream of the stored momentum.
    """
    w = u + clamped(apply(layer.q, decay.shifted(FRACTION)), UPDATE_LIMIT) + lasso_pull(layer, lasso)
    if momentum is None:
        v = clamped(w, UPDATE_LIMIT)
    else:
        carried = layer.v8 << layer.ev.reshape(-1, 1, 1, 1)
        v = clamped(w + rshift(carried * momentum, 15), UPDATE_LIMIT)
        bits = bitlen(v.abs().amax((1, 2, 3)))
        layer.ev = (bits - 7).clamp(min=0)
        shift = layer.ev.reshape(-1, 1, 1, 1)
        dither = words(momentum_key, tuple(v.shape), v.device) & ((torch.ones_like(shift) << shift) - 1)
        layer.v8 = ((v + dither) >> shift).clamp(-127, 127)
    dither = words(weight_key, tuple(v.shape), v.device) & ((1 << FRACTION) - 1)
    layer.q = clamped(layer.q - ((v + dither) >> FRACTION), layer.limit)


def lasso_pull(layer: Layer, rate: Fx) -> Tensor:
    """Gradient of the group Lasso over planes (eq. 11, 12), times lr · λ, in 2^−24 of a stored step."""
    magnitude = layer.q.abs()
    total = torch.zeros_like(magnitude)
    for i, count in enumerate(layer.set_counts, start=1):
        if count and rate.m:
            root = norm(math.isqrt(count << 20), -10)
            pull = min(UPDATE_LIMIT, apply_int(1, div(rate, root).shifted(FRACTION + i - 1)))
            total += (magnitude >> (i - 1) & 1) * pull
    return layer.q.sign() * total.clamp(max=UPDATE_LIMIT)


def update_params(layer: Layer, gradients: dict[str, Tensor], *, decay: Fx, momentum: int | None) -> None:
    """Move γ, β or the bias; gradients are rate times gradient in units of the accumulators."""
    for name, gradient in gradients.items():
        p = layer.params[name]
        v = gradient + clamped(apply(p, decay), GRADIENT_LIMIT)
        if momentum is not None:
            v = v + rshift(layer.velocity[name] * momentum, 15)
        v = clamped(v, VELOCITY_LIMIT)
        layer.velocity[name] = v
        layer.params[name] = clamped(p - v, PARAM_LIMITS[name])


def prune(layer: Layer, eps_q16: int) -> int:
    """Drop top planes while their density is below ε (eq. 13); returns how many were dropped."""
    before = layer.bits
    while layer.bits > 1 and (layer.set_counts[-1] << 16) < eps_q16 * layer.q.numel():
        layer.bits -= 1
        layer.q = clamped(layer.q, layer.limit)
    return before - layer.bits
