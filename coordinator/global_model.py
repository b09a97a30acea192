"""The global model: int64 fixed-point weights, batch-norm parameters and statistics, free of any bit-width.

Only integers, so the same updates give the same bytes on every machine. Layer states for a device (its planes at its
bits) are derived from here (`layer_state`) and a device's layer states are read back (`read_layer`).
"""

from __future__ import annotations

import hashlib
import math
import struct
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from fedmpq.coordinator import bn_units, fixed, quantise
from fedmpq.coordinator.fixed import I64, Fx
from fedmpq.coordinator.layout import LayerShape, Layout
from fedmpq.coordinator.quantise import Rounding, Scale
from fedmpq.errors import FormatError, HashError, TruncatedError, VersionError

#: gamma = 1 and beta = 1 activation unit of docs/arithmetic.md section 5, in the accumulators' units.
GAMMA_ONE = 10923 << 16
BETA_ONE = 349525 << 8
GAMMA_LIMIT = 32767 << 16
#: Limit of beta and of the classifier's bias in their int32 accumulators.
INT_LIMIT = 1 << 30

_MAGIC = b"FMPQGLOB"
_VERSION = 1
_HEAD = struct.Struct("<8sHH32s")
_LAYER = struct.Struct("<BII")


@dataclass
class GlobalLayer:
    """One weight layer of the global model.

    Attributes:
        weights: flat OHWI, int64 in 2**-32.
        gamma, beta: batch-norm parameters in the device's accumulator units (int64, empty for the classifier).
        mean, var: running statistics in global units (see bn_units.py; Python integers).
        bias: classifier bias in 2**-20 nat (int64, empty for a convolution).
    """

    weights: I64
    gamma: I64
    beta: I64
    mean: list[int]
    var: list[int]
    bias: I64

    @classmethod
    def blank(cls, shape: LayerShape) -> GlobalLayer:
        """Zero weights, gamma = 1, variance of one y unit."""
        co = shape.channels if shape.is_conv else 0
        classes = 0 if shape.is_conv else shape.channels
        return cls(
            weights=np.zeros(shape.theta, np.int64),
            gamma=np.full(co, GAMMA_ONE, np.int64),
            beta=np.zeros(co, np.int64),
            mean=[0] * co,
            var=[1 << bn_units.VAR_BITS] * co,
            bias=np.zeros(classes, np.int64),
        )


@dataclass(frozen=True)
class DeviceLayer:
    """A layer as a device holds it: signed integers and the raw parameter fields.

    Attributes:
        bits: magnitude planes.
        step: Delta.
        q: int16 weights, flat.
        params: the parameter blob (contract: gamma, beta, rm as i32, rv as i64 per channel, or the i32 bias).
    """

    bits: int
    step: Fx
    q: np.ndarray = field(repr=False)
    params: bytes = field(repr=False)


class GlobalModel:
    """Weights and batch-norm state of one program in exact fixed point."""

    def __init__(self, layout: Layout, layers: Sequence[GlobalLayer]) -> None:
        self.layout = layout
        self.layers = list(layers)

    @classmethod
    def blank(cls, layout: Layout) -> GlobalModel:
        """A model of zeros with neutral batch-norm."""
        return cls(layout, [GlobalLayer.blank(shape) for shape in layout.layers])

    @classmethod
    def of_device_layers(cls, layout: Layout, layers: Sequence[DeviceLayer], act_bits: int) -> GlobalModel:
        """The model whose weights are exactly those of one set of quantised layers (an artifact, for example)."""
        return cls(
            layout,
            [read_layer(shape, layer, act_bits) for shape, layer in zip(layout.layers, layers, strict=True)],
        )

    def layer_state(
        self,
        index: int,
        bits: int,
        act_bits: int,
        *,
        scale: Scale = "max",
        rounding: Rounding = "nearest",
        key: tuple[int, int] = (0, 0),
    ) -> DeviceLayer:
        """Layer `index` at `bits` magnitude planes, in the units a device with `act_bits` activations uses."""
        shape, layer = self.layout.layers[index], self.layers[index]
        step = quantise.step_of(quantise.full_range(layer.weights, bits, scale), bits)
        q = quantise.quantise(layer.weights, bits, step, rounding, key)
        return DeviceLayer(bits, step, q, _write_params(shape, layer, bits, act_bits, step))

    def noise_table(self, scale: str) -> list[list[int]]:
        """Per layer the relative squared quantisation error at 0..8 bits, in 2**-32 (1.0 without any plane).

        sum((W - q * step)**2) / sum(W**2), exact over weights taken in 2**-16.
        """
        table = []
        for layer in self.layers:
            coarse = fixed.shifted_array(layer.weights, -16)
            energy = max(1, int((coarse * coarse).sum()))
            row = [1 << 32]
            for bits in range(1, 9):
                full = quantise.full_range(layer.weights, bits, "mse" if scale == "mse" else "max")
                step = quantise.step_of(full, bits)
                back = quantise.dequantise(quantise.quantise(layer.weights, bits, step), step)
                error = fixed.shifted_array(layer.weights - back, -16)
                row.append((int((error * error).sum()) << 32) // energy)
            table.append(row)
        return table

    def step_table(self, scale: str) -> list[list[int]]:
        """Per layer the step at 0..8 bits over the root mean square, in 2**-32 (index 0: twice 1 bit)."""
        table = []
        for layer in self.layers:
            coarse = fixed.shifted_array(layer.weights, -16)
            root = max(1, math.isqrt((int((coarse * coarse).sum()) << 32) // max(1, coarse.size)))
            row = []
            for bits in range(1, 9):
                full = quantise.full_range(layer.weights, bits, "mse" if scale == "mse" else "max")
                row.append((full << 32) // (root * ((1 << bits) - 1)))
            table.append([2 * row[0], *row])
        return table

    def to_bytes(self) -> bytes:
        """Serialised model: header, layers, SHA-256 of what precedes."""
        parts = [_HEAD.pack(_MAGIC, _VERSION, len(self.layers), bytes.fromhex(self.layout.program))]
        for shape, layer in zip(self.layout.layers, self.layers, strict=True):
            parts.append(_LAYER.pack(1 if shape.is_conv else 0, shape.theta, shape.channels))
            parts.append(layer.weights.astype("<i8").tobytes())
            parts.extend(values.astype("<i4").tobytes() for values in (layer.gamma, layer.beta, layer.bias))
            parts.extend(value.to_bytes(16, "little", signed=True) for value in (*layer.mean, *layer.var))
        body = b"".join(parts)
        return body + hashlib.sha256(body).digest()

    @classmethod
    def from_bytes(cls, data: bytes, layout: Layout) -> GlobalModel:
        """Reads `to_bytes` back.

        Raises:
            FormatError: not a global model, or of another program; TruncatedError, HashError, VersionError likewise.
        """
        if len(data) < _HEAD.size + 32:
            raise TruncatedError(f"global model of {len(data)} bytes is shorter than its header")
        magic, version, count, program = _HEAD.unpack_from(data)
        if magic != _MAGIC:
            raise FormatError("not a global model: wrong magic")
        if version != _VERSION:
            raise VersionError(f"global model of format version {version}, this build reads {_VERSION}")
        if hashlib.sha256(data[:-32]).digest() != data[-32:]:
            raise HashError("global model is damaged: its SHA-256 does not match")
        if program.hex() != layout.program or count != len(layout.layers):
            raise FormatError(f"global model of program {program.hex()[:12]}, expected {layout.program[:12]}")
        view, at = memoryview(data)[:-32], _HEAD.size
        expected = _HEAD.size + sum(
            _LAYER.size + 8 * shape.theta + shape.channels * (4 * 2 + 32 if shape.is_conv else 4)
            for shape in layout.layers
        )
        if len(view) < expected:
            raise TruncatedError(f"global model of {len(view)} bytes instead of {expected}")
        layers = []
        for shape in layout.layers:
            if _LAYER.unpack_from(view, at) != (int(shape.is_conv), shape.theta, shape.channels):
                raise FormatError(f"global model: layer {shape.name} is not of the program's shape")
            at += _LAYER.size
            weights = np.frombuffer(view, "<i8", shape.theta, at).astype(np.int64)
            at += 8 * shape.theta
            small = np.frombuffer(view, "<i4", shape.channels * (2 if shape.is_conv else 1), at).astype(np.int64)
            at += 4 * small.size
            co = shape.channels if shape.is_conv else 0
            wide = [int.from_bytes(view[at + 16 * i : at + 16 * i + 16], "little", signed=True) for i in range(2 * co)]
            at += 32 * co
            layers.append(GlobalLayer(weights, small[:co], small[co : 2 * co], wide[:co], wide[co:], small[2 * co :]))
        if at != len(view):
            raise FormatError(f"global model has {len(view) - at} bytes too many")
        return cls(layout, layers)


def read_params(shape: LayerShape, params: bytes) -> tuple[I64, I64, I64, I64, I64]:
    """gamma, beta, rm, rv (empty for the classifier) and bias (empty for a convolution) of a parameter blob.

    Raises:
        FormatError: another length, or a value outside its field's range.
    """
    if len(params) != shape.params_bytes:
        raise FormatError(f"layer {shape.name}: parameter blob of {len(params)} bytes instead of {shape.params_bytes}")
    empty = np.zeros(0, np.int64)
    if not shape.is_conv:
        bias = np.frombuffer(params, "<i4").astype(np.int64)
        _check_range(shape, "bias", bias, INT_LIMIT)
        return empty, empty, empty, empty, bias
    co = shape.channels
    gamma, beta, rm = np.frombuffer(params, "<i4", 3 * co).astype(np.int64).reshape(3, co)
    rv = np.frombuffer(params, "<i8", co, 12 * co).astype(np.int64)
    _check_range(shape, "gamma", gamma, GAMMA_LIMIT)
    _check_range(shape, "beta", beta, INT_LIMIT)
    if rv.size and (int(rv.min()) < 0 or int(rv.max()) > bn_units.RV_LIMIT):
        raise FormatError(f"layer {shape.name}: running variance out of range")
    return gamma, beta, rm, rv, empty


def read_layer(shape: LayerShape, layer: DeviceLayer, act_bits: int) -> GlobalLayer:
    """A device's layer in global units (the paper's W_k); FormatError as `read_params`."""
    gamma, beta, rm, rv, bias = read_params(shape, layer.params)
    weights = quantise.dequantise(layer.q, layer.step)
    mean, var = bn_units.to_global(shape, layer.bits, act_bits, layer.step, rm.tolist(), rv.tolist())
    return GlobalLayer(weights, gamma, beta, mean, var, bias)


def _check_range(shape: LayerShape, what: str, values: I64, limit: int) -> None:
    if values.size and int(np.abs(values).max()) > limit:
        raise FormatError(f"layer {shape.name}: {what} out of range")


def _write_params(shape: LayerShape, layer: GlobalLayer, bits: int, act_bits: int, step: Fx) -> bytes:
    if not shape.is_conv:
        return layer.bias.astype("<i4").tobytes()
    rm, rv = bn_units.to_device(shape, bits, act_bits, step, layer.mean, layer.var)
    return b"".join(
        (
            layer.gamma.astype("<i4").tobytes(),
            layer.beta.astype("<i4").tobytes(),
            np.array(rm, "<i4").tobytes(),
            np.array(rv, "<i8").tobytes(),
        )
    )


def server_key(seed: int, round_no: int, record: int, bits: int) -> tuple[int, int]:
    """Key of the server's stochastic rounding: one draw for each layer and bit-width of a round.

    Devices of equal bits share the planes (they are sent once each), so the key holds no device. Client number
    2**32 - 1 is reserved for the server.
    """
    return fixed.stream_key(seed, round_no, 0xFFFFFFFF, bits, 4 * record + 1)
