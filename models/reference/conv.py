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


def columns(padded: Tensor, kh: int, kw: int, stride: int, groups: int) -> Tensor:
    """Windows of a padded map [B, H, W, C] as [G, B·H'·W', kh·kw·C/G] in float32."""
    windows = padded.to(torch.float32).unfold(1, kh, stride).unfold(2, kw, stride)  # [B, H', W', C, kh, kw]
    grouped = windows.reshape(*windows.shape[:3], groups, -1, kh, kw)
    return grouped.permute(3, 0, 1, 2, 5, 6, 4).reshape(groups, -1, kh * kw * windows.shape[3] // groups)


def forward(a: Tensor, q: Tensor, r: Record, bound: int) -> Tensor:
    """Accumulator acc = Σ a·q. a [B, H, W, C], q OHWI, |a·q| ≤ bound; returns int64 [B, H', W', co]."""
    weights = q.reshape(r.groups, -1, r.fan_in).transpose(1, 2)
    return _maps(matmul(_input_columns(a, r), weights, bound), (a.shape[0], r.h_out, r.w_out, r.cout))


def to_input(e8: Tensor, q: Tensor, r: Record, bound: int) -> Tensor:
    """Ein = Σ e8·q over the transposed convolution. e8 [B, H', W', co], |e8·q| ≤ bound; int64 [B, H, W, C].

    It is a convolution of stride 1 with the flipped kernel over errors spread `stride` apart.
    """
    height, width = (r.h_out - 1) * r.stride + 1, (r.w_out - 1) * r.stride + 1
    top, left = r.kh - 1 - r.pad, r.kw - 1 - r.pad
    spread = e8.new_zeros(e8.shape[0], r.h_in + r.kh - 1, r.w_in + r.kw - 1, r.cout)
    spread[:, top : top + height : r.stride, left : left + width : r.stride] = e8
    kernel = q.reshape(r.groups, -1, r.kh, r.kw, r.cin // r.groups).flip(2, 3)
    weights = kernel.permute(0, 2, 3, 1, 4).flatten(1, 3)  # [G, kh·kw·co/G, ci]
    rows = matmul(columns(spread, r.kh, r.kw, 1, r.groups), weights, bound)
    return _maps(rows, (e8.shape[0], r.h_in, r.w_in, r.cin))


def to_weights(a: Tensor, e8: Tensor, r: Record, bound: int) -> Tensor:
    """G = Σ a·e8 over batch and positions, |a·e8| ≤ bound; int64 in OHWI."""
    errors = e8.reshape(-1, r.groups, r.cout // r.groups).permute(1, 2, 0)
    return matmul(errors, _input_columns(a, r), bound).reshape(r.weight_shape)


def _input_columns(a: Tensor, r: Record) -> Tensor:
    """Windows of the layer's input; outside the map a is 0."""
    return columns(F.pad(a, (0, 0, r.pad, r.pad, r.pad, r.pad)), r.kh, r.kw, r.stride, r.groups)


def _maps(rows: Tensor, shape: tuple[int, int, int, int]) -> Tensor:
    """Results [G, B·H·W, C/G] as maps [B, H, W, C]."""
    return rows.permute(1, 0, 2).reshape(shape)
