"""Layers of integers as they travel: sign plane and magnitude planes, each a blob named by its SHA-256.

Plane layout (docs/protocol.md): bit j of a plane is weight j of the row-major OHWI index, least significant bit of a
byte first; planes are [sign, magnitude bit 0, .., magnitude bit n-1]; pad bits and the sign of a zero weight are zero.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from fedmpq.coordinator.fixed import Fx
from fedmpq.coordinator.global_model import DeviceLayer
from fedmpq.coordinator.layout import LayerShape
from fedmpq.edge_runtime.protocol import LayerBlobs
from fedmpq.errors import FormatError, TruncatedError


@dataclass(frozen=True)
class PackedLayer:
    """One layer's blobs and their hashes.

    Attributes:
        bits, step: of the layer.
        planes: sign plane, then magnitude planes from the least significant.
        params: parameter blob.
        blobs: the same by reference, as a plan or update names them.
    """

    bits: int
    step: Fx
    planes: tuple[bytes, ...] = field(repr=False)
    params: bytes = field(repr=False)
    blobs: LayerBlobs = field(repr=False)


def pack(layer: DeviceLayer) -> PackedLayer:
    """The blobs of a layer."""
    magnitude = np.abs(layer.q.astype(np.int16))
    planes = [_plane(layer.q < 0)] + [_plane((magnitude >> bit) & 1) for bit in range(layer.bits)]
    return packed(layer.bits, layer.step, planes, layer.params)


def packed(bits: int, step: Fx, planes: Sequence[bytes], params: bytes) -> PackedLayer:
    """Blobs that exist already, with their hashes."""
    refs = LayerBlobs(bits, step, tuple(_sha256(plane) for plane in planes), _sha256(params))
    return PackedLayer(bits, step, tuple(planes), params, refs)


def unpack(shape: LayerShape, bits: int, step: Fx, planes: Sequence[bytes], params: bytes) -> DeviceLayer:
    """The integers of a layer that came from a device.

    Raises:
        TruncatedError, FormatError: wrong number or length of planes, pad bits set, or a negative zero.
    """
    check(shape, bits, planes)
    raw = np.frombuffer(b"".join(planes), np.uint8).reshape(len(planes), shape.plane_bytes)
    flags = np.unpackbits(raw, axis=1, bitorder="little", count=shape.theta)
    magnitude = np.zeros(shape.theta, np.int16)
    for bit in range(bits):
        magnitude |= flags[bit + 1].astype(np.int16) << bit
    negative = flags[0].astype(bool)
    return DeviceLayer(bits, step, np.where(negative, -magnitude, magnitude).astype(np.int16), params)


def check(shape: LayerShape, bits: int, planes: Sequence[bytes]) -> None:
    """Everything that `unpack` refuses, without unpacking.

    Raises:
        TruncatedError, FormatError: as `unpack`.
    """
    if len(planes) != bits + 1:
        raise FormatError(f"layer {shape.name}: {len(planes)} planes for {bits} bits and a sign")
    numbers = []
    for index, plane in enumerate(planes):
        if len(plane) != shape.plane_bytes:
            kind = TruncatedError if len(plane) < shape.plane_bytes else FormatError
            raise kind(f"layer {shape.name}: plane {index} has {len(plane)} bytes instead of {shape.plane_bytes}")
        numbers.append(int.from_bytes(plane, "little"))
        if numbers[-1] >> shape.theta:
            raise FormatError(f"layer {shape.name}: bits beyond the last weight are set")
    magnitude = 0
    for number in numbers[1:]:
        magnitude |= number
    if numbers[0] & ~magnitude:
        raise FormatError(f"layer {shape.name}: a zero weight has a negative sign")


def _plane(flags: NDArray[np.generic]) -> bytes:
    return np.packbits(flags.astype(bool), bitorder="little").tobytes()


def _sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()
