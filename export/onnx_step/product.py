"""Exact matrix products out of MatMulInteger (u8 × u8 → i32), and convolutions as products over gathered windows.

A factor that does not fit u8 (9 bits: pixels minus mean, weights of n = 8) is split into its halves x >> 1 and x & 1.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from fedmpq.errors import ModelError
from fedmpq.export.onnx_step.graph import INT32, INT64, UINT8, Value
from fedmpq.models.reference.program import Record

Indices: TypeAlias = NDArray[np.int64]

_INT32_MAX = 2**31 - 1


@dataclass(frozen=True)
class Part:
    """u8 values of (value − zero) · factor."""

    value: Value
    zero: int
    factor: int

    def mapped(self, change: Callable[[Value], Value]) -> Part:
        """The same part in another layout."""
        return Part(change(self.value), self.zero, self.factor)


def parts(x: Value, low: int, high: int) -> list[Part]:
    """`x` with values low…high as one or two u8 tensors."""
    if low >= 0 and high <= 255:
        return [Part(x.cast(UINT8), 0, 1)]
    if low >= -128 and high <= 127:
        return [Part((x + 128).cast(UINT8), 128, 1)]
    if low >= -256 and high <= 255:
        return [Part(((x >> 1) + 128).cast(UINT8), 128, 2), Part((x & 1).cast(UINT8), 0, 1)]
    raise ModelError(f"values of {low}…{high} have no u8 form")


def product(a: list[Part], b: list[Part], terms: int) -> Value:
    """Σ a·b over the inner axis of `terms` entries, int64."""
    if terms * 255 * 255 > _INT32_MAX:
        raise ModelError(f"a sum of {terms} products does not fit the 32 bits of MatMulInteger")
    graph = a[0].value.graph
    total: Value | None = None
    for left in a:
        for right in b:
            zeros = [graph.constant(part.zero, np.uint8) for part in (left, right)]
            whole = graph.op("MatMulInteger", [left.value, right.value, *zeros]).cast(INT64)
            for _ in range((left.factor * right.factor).bit_length() - 1):
                whole = whole + whole  # not a Mul: onnxruntime would fuse it with MatMulInteger into a float operator
            total = whole if total is None else total + whole
    assert total is not None
    return total


def windows(r: Record) -> Indices:
    """For each output position and tap the input position it reads; h·w where it lies outside."""
    return _positions(r, (r.h_out, r.w_out), (r.h_in, r.w_in), lambda o, k: o * r.stride + k - r.pad)


def spread(r: Record) -> Indices:
    """For each input position and tap the output position that reads it there; h'·w' where there is none."""

    def source(i: Indices, k: Indices) -> Indices:
        shifted = i + r.pad - k
        return np.where(shifted % r.stride == 0, shifted // r.stride, -1)

    return _positions(r, (r.h_in, r.w_in), (r.h_out, r.w_out), source)


def _positions(
    r: Record, here: tuple[int, int], there: tuple[int, int], source: Callable[[Indices, Indices], Indices]
) -> Indices:
    y = source(np.arange(here[0])[:, None], np.arange(r.kh)[None, :])  # [h, kh]
    x = source(np.arange(here[1])[:, None], np.arange(r.kw)[None, :])  # [w, kw]
    inside_y, inside_x = (y >= 0) & (y < there[0]), (x >= 0) & (x < there[1])
    flat = y[:, None, :, None] * there[1] + x[None, :, None, :]
    inside = inside_y[:, None, :, None] & inside_x[None, :, None, :]
    return np.where(inside, flat, there[0] * there[1]).reshape(-1).astype(np.int64)


def gathered(x: Value, indices: Indices, outside: int, dtype: type[np.generic]) -> Value:
    """Rows of x [B, P, C] at `indices`, which count one more row filled with `outside`."""
    graph = x.graph
    fill = graph.constant(outside, dtype)
    padded = graph.op("Pad", [x, graph.constant([0, 0, 0, 0, 1, 0]), fill])
    return padded.take(graph.constant(indices), 1)


def forward(a: Value, low: int, high: int, q: Value, limit: int, r: Record) -> Value:
    """The accumulator Σ a·q. a [B, h·w, cin] in low…high, q OHWI in ±limit; int64 [B, h'·w', cout]."""
    taps, positions = r.kh * r.kw, r.h_out * r.w_out
    if r.groups > 1:
        rows = gathered(a.cast(INT32), windows(r), 0, np.int32)
        return _grouped(rows, q, r, positions, taps, inward=False)
    left = _columns(parts(a, low, high), windows(r), positions, taps * r.cin)
    right = [part.mapped(lambda v: v.reshape([r.cout, r.fan_in]).transpose([1, 0])) for part in parts(q, -limit, limit)]
    return product(left, right, taps * r.cin)


def to_input(e8: Value, q: Value, limit: int, r: Record) -> Value:
    """Ein = Σ e8·q over the transposed convolution. e8 [B, h'·w', cout] in ±127; int64 [B, h·w, cin]."""
    taps, positions = r.kh * r.kw, r.h_in * r.w_in
    if r.groups > 1:
        rows = gathered(e8.cast(INT32), spread(r), 0, np.int32)
        return _grouped(rows, q, r, positions, taps, inward=True)
    left = _columns(parts(e8, -127, 127), spread(r), positions, taps * r.cout)
    kernel = q.reshape([r.cout, taps, r.cin]).transpose([1, 0, 2])
    right = [part.mapped(lambda v: v.reshape([taps * r.cout, r.cin])) for part in parts(kernel, -limit, limit)]
    return product(left, right, taps * r.cout)


def to_weights(a: Value, low: int, high: int, e8: Value, r: Record) -> Value:
    """G = Σ a·e8 over batch and positions, int64 [cout, kh·kw·cin/groups]."""
    taps, positions = r.kh * r.kw, r.h_out * r.w_out
    if r.groups > 1:
        rows = gathered(a.cast(INT32), windows(r), 0, np.int32)
        per_group = r.cin // r.groups
        shape = [-1, positions, taps, r.groups, per_group]
        inputs = rows.reshape(shape).transpose([0, 3, 2, 4, 1]).reshape([0, 0, taps * per_group, positions])
        errors = e8.cast(INT32).reshape([-1, positions, r.groups, r.cout // r.groups]).transpose([0, 2, 1, 3])
        gradient = inputs.matmul(errors).cast(INT64).sum([0])  # [G, taps·ci, og]
        return gradient.transpose([0, 2, 1]).reshape([r.cout, r.fan_in])
    columns = _columns(parts(a, low, high), windows(r), positions, taps * r.cin)
    left = [part.mapped(lambda v: v.transpose([0, 2, 1])) for part in columns]
    return product(left, parts(e8, -127, 127), positions).sum([0]).transpose([1, 0])


def _columns(given: list[Part], indices: Indices, positions: int, length: int) -> list[Part]:
    """Parts [B, P, C] as windows [B, positions, length]; outside of the map is 0."""

    def column(part: Part) -> Value:
        return gathered(part.value, indices, part.zero, np.uint8).reshape([0, positions, length])

    return [Part(column(part), part.zero, part.factor) for part in given]


def _grouped(rows: Value, q: Value, r: Record, positions: int, taps: int, *, inward: bool) -> Value:
    """Products of each group apart, in int32. rows [B, positions·taps, C] int32."""
    ci, co = r.cin // r.groups, r.cout // r.groups
    inner, outer = (co, ci) if inward else (ci, co)
    left = rows.reshape([-1, positions, taps, r.groups, inner]).transpose([0, 3, 1, 2, 4])
    left = left.reshape([0, 0, 0, taps * inner])
    weights = q.cast(INT32).reshape([r.groups, co, taps, ci]).transpose([0, 2, 1, 3] if inward else [0, 2, 3, 1])
    weights = weights.reshape([r.groups, taps * inner, outer])
    done = left.matmul(weights).cast(INT64)  # [B, G, positions, outer]
    return done.transpose([0, 2, 1, 3]).reshape([0, 0, r.groups * outer])
