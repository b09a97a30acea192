"""What stands between tensors: crop and flip, reading at A bits, affine + skip + quantise (sections 4 and 5)."""

from __future__ import annotations

import torch
from torch import Tensor

from fedmpq.models.reference.fx import rshift
from fedmpq.models.reference.program import Record, Skip
from fedmpq.models.reference.rng import AUGMENT_STREAM, StepKey, derive, words

#: Fraction bits of the pre-activation z below one base step.
Z_FRACTION = 12


def centre(images: Tensor, mean: tuple[int, ...]) -> Tensor:
    """Pixels minus channel mean, −255…255; images u8 [B, H, W, C]."""
    return images.to(torch.int64) - torch.tensor(mean, device=images.device)


def crop_and_flip(x: Tensor, pad: int, key: StepKey, *, crop: bool, flip: bool) -> Tensor:
    """Shift each centred sample by −pad…pad in y and x and mirror it, as its random word says; outside is 0."""
    batch, height, width, _ = x.shape
    r = words(derive(key, AUGMENT_STREAM), (batch,), x.device)
    span = 2 * pad + 1
    dy = ((r & 0xFFFF) * span >> 16) - pad if crop else torch.zeros_like(r)
    dx = ((r >> 16 & 0x7FFF) * span >> 15) - pad if crop else torch.zeros_like(r)
    mirrored = (r >> 31).bool() & flip
    ys = torch.arange(height, device=x.device) + dy[:, None]
    xs = torch.arange(width, device=x.device).expand(batch, -1)
    xs = torch.where(mirrored[:, None], width - 1 - xs, xs) + dx[:, None]
    inside = ((ys >= 0) & (ys < height))[:, :, None] & ((xs >= 0) & (xs < width))[:, None, :]
    sample = torch.arange(batch, device=x.device)[:, None, None]
    taken = x[sample, ys.clamp(0, height - 1)[:, :, None], xs.clamp(0, width - 1)[:, None, :]]
    return taken * inside[..., None]


def read(u8: Tensor, act_bits: int, zero: int = 0) -> Tensor:
    """The top A bits of an activation, rounded, at most 2^A − 1, less its zero point."""
    drop = 8 - act_bits
    return ((u8 + (1 << drop) // 2) >> drop).clamp(max=(1 << act_bits) - 1) - (zero >> drop)


def concatenate(first: Tensor, second: Tensor, shifts: tuple[int, int], zero: int) -> Tensor:
    """Channels of two tensors at one exponent, each `shifts` above its own."""
    parts = (rshift(part - zero, shift) + zero for part, shift in zip((first, second), shifts, strict=True))
    return torch.cat(tuple(parts), -1)


def skip_value(tensor: Tensor, r: Record) -> Tensor:
    """The skip (less its zero point) in the shape of the output: itself, or every second position between zeros."""
    if r.skip_kind is Skip.IDENTITY:
        return tensor
    result = tensor.new_zeros(tensor.shape[0], r.h_out, r.w_out, r.cout)
    result[..., r.skip_pad_c : r.skip_pad_c + tensor.shape[-1]] = tensor[:, ::2, ::2]
    return result


def skip_error(e: Tensor, r: Record, shape: torch.Size) -> Tensor:
    """The error of the skip input, `shape`, from the masked error of the output."""
    if r.skip_kind is Skip.IDENTITY:
        return e
    result = e.new_zeros(shape)
    result[:, ::2, ::2] = e[..., r.skip_pad_c : r.skip_pad_c + shape[-1]]
    return result


def affine(xhat: Tensor, gamma: Tensor, beta: Tensor) -> Tensor:
    """Pre-activation z = γ·x̂ + β in 2^−12 base steps, |z| < 2^24."""
    return gamma * xhat + beta


def quantise(z: Tensor, t_out: int, zero: int = 0) -> Tensor:
    """Rounding to u8 with exponent t_out; with zero point 0 a ReLU."""
    return (rshift(z, Z_FRACTION + t_out) + zero).clamp(0, 255)


def gamma_of(acc: Tensor) -> Tensor:
    """γ from its int32 accumulator; 10923 is 1.0."""
    return rshift(acc, 16).clamp(-32767, 32767)


def beta_of(acc: Tensor) -> Tensor:
    """β from its int32 accumulator; 349525 is 1.0."""
    return rshift(acc, 8)
