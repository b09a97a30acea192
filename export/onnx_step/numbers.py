"""Sections 1 and 2 of docs/arithmetic.md on graph values: rounding shifts, small floats `fx`, random words."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from fedmpq.export.onnx_step.graph import INT64, UINT64, Graph, Operand, Value

SATURATED = 2**31 - 1
_MASK = 0xFFFFFFFF
_ONE = 1


@dataclass(frozen=True)
class Fx:
    """m · 2^e, both computed."""

    m: Value
    e: Value

    def shifted(self, power: Operand) -> Fx:
        """Times 2^power; a zero keeps its exponent, which `apply` does not look at then."""
        return Fx(self.m, self.e + power)


def power_of_two(graph: Graph, exponent: Value) -> Value:
    """2^exponent for 0…62."""
    one = graph.op("Cast", [graph.constant(_ONE)], to=UINT64)
    return graph.op("BitShift", [one, exponent.cast(UINT64)], direction="LEFT").cast(INT64)


def rshift(x: Value, s: int) -> Value:
    """`x / 2^s` rounded half up by a constant; a left shift for s ≤ 0."""
    return x * (1 << -s) if s <= 0 else (x + (1 << (s - 1))) >> s


def reven(x: Value, s: int) -> Value:
    """`x / 2^s` rounded to nearest by a constant, ties to even; a left shift for s ≤ 0."""
    return x * (1 << -s) if s <= 0 else (x + ((1 << (s - 1)) - 1) + ((x >> s) & 1)) >> s


def reven_by(x: Value, s: Value) -> Value:
    """`reven` by computed amounts; 0 above 62."""
    right, left = s.clamp(0, 62), (-s).clamp(0, 62)
    moved = x * power_of_two(x.graph, left)
    below_half = (power_of_two(x.graph, right).logical_right(1) - 1).max(0)
    odd = (s > 0).where(moved.sar(right) & 1, 0)
    return (s > 62).where(0, (moved + below_half + odd).sar(right))


def rshift_by(x: Value, s: Value) -> Value:
    """`rshift` by computed amounts, broadcast; 0 above 62."""
    right, left = s.clamp(0, 62), (-s).clamp(0, 62)
    half = power_of_two(x.graph, right).logical_right(1)
    return (s > 62).where(0, (x * power_of_two(x.graph, left) + half).sar(right))


def rdiv(a: Value, d: Operand) -> Value:
    """`a / d` rounded to nearest, halves up; d > 0."""
    half = d // 2 if isinstance(d, int) else d.logical_right(1)
    return (a + half).floordiv(d)


def bitlen(x: Value) -> Value:
    """Significant bits of non-negative values below 2^63."""
    bits, rest = (x > 0).count(), x
    for step in (32, 16, 8, 4, 2, 1):
        large = rest >= (1 << step)
        bits = bits + large.where(step, 0)
        rest = large.where(rest.logical_right(step), rest)
    return bits


def isqrt(x: Value, bits: int) -> Value:
    """⌊√x⌋ for x < 2^(2·bits), digit by digit."""
    root = x * 0
    for bit in reversed(range(bits)):
        trial = root + (1 << bit)
        root = (trial * trial <= x).where(trial, root)
    return root


def norm(value: Value, e: Operand = 0) -> Fx:
    """`value · 2^e` for value ≥ 0, truncated to 31 significant bits."""
    extra = bitlen(value) - 31
    down, up = extra.max(0), (-extra).max(0)
    m = value.sar(down) * power_of_two(value.graph, up)
    zero = value.equals(0)
    return Fx(m, zero.where(0, extra + e))


def mul(a: Fx, b: Fx) -> Fx:
    """The product, truncated."""
    return norm(a.m * b.m, a.e + b.e)


def div(a: Fx, b: Fx) -> Fx:
    """The quotient, truncated; b is not zero."""
    return norm((a.m * 2**31).divided(b.m), a.e - b.e - 31)


def fixed(graph: Graph, m: int, e: int) -> Fx:
    """A constant."""
    return Fx(graph.constant(m), graph.constant(e))


def apply(x: Value, a: Fx) -> Value:
    """`x · a` rounded and saturated, for |x| ≤ 2^31; mantissa and exponent may be tensors."""
    product = x * a.m
    right = (-a.e).clamp(0, 62)
    half = power_of_two(x.graph, right).logical_right(1)
    rounded = (product + half).sar(right).clamp(-SATURATED, SATURATED)
    large = (a.e > 0).where(product.sign() * SATURATED, rounded)
    return (a.e < -62).where(0, large)


def apply64(x: Value, a: Fx) -> Value:
    """`apply` for any value below 2^62: what exceeds 31 bits is rounded away first, element by element."""
    extra = (bitlen(x.abs()) - 31).max(0)
    return apply(rshift_by(x, extra), a.shifted(extra))


def mix(x: Value, k1: Value) -> Value:
    """A keyed permutation of uint32 (held in int64)."""
    x = x ^ x.logical_right(16)
    x = (x * 0x7FEB352D) & _MASK
    x = x ^ k1
    x = x ^ x.logical_right(15)
    x = (x * (0x846CA68B - 2**32)) & _MASK  # minus 2^32: equal modulo 2^32, and the product stays inside int64
    return x ^ x.logical_right(16)


@dataclass(frozen=True)
class Keys:
    """Keys of several random streams of one step."""

    k0: Value
    k1: Value
    position: dict[int, int]

    def of(self, stream: int) -> tuple[Value, Value]:
        """The key of a stream."""
        index = self.k0.graph.constant(self.position[stream])
        return self.k0.take(index, 0), self.k1.take(index, 0)


def derive(graph: Graph, key: Value, streams: Sequence[int]) -> Keys:
    """Keys of all streams at once; `key` holds seed, round, client, step."""
    k0, k1 = graph.constant(0x9E3779B9), graph.constant(0x85EBCA6B)
    values = [key.take(graph.constant(i), 0) & _MASK for i in range(4)] + [graph.constant(list(streams))]
    for value in values:
        k0 = mix(k0 ^ value, k1)
        k1 = mix((k1 + value) & _MASK, k0)
    return Keys(k0, k1, {stream: i for i, stream in enumerate(streams)})


def words(key: tuple[Value, Value], count: Operand) -> Value:
    """Random words 0…count−1, flat."""
    graph = key[0].graph
    end = count if isinstance(count, Value) else graph.constant(count)
    index = graph.op("Range", [graph.constant(0), end, graph.constant(1)])
    return mix((index + key[0]) & _MASK, key[1])
