"""The trained state of one weight layer: integers while training, planes and a params blob while travelling."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from fedmpq.errors import FormatError, TruncatedError
from fedmpq.models import codec
from fedmpq.models.reference.fx import Fx
from fedmpq.models.reference.program import Kind, Record

_RV_LIMIT = 2**47 - 1


class StateLike(Protocol):
    """The attributes of `fedmpq.edge_runtime.core.LayerState`, which `Session.load` takes as well."""

    @property
    def bits(self) -> int:
        """Magnitude planes, 1 to 8."""

    @property
    def guard(self) -> int:
        """Guard planes, 0 to 8."""

    @property
    def step(self) -> tuple[int, int]:
        """Step size Δ as an fx pair."""

    @property
    def planes(self) -> tuple[bytes, ...]:
        """[sign, plane 1 (least significant), …]."""

    @property
    def params(self) -> bytes:
        """Parameters, little-endian; see `LayerState`."""


@dataclass(frozen=True)
class LayerState:
    """What travels for one weight layer: planes [sign, plane 1 (least significant), …, plane bits + guard].

    `params` of a convolution: gamma_acc i32, beta_acc i32, running mean i32, running variance i64, each per channel; of
    a classifier: bias i32 per class; little-endian.
    """

    bits: int
    guard: int
    step: tuple[int, int]
    planes: tuple[bytes, ...]
    params: bytes


@dataclass
class Layer:
    """Working state of one weight layer; tensors are int64.

    q: stored weights with guard planes, OHWI. v8, ev: momentum mantissas [co, …] and exponents [co]. params: `gamma`,
    `beta` (accumulators) or `bias`; moments: their momentum; rm, rv: running statistics (empty for a classifier).
    """

    record: Record
    bits: int
    guard: int
    step: Fx
    q: Tensor
    v8: Tensor
    ev: Tensor
    params: dict[str, Tensor]
    velocity: dict[str, Tensor]
    rm: Tensor
    rv: Tensor

    @property
    def limit(self) -> int:
        """Largest |q|."""
        return int((2**self.bits - 1) << self.guard)

    @property
    def multiplied(self) -> Tensor:
        """The weights a convolution multiplies by: without guard planes, rounded."""
        magnitude = (self.q.abs() + ((1 << self.guard) >> 1)) >> self.guard
        return self.q.sign() * magnitude.clamp(max=2**self.bits - 1)

    @property
    def set_counts(self) -> tuple[int, ...]:
        """Number of weights with a one in each magnitude plane, least significant first."""
        magnitude = self.q.abs()
        return tuple(int((magnitude >> i & 1).sum()) for i in range(self.bits + self.guard))


def unpack(record: Record, state: StateLike, device: torch.device) -> Layer:
    """Planes and params to a layer without momentum.

    Raises:
        FormatError: if lengths or values are out of range.
    """
    theta = record.cout * record.fan_in
    where = f"layer {record.name}"
    mantissa, exponent = state.step
    if not (1 <= state.bits <= 8 and 0 <= state.guard <= 8 and state.bits + state.guard <= codec.MAX_PLANES):
        raise FormatError(f"{where}: {state.bits} bits and {state.guard} guard planes are out of range")
    if len(state.planes) != 1 + state.bits + state.guard:
        raise FormatError(f"{where}: {len(state.planes)} planes for {state.bits} bits and {state.guard} guard planes")
    if not (2**30 <= mantissa < 2**31 and abs(exponent) <= 1000):
        raise FormatError(f"{where}: the step {state.step} is not a normalised mantissa and exponent")
    q = torch.from_numpy(codec.unpack(state.planes, theta).astype(np.int64)).reshape(record.weight_shape).to(device)
    if int(q.abs().max()) > (2**state.bits - 1) << state.guard:
        raise FormatError(f"{where}: a weight is above the top of its range")
    params = _read_params(record, state.params, device)
    rm, rv = params.pop("rm", torch.empty(0)), params.pop("rv", torch.empty(0))
    return Layer(
        record, state.bits, state.guard, Fx(mantissa, exponent), q,
        torch.zeros_like(q), q.new_zeros(record.cout),
        params, {name: torch.zeros_like(value) for name, value in params.items()}, rm, rv,
    )  # fmt: skip


def pack(layer: Layer) -> LayerState:
    """The layer as it travels."""
    planes = codec.pack(layer.q.cpu().numpy(), layer.bits + layer.guard)
    fields = [layer.params[name].cpu().numpy().astype("<i4").tobytes() for name in layer.params]
    if layer.record.kind is Kind.CONV:
        fields.append(layer.rm.cpu().numpy().astype("<i4").tobytes())
        fields.append(layer.rv.cpu().numpy().astype("<i8").tobytes())
    return LayerState(layer.bits, layer.guard, (layer.step.m, layer.step.e), tuple(planes), b"".join(fields))


def _read_params(record: Record, blob: bytes, device: torch.device) -> dict[str, Tensor]:
    conv = record.kind is Kind.CONV
    fields = [("gamma", "<i4"), ("beta", "<i4"), ("rm", "<i4"), ("rv", "<i8")] if conv else [("bias", "<i4")]
    expected = sum(np.dtype(kind).itemsize for _, kind in fields) * record.cout
    if len(blob) != expected:
        raise TruncatedError(f"layer {record.name}: {len(blob)} bytes of parameters, expected {expected}")
    result, start = {}, 0
    for name, kind in fields:
        values = np.frombuffer(blob, kind, record.cout, start).astype(np.int64)
        start += np.dtype(kind).itemsize * record.cout
        result[name] = torch.from_numpy(values).to(device)
    if conv and not bool(((result["rv"] >= 0) & (result["rv"] <= _RV_LIMIT)).all()):
        raise FormatError(f"layer {record.name}: a running variance is out of range")
    return result
