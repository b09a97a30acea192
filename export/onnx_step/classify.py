"""Classifier, softmax cross-entropy and their gradients (section 6)."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from fedmpq.export.onnx_step.errors import Error
from fedmpq.export.onnx_step.graph import INT32, Value
from fedmpq.export.onnx_step.numbers import Fx, apply, bitlen, div, fixed, mul, power_of_two, rdiv, rshift, rshift_by
from fedmpq.export.onnx_step.product import parts, product
from fedmpq.models.reference import fx as exact

_LOGIT_LIMIT = 2**27


@dataclass(frozen=True)
class Outcome:
    """Per sample: gradient of the logits in 2^−15 [B, classes], loss in 1/65536 nat [B], correct or not [B]."""

    e: Value
    loss: Value
    correct: Value


def logit_scale(step: Fx, t: int) -> Fx:
    """Nats for one unit of u8 times q."""
    return mul(step, fixed(step.m.graph, *exact.norm(3, t - 8)))


def logits(features: Value, zero: int, q: Value, limit: int, bias: Value, f: Fx, count: int) -> Value:
    """Logits in 1/65536 nat [B, classes]; features u8 values less their zero point [B, F], q [classes, F]."""
    weights = [part.mapped(lambda v: v.transpose([1, 0])) for part in parts(q, -limit, limit)]
    # The maximum changes nothing but keeps onnxruntime from fusing MatMulInteger, Cast and Mul into a float operator.
    acc = product(parts(features, -zero, 255 - zero), weights, count).max(-(2**40))
    return (apply(acc, f.shifted(16)) + rshift(bias, 4)).clamp(-_LOGIT_LIMIT, _LOGIT_LIMIT)


def cross_entropy(z: Value, labels: Value, classes: int) -> Outcome:
    """Softmax by powers of two; labels [B]."""
    graph = z.graph
    zmax = z.largest([1], keep=True)
    e2 = ((z - zmax).max(-(2**22)) * 94548) >> 16
    whole, fraction = e2 >> 16, e2 & 0xFFFF
    power = _exponential(fraction)
    weight = (whole < -30).where(0, (power * 256).sar((-whole).clamp(0, 30)))
    total = weight.sum([1], keep=True)
    hit = labels.reshape([-1, 1]).equals(graph.constant(np.arange(classes)))
    e = rdiv(weight * 32768, total) - hit.where(32768, 0)
    chosen = hit.where(z, 0).sum([1], keep=True)
    loss = (((lg(total) - 24 * 65536) * 45426) >> 16) + zmax - chosen
    first = graph.op("ArgMax", [z.cast(INT32)], axis=1, keepdims=0, select_last_index=0)
    return Outcome(e, loss.reshape([-1]), first.equals(labels).count())


def _exponential(fraction: Value) -> Value:
    """2^fraction in 1/65536."""
    inner = (fraction * 5103).logical_right(16) + 14917
    middle = (fraction * inner).logical_right(16) + 45549
    return (fraction * middle).logical_right(16) + 65536


def lg(v: Value) -> Value:
    """log2 of positive integers in 1/65536, by repeated squaring."""
    result = bitlen(v) - 1
    shift = 30 - result
    x = v.sar((-shift).max(0)) * power_of_two(v.graph, shift.max(0))
    for _ in range(16):
        x = (x * x).logical_right(30)
        large = x >= 2**31
        x = large.where(x.logical_right(1), x)
        result = result * 2 + large.count()
    return result


def to_features(e: Value, q: Value, f: Fx, window: int, t: int) -> Error:
    """Error of the features [B, F], divided by the window of a preceding global pool."""
    products = e.matmul(q)
    scale = div(f, fixed(f.m.graph, *exact.norm(window)))
    scaled = products * scale.m
    largest = scaled.abs().largest()
    silent = largest.equals(0)
    sh = bitlen(largest) - 15
    values = rshift_by(scaled, sh).clamp(-32767, 32767)
    return Error(silent.where(0, values), silent.where(0, sh + scale.e - (15 + t)))
