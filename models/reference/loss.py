"""Classifier, softmax cross-entropy and their gradients in integers (section 6)."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from fedmpq.models.reference.conv import matmul
from fedmpq.models.reference.errors import Error
from fedmpq.models.reference.fx import Fx, apply, bitlen, div, mul, norm, rshift

_LOGIT_LIMIT = 2**27


class Outcome(NamedTuple):
    """Per sample: gradient of the logits in 2^−15, loss in 1/65536 nat, whether the label is the first maximum."""

    e: Tensor
    loss: Tensor
    correct: Tensor


def logit_scale(step: Fx, t: int) -> Fx:
    """Nats for one unit of u8 times q: Δ · 2^t base steps of 3/256."""
    return mul(step, norm(3, t - 8))


def logits(features: Tensor, q: Tensor, bias: Tensor, f: Fx) -> Tensor:
    """Logits z in 1/65536 nat. features u8 values [B, F], q [classes, F], bias in 2^−20 nat."""
    acc = matmul(features[None], q.T[None], 255 * 255)[0]
    return (apply(acc, f.shifted(16)) + rshift(bias, 4)).clamp(-_LOGIT_LIMIT, _LOGIT_LIMIT)


def cross_entropy(z: Tensor, labels: Tensor) -> Outcome:
    """Softmax by powers of two; z [B, classes], labels int64 [B]."""
    zmax = z.amax(1, keepdim=True)
    e2 = (z - zmax).clamp(min=-(2**22)) * 94548 >> 16
    whole, fraction = e2 >> 16, e2 & 0xFFFF
    power = 65536 + (fraction * (45549 + (fraction * (14917 + (fraction * 5103 >> 16)) >> 16)) >> 16)
    weight = torch.where(whole < -30, 0, (power << 8) >> (-whole).clamp(max=30))
    total = weight.sum(1, keepdim=True)
    e = (weight * 32768 + total // 2) // total
    e.scatter_add_(1, labels[:, None], e.new_full((len(labels), 1), -32768))
    chosen = z.gather(1, labels[:, None])
    loss = ((lg(total) - 24 * 65536) * 45426 >> 16) + zmax - chosen
    return Outcome(e, loss[:, 0], z.argmax(1) == labels)


def lg(v: Tensor) -> Tensor:
    """log2 of positive integers below 2^62 in 1/65536, by repeated squaring."""
    result = bitlen(v) - 1
    shift = 30 - result
    x = torch.where(shift >= 0, v << shift.clamp(min=0), v >> (-shift).clamp(min=0))
    for _ in range(16):
        x = x * x >> 30
        carry = (x >= 2**31).to(torch.int64)
        x, result = x >> carry, 2 * result + carry
    return result


def to_features(e: Tensor, q: Tensor, f: Fx, window: int, t: int) -> Error:
    """Error of the features [B, F], of exponent t, divided by the window of a preceding global pool."""
    products = matmul(e[None], q[None], 32768 * 255)[0]
    scale = div(f, norm(window))
    largest = int(products.abs().max()) * scale.m
    if largest == 0:
        return Error(torch.zeros_like(products), 0)
    sh = largest.bit_length() - 15
    values = rshift(products * scale.m, sh).clamp(-32767, 32767)
    return Error(values, sh + scale.e - 15 - t)


def to_weights(features: Tensor, e: Tensor) -> Tensor:
    """G = Σ_b p·e, int64 [classes, F]."""
    return matmul(e.T[None], features[None], 32768 * 255)[0]
