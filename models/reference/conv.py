"""Convolution in integers: forward, error to the input, weight gradient (docs/arithmetic.md, sections 5 and 7).

All three are one matrix product over columns (im2col). The products run on floating-point units, which is exact while
every partial sum stays below 2^24 in float32 (2^53 in float64): `matmul` splits the inner dimension so that it does.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor

from fedmpq.models.reference.program import Record

_FLOAT32_EXACT = 2**24
#: Below this many products a chunk, float64 is cheaper than many small float32 products.
_SMALLEST_CHUNK = 64


def matmul(a: Tensor, b: Tensor, bound: int) -> Tensor:
    """Exact integer product of a [G, M, K] and b [G, K, N] as int64, for |a_ik · b_kj| ≤ bound, K · bound < 2^53."""
    inner = a.shape[-1]
    chunk = (_FLOAT32_EXACT - 1) // bound
    if torch.get_float32_matmul_precision() != "highest":  # TF32 or bfloat16 products would not be exact
        chunk = 0
    if chunk < _SMALLEST_CHUNK and chunk < inner:
        return (a.to(torch.float64) @ b.to(torch.float64)).to(torch.int64)
    a, b = a.to(torch.float32), b.to(torch.float32)
    if inner <= chunk:
        return (a @ b).to(torch.int64)
    total = torch.zeros(*a.shape[:-1], b.shape[-1], dtype=torch.int64, device=a.device)
    for start in range(0, inner, chunk):
        total += (a[..., start : start + chunk] @ b[..., start : start + chunk, :]).to(torch.int64)
    return total


def columns(a: Tensor, r: Record) -> Tensor:
    """Windows of a map, a [B, H, W, C] to [G, B·H'·W', kh·kw·C/G] in float32; outside the map a is 0."""
    padded = F.pad(a.to(torch.float32), (0, 0, r.pad, r.pad, r.pad, r.pad))
    windows = padded.unfold(1, r.kh, r.stride).unfold(2, r.kw, r.stride)  # [B, H', W', C, kh, kw]
    grouped = windows.reshape(*windows.shape[:3], r.groups, -1, r.kh, r.kw)
    return grouped.permute(3, 0, 1, 2, 5, 6, 4).reshape(r.groups, -1, r.fan_in)


def forward(a: Tensor, q: Tensor, r: Record, bound: int) -> Tensor:
    """Accumulator acc = Σ a·q. a [B, H, W, C], q OHWI, |a·q| ≤ bound; returns int64 [B, H', W', co]."""
    weights = _grouped(q, r).transpose(1, 2)
    return _maps(matmul(columns(a, r), weights, bound), a.shape[0], r)


def to_input(e8: Tensor, q: Tensor, r: Record, bound: int) -> Tensor:
    """Ein = Σ e8·q over the transposed convolution. e8 [B, H', W', co], |e8·q| ≤ bound; int64 [B, H, W, C]."""
    spread = matmul(_rows(e8, r), _grouped(q, r), bound)  # [G, B·H'·W', kh·kw·ci]
    batch = e8.shape[0]
    spread = spread.reshape(r.groups, batch, r.h_out, r.w_out, r.kh, r.kw, -1).permute(1, 2, 3, 4, 5, 0, 6).flatten(5)
    result = e8.new_zeros(batch, r.h_in + 2 * r.pad, r.w_in + 2 * r.pad, r.cin)
    for ky in range(r.kh):
        for kx in range(r.kw):
            rows = slice(ky, ky + (r.h_out - 1) * r.stride + 1, r.stride)
            cols = slice(kx, kx + (r.w_out - 1) * r.stride + 1, r.stride)
            result[:, rows, cols] += spread[:, :, :, ky, kx]
    return result[:, r.pad : r.pad + r.h_in, r.pad : r.pad + r.w_in]


def to_weights(a: Tensor, e8: Tensor, r: Record, bound: int) -> Tensor:
    """G = Σ a·e8 over batch and positions, |a·e8| ≤ bound; int64 in OHWI."""
    return matmul(_rows(e8, r).transpose(1, 2), columns(a, r), bound).reshape(r.weight_shape)


def _grouped(q: Tensor, r: Record) -> Tensor:
    """OHWI weights as [G, co/G, kh·kw·ci]."""
    return q.reshape(r.groups, r.cout // r.groups, r.fan_in)


def _rows(e: Tensor, r: Record) -> Tensor:
    """A map [B, H', W', co] as [G, B·H'·W', co/G]."""
    return e.reshape(-1, r.groups, r.cout // r.groups).permute(1, 0, 2)


def _maps(rows: Tensor, batch: int, r: Record) -> Tensor:
    """The inverse of `_rows`."""
    return rows.permute(1, 0, 2).reshape(batch, r.h_out, r.w_out, r.cout)
