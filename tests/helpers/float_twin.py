"""A float autograd model around the integer forward pass: the values are the integer ones, the gradients are exact.

Every rounding, clamp and reduction of precision is a straight-through step, so autograd returns the gradient that the
integer backward pass approximates with 8-bit errors.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from fedmpq.models.reference import ReferenceSession, activation, batchnorm, loss
from fedmpq.models.reference.program import Kind, Record, Skip


@dataclass
class Twin:
    """Leaves by weight layer: `q` in units of the multiplied step, `gamma`, `beta` or `bias` in their own units."""

    q: list[Tensor]
    params: list[dict[str, Tensor]]
    tensors: list[Tensor]
    loss: Tensor


def _through(value: Tensor, straight: Tensor) -> Tensor:
    """`value` going forward, the gradient of `straight` going back."""
    return straight + (value.to(torch.float64) - straight).detach()


def run(session: ReferenceSession, x: Tensor, labels: Tensor) -> Twin:
    """Forward pass of centred pixels x [B, H, W, C] with batch statistics; tensors are in base steps, NHWC."""
    twin = Twin([], [], [x.to(torch.float64)], torch.zeros(()))
    exact = [x]
    for record in session.program.records:
        if record.kind is Kind.CONV:
            _conv(session, record, twin, exact)
        elif record.kind is Kind.CLASSIFIER:
            _classifier(session, record, twin, exact, labels)
        else:
            _pool(session, record, twin, exact)
    return twin


def _conv(session: ReferenceSession, r: Record, twin: Twin, exact: list[Tensor]) -> None:
    layer = session.layer(len(twin.q))
    q = layer.multiplied.to(torch.float64).requires_grad_()
    gamma = activation.gamma_of(layer.params["gamma"]).to(torch.float64).requires_grad_()
    beta = activation.beta_of(layer.params["beta"]).to(torch.float64).requires_grad_()
    twin.q.append(q)
    twin.params.append({"gamma": gamma, "beta": beta})
    exponents, act_bits = session.program.exponents, session.plan.act_bits
    if r.input == 0:
        a = twin.tensors[0]
    else:
        unit = 2.0 ** (exponents[r.input] + 8 - act_bits)
        a = _through(activation.read(exact[r.input], act_bits), twin.tensors[r.input] / unit)
    a = a.reshape(-1, r.h_in, r.w_in, r.cin)
    acc = F.conv2d(a.permute(0, 3, 1, 2), q.permute(0, 3, 1, 2), None, r.stride, r.pad, 1, r.groups).permute(0, 2, 3, 1)
    k = session._y_shift(r, layer.bits)
    y = acc / 2.0**k
    y = _through(torch.round(y), y)  # ties to even
    stats = batchnorm.moments(y.detach().to(torch.int64))
    xhat_int = batchnorm.normalise(y.detach().to(torch.int64), batchnorm.normaliser(stats))
    variance = y.var((0, 1, 2), correction=0) + 1 / 256
    xhat = _through(xhat_int, 32 * (y - y.mean((0, 1, 2))) / variance.sqrt())
    z = (gamma * xhat + beta) / 4096
    z_int = activation.affine(xhat_int, gamma.detach().to(torch.int64), beta.detach().to(torch.int64))
    if r.skip_kind is not Skip.NONE:
        skip = twin.tensors[r.skip]
        if r.skip_kind is Skip.OPTION_A:
            channels = (r.skip_pad_c, r.cout - r.skip_pad_c - skip.shape[-1])
            skip = F.pad(skip[:, ::2, ::2], channels)
        z = z + skip
        z_int = z_int + (activation.skip_value(exact[r.skip], r) << (12 + exponents[r.skip]))
    out = activation.quantise(z_int, r.t_out)
    mask = ((out > 0) & (out < 255)).to(torch.float64)
    exact.append(out)
    twin.tensors.append(_kept(_through(out * 2**r.t_out, z * mask)))


def _pool(session: ReferenceSession, r: Record, twin: Twin, exact: list[Tensor]) -> None:
    from fedmpq.models.reference import pool

    x = twin.tensors[r.input].permute(0, 3, 1, 2)
    if r.kind is Kind.MAX_POOL:
        value = F.max_pool2d(x, (r.kh, r.kw), r.stride, r.pad)
    else:
        value = F.avg_pool2d(x, (r.kh, r.kw), r.stride, r.pad)
    exact.append(pool.forward(exact[r.input], r))
    scale = 2 ** session.program.exponents[r.input]
    twin.tensors.append(_kept(_through(exact[-1] * scale, value.permute(0, 2, 3, 1))))


def _classifier(session: ReferenceSession, r: Record, twin: Twin, exact: list[Tensor], labels: Tensor) -> None:
    layer = session.layer(len(twin.q))
    t = session.program.exponents[r.input]
    q = layer.multiplied.to(torch.float64).requires_grad_()
    bias = layer.params["bias"].to(torch.float64).requires_grad_()
    twin.q.append(q)
    twin.params.append({"bias": bias})
    scale = loss.logit_scale(layer.step, t)
    features = twin.tensors[r.input].flatten(1) / 2**t
    z = features @ q.flatten(1).T * float(scale) + bias / 2**20
    z_int = loss.logits(exact[r.input].flatten(1), layer.multiplied.flatten(1), layer.params["bias"], scale)
    twin.loss = F.cross_entropy(_through(z_int.to(torch.float64) / 65536, z), labels, reduction="sum")


def _kept(x: Tensor) -> Tensor:
    x.retain_grad()
    return x
