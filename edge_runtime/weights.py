"""The weights section: a table of layers, then each layer's bit-planes and parameter blob (docs/artifact.md).

Standard library only. Planes hold one bit a weight in row-major OHWI order, least significant bit of a byte first:
a sign plane (1 = negative, 0 for a zero weight), then n + g magnitude planes from the least significant one up.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from dataclasses import dataclass

from fedmpq.errors import FormatError, TruncatedError

MAX_LAYERS = 64

_COUNT = struct.Struct("<II")
_LAYER = struct.Struct("<BBHIIiII8s")
assert _LAYER.size == 32


@dataclass(frozen=True)
class LayerBlobs:
    """One weight layer as it is stored: the real weight is `sign·magnitude·2^−guard·m·2^e`.

    Attributes:
        bits: magnitude planes that are multiplied, 1…8.
        guard: extra low planes that are only updated, 0…8.
        step: (m, e) of the step Δ, 2^30 ≤ m < 2^31.
        theta: number of weights.
        planes: sign plane, then bits + guard magnitude planes of ⌈theta/8⌉ bytes each.
        params: batch-norm state (convolution) or bias (classifier), little-endian.
    """

    bits: int
    guard: int
    step: tuple[int, int]
    theta: int
    planes: tuple[bytes, ...]
    params: bytes

    @property
    def plane_bytes(self) -> int:
        """Length of one plane."""
        return (self.theta + 7) // 8


def pack_weights(layers: Sequence[LayerBlobs]) -> bytes:
    """The weights section of these layers."""
    table = [_COUNT.pack(len(layers), 0)]
    blobs: list[bytes] = []
    offset = _COUNT.size + _LAYER.size * len(layers)
    for index, layer in enumerate(layers):
        check_layer(layer, f"layer {index}")
        mantissa, exponent = layer.step
        table.append(
            _LAYER.pack(
                layer.bits, layer.guard, 0, layer.theta, mantissa, exponent, offset, len(layer.params), bytes(8)
            )
        )
        blobs += [*layer.planes, layer.params]
        offset += layer.plane_bytes * len(layer.planes) + len(layer.params)
    return b"".join(table + blobs)


def unpack_weights(view: memoryview | bytes, source: str = "weights") -> tuple[LayerBlobs, ...]:
    """The layers of a weights section. Checks the table and the lengths; `check_layer` checks the contents."""
    data = memoryview(view)
    if len(data) < _COUNT.size:
        raise TruncatedError(f"{source} end after {len(data)} bytes, before the layer count")
    count, reserved = _COUNT.unpack_from(data)
    if not 1 <= count <= MAX_LAYERS or reserved:
        raise FormatError(f"{source}: {count} layers, 1 to {MAX_LAYERS} are possible")
    offset = _COUNT.size + _LAYER.size * count
    if len(data) < offset:
        raise TruncatedError(f"{source} end after {len(data)} bytes, the table of {count} layers takes {offset}")
    layers = []
    for index in range(count):
        entry = _LAYER.unpack_from(data, _COUNT.size + _LAYER.size * index)
        bits, guard, pad, theta, mantissa, exponent, start, params, zeros = entry
        if not 1 <= bits <= 8 or guard > 8 or pad or any(zeros) or start != offset or theta == 0:
            raise FormatError(f"{source}: entry {index} is damaged (bits {bits}, guard {guard}, offset {start})")
        size = (theta + 7) // 8
        end = offset + size * (1 + bits + guard) + params
        if end > len(data):
            raise TruncatedError(f"{source} end after {len(data)} bytes, layer {index} reaches to {end}")
        planes = tuple(bytes(data[offset + size * i : offset + size * (i + 1)]) for i in range(1 + bits + guard))
        layers.append(LayerBlobs(bits, guard, (mantissa, exponent), theta, planes, bytes(data[end - params : end])))
        offset = end
    if offset != len(data):
        raise FormatError(f"{source}: {len(data) - offset} bytes after the last layer")
    return tuple(layers)


def check_layer(layer: LayerBlobs, source: str) -> None:
    """Checks ranges, plane lengths, padding bits and that no zero weight has a sign."""
    if not 1 <= layer.bits <= 8 or not 0 <= layer.guard <= 8:
        raise FormatError(f"{source}: {layer.bits} bits and {layer.guard} guard planes, 1…8 and 0…8 are possible")
    mantissa, exponent = layer.step
    if not 1 << 30 <= mantissa < 1 << 31 or not -(1 << 15) <= exponent <= 1 << 15:
        raise FormatError(f"{source}: the step {mantissa}·2^{exponent} is not a normalised scale")
    if len(layer.planes) != 1 + layer.bits + layer.guard:
        raise FormatError(f"{source}: {len(layer.planes)} planes, {1 + layer.bits + layer.guard} are needed")
    for index, plane in enumerate(layer.planes):
        if len(plane) != layer.plane_bytes:
            raise FormatError(
                f"{source}: plane {index} has {len(plane)} bytes, {layer.theta} weights take {layer.plane_bytes}"
            )
        if layer.theta % 8 and plane[-1] >> (layer.theta % 8):
            raise FormatError(f"{source}: plane {index} has bits set after its {layer.theta} weights")
    sign, *magnitudes = (int.from_bytes(plane, "little") for plane in layer.planes)
    used = 0
    for plane_bits in magnitudes:
        used |= plane_bits
    if sign & ~used:
        raise FormatError(f"{source}: the sign plane marks zero weights as negative")
