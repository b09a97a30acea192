"""Pooling forward and backward (section 6)."""

from __future__ import annotations

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor

from fedmpq.models.reference.errors import Error
from fedmpq.models.reference.fx import rdiv, rshift_even
from fedmpq.models.reference.program import Kind, Record


def forward(x: Tensor, r: Record) -> Tensor:
    """Maximum, or rounded mean with padding counted as 0; x u8 values [B, H, W, C]."""
    windows = _windows(x, r, fill=-1 if r.kind is Kind.MAX_POOL else 0)
    if r.kind is Kind.MAX_POOL:
        return windows.amax(-1)
    return rdiv(windows.sum(-1), r.kh * r.kw)


def backward(e: Error, x: Tensor, r: Record, *, divided: bool) -> Error:
    """Error to the input x. `divided`: the classifier has already divided by a global pool's window."""
    values, exponent = e
    window = r.kh * r.kw
    if r.kind is Kind.MAX_POOL:
        first = _windows(x, r, fill=-1).argmax(-1)  # the first maximum
        taps = [torch.where(first == tap, values, 0) for tap in range(window)]
    else:
        if not divided:
            s = window.bit_length() - 1
            values, exponent = rdiv(values << s, window), exponent - s
        taps = [values] * window
    total = values.new_zeros(x.shape[0], r.h_in + 2 * r.pad, r.w_in + 2 * r.pad, r.cin)
    for tap, part in enumerate(taps):
        ky, kx = divmod(tap, r.kw)
        rows = slice(ky, ky + (r.h_out - 1) * r.stride + 1, r.stride)
        cols = slice(kx, kx + (r.w_out - 1) * r.stride + 1, r.stride)
        total[:, rows, cols] += part
    total = total[:, r.pad : r.pad + r.h_in, r.pad : r.pad + r.w_in]
    overlap = min(-(-r.kh // r.stride), r.h_out) * min(-(-r.kw // r.stride), r.w_out)
    o = (overlap - 1).bit_length()
    return Error(rshift_even(total, o), exponent + o)


def _windows(x: Tensor, r: Record, fill: int) -> Tensor:
    """[B, H', W', C, kh·kw], taps row-major."""
    padded = F.pad(x, (0, 0, r.pad, r.pad, r.pad, r.pad), value=fill)
    return padded.unfold(1, r.kh, r.stride).unfold(2, r.kw, r.stride).flatten(4)
