"""A program and its trained state as an inference network: batch-norm folded, weights still the trained integers.

Batch-norm's statistics divide each output channel by a constant, and a step Δ multiplies it: together they are one
scale and one bias a channel, so that folding changes no integer. What follows keeps the grids of docs/arithmetic.md,
sections 4 to 6: the normalised output in 1/32 of its deviation (int8), then γ and β, then u8 with a constant step and
zero point, of which convolutions read the top `act_bits` bits. So a deployed model rounds where the core rounds.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import isqrt

import numpy as np
from numpy.typing import NDArray

from fedmpq.errors import ModelError
from fedmpq.models import codec
from fedmpq.models.reference.program import Kind, Program, Record, Skip, parse
from fedmpq.models.reference.state import StateLike

Floats = NDArray[np.float64]
Integers = NDArray[np.int16]

#: One base step of an activation in units of a batch-norm output's deviation.
BASE_STEP = 3 / 256
#: A normalised output is rounded to this and clipped at 127 of it.
NORMAL_STEP = 1 / 32
#: Accumulator values of γ = 1, β = 1 and a bias of one nat, after the shifts of docs/arithmetic.md, sections 5 and 6.
_GAMMA_UNIT, _BETA_UNIT, _BIAS_UNIT = 2.0**31 / 3 / 65536, 2.0**28 / 3 / 256, 2.0**20


@dataclass(frozen=True)
class Grid:
    """The values of a tensor: (u - zero) · step for u = 0…top."""

    step: float
    zero: int
    top: int = 255

    @property
    def low(self) -> float:
        """Smallest value."""
        return -self.zero * self.step

    @property
    def high(self) -> float:
        """Largest value."""
        return (self.top - self.zero) * self.step


@dataclass(frozen=True)
class Weights:
    """Integer weights: real weight = q · scale of its output channel.

    Attributes:
        q: [cout, kh, kw, cin of a group], signed.
        scale: positive, [cout].
        bias: of the output in real units, [cout].
        gamma, beta: what multiplies and moves the normalised output of a convolution; empty for the classifier.
    """

    q: Integers
    scale: Floats
    bias: Floats
    gamma: Floats
    beta: Floats

    def int8(self) -> tuple[NDArray[np.int8], Floats]:
        """Weights in int8 with their scales: channels with a larger weight (8-bit layers have them) are halved."""
        large = np.abs(self.q).reshape(len(self.q), -1).max(axis=1, initial=0) > 127
        halved = np.rint(self.q / 2.0)
        q = np.where(large[:, None, None, None], halved, self.q).clip(-127, 127).astype(np.int8)
        return q, np.where(large, 2 * self.scale, self.scale)

    @property
    def real(self) -> Floats:
        """Weights as numbers."""
        return self.q * self.scale[:, None, None, None]


@dataclass(frozen=True)
class Step:
    """One record: its geometry, the grid of its output, the grid its weights read (None: pixels), its weights."""

    record: Record
    grid: Grid
    reads: Grid | None = None
    weights: Weights | None = None

    @property
    def flattens(self) -> bool:
        """Whether it reads a map as one vector in the order height, width, channel."""
        r = self.record
        return r.kind is Kind.CLASSIFIER or (r.kind is Kind.CONV and r.kh == r.kw == r.h_in == r.w_in == 1)


@dataclass(frozen=True)
class Folded:
    """An inference network; tensor i + 1 is the output of step i, tensor 0 the image."""

    program: Program
    act_bits: int
    steps: tuple[Step, ...]

    def grid(self, tensor: int) -> Grid:
        """The grid of a tensor other than the image."""
        return self.steps[tensor - 1].grid

    def shape(self, tensor: int) -> tuple[int, int, int]:
        """Height, width, channels of a tensor."""
        if tensor == 0:
            return self.program.in_shape
        record = self.steps[tensor - 1].record
        return record.h_out, record.w_out, record.cout


def fold(program: bytes, states: Sequence[StateLike], act_bits: int) -> Folded:
    """The inference network of a program and the state of its weight layers.

    Raises:
        ModelError: the program has a kind of record that inference does not know.
    """
    parsed = parse(program)
    weighted = {record.index: state for record, state in zip(parsed.weight_layers, states, strict=True)}
    steps: list[Step] = []
    for record in parsed.records:
        grid = Grid(BASE_STEP * 2.0 ** parsed.exponents[record.index + 1], parsed.zeros[record.index + 1])
        if record.kind is Kind.CONV:
            reads = _read_grid(parsed, record.input, act_bits)
            weights = _convolution(record, weighted[record.index], reads, act_bits)
        elif record.kind is Kind.CLASSIFIER:
            reads = Grid(BASE_STEP * 2.0 ** parsed.exponents[record.input], parsed.zeros[record.input])
            weights = _classifier(record, weighted[record.index])
        elif record.kind in {Kind.MAX_POOL, Kind.AVG_POOL, Kind.GLOBAL_POOL, Kind.CONCAT}:
            reads, weights = None, None
        else:
            raise ModelError(f"record {record.name} is a {record.kind.name}, which has no inference form")
        steps.append(Step(record, grid, reads, weights))
    return Folded(parsed, act_bits, tuple(steps))


def _read_grid(program: Program, tensor: int, act_bits: int) -> Grid | None:
    """What a convolution sees of a tensor: its top bits."""
    if tensor == 0:
        return None
    drop = 8 - act_bits
    step = BASE_STEP * 2.0 ** (program.exponents[tensor] + drop)
    return Grid(step, program.zeros[tensor] >> drop, (1 << act_bits) - 1)


def _integers(record: Record, state: StateLike) -> NDArray[np.int64]:
    full = codec.unpack(state.planes, int(np.prod(record.weight_shape))).astype(np.int64)
    magnitude = (np.abs(full) + ((1 << state.guard) >> 1)) >> state.guard
    q = np.sign(full) * np.minimum(magnitude, (1 << state.bits) - 1)
    return np.asarray(q.reshape(record.weight_shape))


def _convolution(record: Record, state: StateLike, reads: Grid | None, act_bits: int) -> Weights:
    """Batch-norm with its running statistics as one factor and one bias a channel."""
    q = _integers(record, state)
    channels = record.cout
    gamma, beta, mean = np.frombuffer(state.params, "<i4", 3 * channels).astype(np.int64).reshape(3, channels)
    var = np.frombuffer(state.params, "<i8", channels, 12 * channels)
    amax = 255 if reads is None else (1 << act_bits) - 1
    shift = max(0, (isqrt(record.fan_in) * amax * ((1 << state.bits) - 1)).bit_length() - 13)
    mu = ((mean + 128) >> 8) / 256.0 * 2.0**shift  # in units of the accumulator
    deviation = np.sqrt(np.maximum(1, (var + 128) >> 8)) / 16.0 * 2.0**shift
    unit = 1.0 if reads is None else reads.step
    return Weights(
        q.astype(np.int16),
        1 / (deviation * unit),
        -mu / deviation,
        ((gamma + 32768) >> 16).clip(-32767, 32767) / _GAMMA_UNIT,
        ((beta + 128) >> 8) / _BETA_UNIT,
    )


def _classifier(record: Record, state: StateLike) -> Weights:
    bias = np.frombuffer(state.params, "<i4").astype(np.float64) / _BIAS_UNIT
    step = codec.fx_to_float((int(state.step[0]), int(state.step[1])))
    none = np.zeros(0)
    return Weights(_integers(record, state).astype(np.int16), np.full(record.cout, step), bias, none, none)


__all__ = ["BASE_STEP", "NORMAL_STEP", "Folded", "Grid", "Kind", "Skip", "Step", "Weights", "fold"]
