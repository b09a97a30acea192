"""Pooling forward and backward (section 6); tensors [B, h·w, C]."""

from __future__ import annotations

import numpy as np

from fedmpq.export.onnx_step.errors import Error
from fedmpq.export.onnx_step.graph import INT32, Value
from fedmpq.export.onnx_step.numbers import rdiv, reven
from fedmpq.export.onnx_step.product import gathered, spread, windows
from fedmpq.models.reference.program import Kind, Record


def forward(x: Value, r: Record) -> Value:
    """Maximum inside the map, or rounded mean with padding counted as 0."""
    taps = r.kh * r.kw
    if r.kind is Kind.MAX_POOL:
        return _windows(x, r, -1).largest([2])
    return rdiv(_windows(x, r, 0).sum([2]), taps)


def backward(e: Error, x: Value, r: Record, *, divided: bool) -> Error:
    """Error to the input x; overlapping windows add up."""
    taps, positions = r.kh * r.kw, r.h_out * r.w_out
    values, exponent = e.values, e.exponent
    graph = x.graph
    if r.kind is Kind.MAX_POOL:
        first = graph.op("ArgMax", [_windows(x, r, -1).cast(INT32)], axis=2, keepdims=1, select_last_index=0)
        chosen = first.equals(graph.constant(np.arange(taps).reshape(1, 1, taps, 1)))
        spread_out = chosen.where(values.reshape([0, positions, 1, r.cin]), 0)  # [B, P', taps, C]
        rows = spread_out.reshape([0, positions * taps, r.cin])
        reader = spread(r).reshape(-1, taps)
        place = np.where(reader == positions, positions * taps, reader * taps + np.arange(taps)).reshape(-1)
        total = gathered(rows, place, 0, np.int64).reshape([0, r.h_in * r.w_in, taps, r.cin]).sum([2])
    else:
        if not divided:
            s = taps.bit_length() - 1
            values, exponent = rdiv(values * (1 << s), taps), exponent - s
        if positions == 1 and (r.kh, r.kw, r.pad) == (r.h_in, r.w_in, 0):
            return Error(values + graph.constant(np.zeros((1, r.h_in * r.w_in, 1))), exponent)
        total = gathered(values, spread(r), 0, np.int64).reshape([0, r.h_in * r.w_in, taps, r.cin]).sum([2])
    overlap = min(-(-r.kh // r.stride), r.h_out) * min(-(-r.kw // r.stride), r.w_out)
    o = (overlap - 1).bit_length()
    return Error(reven(total, o), exponent + o)


def _windows(x: Value, r: Record, outside: int) -> Value:
    """[B, h'·w', taps, C]."""
    return gathered(x, windows(r), outside, np.int64).reshape([0, r.h_out * r.w_out, r.kh * r.kw, r.cin])
