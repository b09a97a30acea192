"""What the coordinator needs to know of a program: its weight layers, their sizes and the units of their statistics."""

from __future__ import annotations

import hashlib
import struct
from dataclasses import dataclass
from math import isqrt

from fedmpq.edge_runtime import artifact

#: Bytes of a program's header and of each of its records.
_BLOCK = 64


@dataclass(frozen=True)
class LayerShape:
    """One weight layer of a program.

    Attributes:
        record: index of its record in the program, which keys its random streams.
        name: the module path it was exported from.
        is_conv: convolution with batch-norm (else the classifier).
        theta: number of weights.
        channels: output channels (batch-norm parameters), or classes.
        fan_in: `kh * kw * ci` of one group, K in docs/arithmetic.md section 5.
        reads_pixels: whether its input is the image itself.
    """

    record: int
    name: str
    is_conv: bool
    theta: int
    channels: int
    fan_in: int
    reads_pixels: bool

    @property
    def params_bytes(self) -> int:
        """Bytes of its parameter blob: gamma, beta, rm (i32), rv (i64) per channel, or bias (i32) per class."""
        return self.channels * (20 if self.is_conv else 4)

    @property
    def plane_bytes(self) -> int:
        """Bytes of one bit-plane."""
        return (self.theta + 7) // 8

    def accumulator_shift(self, bits: int, act_bits: int) -> int:
        """The static k of section 5: `y = acc >> k` at these bit-widths."""
        amax = 255 if self.reads_pixels else (1 << act_bits) - 1
        return max(0, (isqrt(self.fan_in) * amax * ((1 << bits) - 1)).bit_length() - 13)

    def unit_exponent(self, bits: int, act_bits: int) -> int:
        """E such that one y unit is `step * 2**E` in units of weight times activation base step (or pixel)."""
        act_shift = 0 if self.reads_pixels else 8 - act_bits
        return self.accumulator_shift(bits, act_bits) + act_shift


@dataclass(frozen=True)
class Layout:
    """The weight layers of one program, in record order.

    Attributes:
        program: SHA-256 hex of the program.
        layers: the weight layers.
    """

    program: str
    layers: tuple[LayerShape, ...]

    @property
    def thetas(self) -> tuple[int, ...]:
        """Weights per layer."""
        return tuple(layer.theta for layer in self.layers)


def of_program(program: bytes) -> Layout:
    """The layout of a program's bytes; FormatError if they are none."""
    layers = []
    for weight in artifact.weight_shapes(program):
        at = _BLOCK + _BLOCK * weight.record
        (source,) = struct.unpack_from("<H", program, at + 22)
        layers.append(
            LayerShape(
                record=weight.record,
                name=weight.name,
                is_conv=program[at] == 1,
                theta=weight.theta,
                channels=weight.channels,
                fan_in=weight.theta // weight.channels,
                reads_pixels=source == 0,
            )
        )
    return Layout(hashlib.sha256(program).hexdigest(), tuple(layers))
