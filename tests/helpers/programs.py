"""Training programs and layer states for tests, written straight from the format, without torch or the exporter.

The byte layout is the one of `fedmpq.export.program`; writing it a second time here keeps the parsers honest.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np

CONV, MAX_POOL, AVG_POOL, GLOBAL_POOL, CLASSIFIER, CONCAT = 1, 2, 3, 4, 5, 6
NONE, IDENTITY, OPTION_A, CONCATENATED = 0, 1, 2, 3
LINEAR, BIASED = 1, 2


@dataclass
class Builder:
    """Appends records one by one; each method returns the number of the tensor it makes."""

    height: int
    width: int
    channels: int
    classes: int
    crop_pad: int = 0
    mean: tuple[int, ...] = ()
    records: list[bytes] = field(default_factory=list)
    shapes: list[tuple[int, int, int]] = field(default_factory=list)
    layers: list[tuple[str, int, int, int, int]] = field(default_factory=list)
    exponents: list[int] = field(default_factory=lambda: [0])
    linear: list[bool] = field(default_factory=lambda: [False])  #: whether a tensor is signed

    def __post_init__(self) -> None:
        self.shapes.append((self.height, self.width, self.channels))

    def conv(
        self,
        name: str,
        source: int,
        cout: int,
        *,
        kernel: int = 3,
        stride: int = 1,
        pad: int | None = None,
        groups: int = 1,
        t_out: int = 0,
        skip: int | None = None,
        option_a: bool = False,
        flatten: bool = False,
        linear: bool = False,
        biased: bool = False,
    ) -> int:
        pad = kernel // 2 if pad is None else pad
        if flatten:
            height, width, channels = self.shapes[source]
            source_shape = (1, 1, height * width * channels)
        else:
            source_shape = self.shapes[source]
        cin = source_shape[2]
        kind = NONE if skip is None else OPTION_A if option_a else IDENTITY
        skip_pad = (cout - self.shapes[skip][2]) // 2 if skip is not None and option_a else 0
        self.layers.append(("conv", cout, kernel, kernel, cin // groups))
        flags = linear * LINEAR + biased * BIASED
        return self._add(
            CONV, name, source, (kernel, kernel, stride, pad), cout, groups, t_out, kind, skip, skip_pad, source_shape,
            flags,
        )  # fmt: skip

    def concat(self, name: str, first: int, second: int, t_out: int) -> int:
        height, width, channels = self.shapes[first]
        cout = channels + self.shapes[second][2]
        return self._add(
            CONCAT, name, first, (1, 1, 1, 0), cout, 1, t_out, CONCATENATED, second, 0, (height, width, cout)
        )

    def max_pool(self, name: str, source: int, kernel: int = 2, stride: int = 2, pad: int = 0) -> int:
        return self._add(MAX_POOL, name, source, (kernel, kernel, stride, pad), self.shapes[source][2])

    def avg_pool(self, name: str, source: int, kernel: int = 2, stride: int = 2) -> int:
        return self._add(AVG_POOL, name, source, (kernel, kernel, stride, 0), self.shapes[source][2])

    def global_pool(self, name: str, source: int) -> int:
        height, width, channels = self.shapes[source]
        return self._add(GLOBAL_POOL, name, source, (height, width, 1, 0), channels)

    def classifier(self, name: str, source: int) -> int:
        height, width, channels = self.shapes[source]
        features = height * width * channels
        self.layers.append(("classifier", self.classes, 1, 1, features))
        tensor = len(self.records) + 1
        self.records.append(_record(CLASSIFIER, name, (1, 1, 1, 0), features, self.classes, (1, 1, 1, 1), source))
        self.shapes.append((1, 1, self.classes))
        return tensor

    def build(self) -> bytes:
        header = (
            struct.pack("<8sHHI", b"FMPQPROG", 1, len(self.records), 64 + 64 * len(self.records))
            + struct.pack("<4H", self.height, self.width, self.channels, self.classes)
            + struct.pack("<BBH", self.crop_pad, 0, 0)
            + struct.pack("<16s20x", bytes(self.mean))
        )
        return header + b"".join(self.records)

    def _add(
        self,
        kind: int,
        name: str,
        source: int,
        window: tuple[int, int, int, int],
        cout: int,
        groups: int = 1,
        t_out: int = 0,
        skip_kind: int = NONE,
        skip: int | None = None,
        skip_pad: int = 0,
        source_shape: tuple[int, int, int] | None = None,
        flags: int = 0,
    ) -> int:
        height, width, cin = source_shape or self.shapes[source]
        kh, kw, stride, pad = window
        out_h, out_w = (height + 2 * pad - kh) // stride + 1, (width + 2 * pad - kw) // stride + 1
        self.records.append(
            _record(
                kind, name, window, cin, cout, (height, width, out_h, out_w), source,
                groups=groups, t_out=t_out, skip_kind=skip_kind, skip=0xFFFF if skip is None else skip,
                skip_pad=skip_pad, flags=flags,
            )
        )  # fmt: skip
        self.shapes.append((out_h, out_w, cout))
        self.exponents.append(t_out if kind in {CONV, CONCAT} else self.exponents[source])
        self.linear.append(bool(flags & LINEAR) if kind == CONV else self.linear[source])
        return len(self.records)


def _record(
    kind: int,
    name: str,
    window: tuple[int, int, int, int],
    cin: int,
    cout: int,
    maps: tuple[int, int, int, int],
    source: int,
    *,
    groups: int = 1,
    t_out: int = 0,
    skip_kind: int = NONE,
    skip: int = 0xFFFF,
    skip_pad: int = 0,
    flags: int = 0,
) -> bytes:
    return struct.pack(
        "<8B3H4H3H4x32s",
        kind, *window, skip_kind, t_out, flags, groups, cin, cout, *maps, source, skip, skip_pad, name.encode(),
    )  # fmt: skip


def resnet(
    blocks: int = 1,
    *,
    size: tuple[int, int, int] = (32, 32, 3),
    classes: int = 10,
    width: int = 16,
    crop_pad: int = 4,
    mean: tuple[int, ...] = (125, 123, 114),
    t_residual: int = 1,
) -> Builder:
    """CIFAR-style ResNet of depth 6·blocks + 2 with option-A shortcuts (ResNet8: blocks = 1, ResNet20: 3)."""
    net = Builder(*size, classes, crop_pad, mean[: size[2]])
    x = net.conv("conv1", 0, width)
    for stage in range(3):
        for block in range(blocks):
            shrink = stage > 0 and block == 0
            cout, stride, name = width << stage, 2 if shrink else 1, f"layer{stage + 1}.{block}"
            inner = net.conv(f"{name}.conv1", x, cout, stride=stride)
            x = net.conv(f"{name}.conv2", inner, cout, skip=x, option_a=shrink, t_out=t_residual)
    net.classifier("fc", net.global_pool("pool", x))
    return net


def variety(
    size: tuple[int, int, int] = (12, 10, 3), classes: int = 7, *, flat: bool = False, linear: bool = False
) -> Builder:
    """A program with every op: groups, depthwise, 1×1 and 5×5, all pools, three readers, a hidden layer.

    The hidden layer reads a global pool, with `linear` a flattened map; with `flat` the classifier reads a map of
    several positions after an average pool whose windows overlap.
    """
    net = Builder(*size, classes, crop_pad=2, mean=(120, 130, 110))
    stem = net.conv("stem", 0, 8, kernel=5)
    depthwise = net.conv("depthwise", stem, 8, groups=8)
    mixed = net.conv("mixed", depthwise, 8, kernel=1, skip=stem, t_out=2)
    grouped = net.conv("grouped", stem, 12, groups=2, stride=2)
    pooled = net.max_pool("max", mixed, kernel=3, stride=2, pad=1)
    joined = net.conv("joined", pooled, 12, kernel=1, skip=grouped, t_out=1)
    if flat:
        averaged = net.avg_pool("avg", joined, kernel=3, stride=2)
        net.classifier("fc", net.conv("reduced", averaged, 20, kernel=1, t_out=1))
        return net
    averaged = net.avg_pool("avg", joined, kernel=2, stride=3)
    reduced = net.conv("reduced", averaged, 20, kernel=1, t_out=1)
    if linear:
        net.classifier("fc", net.conv("hidden", reduced, 24, kernel=1, flatten=True))
        return net
    net.classifier("fc", net.conv("hidden", net.global_pool("pool", reduced), 24, kernel=1))
    return net


def branches(size: tuple[int, int, int] = (12, 10, 3), classes: int = 5) -> Builder:
    """Linear and biased records, concatenations of both kinds of tensors, and everything that may read them."""
    net = Builder(*size, classes, crop_pad=1, mean=(120, 130, 110))
    stem = net.conv("stem", 0, 8, biased=True)
    side = net.conv("side", stem, 12, kernel=1, stride=2, linear=True, t_out=1)
    inner = net.conv("inner", stem, 12, stride=2, biased=True)
    signed = net.conv("signed", inner, 12, skip=side, linear=True, biased=True, t_out=2)
    deep = net.conv("deep", signed, 12, groups=12, linear=True)
    joined = net.concat("joined", signed, net.max_pool("max", deep, 3, 1, 1), t_out=3)
    shrunk = net.conv("shrunk", net.conv("read", joined, 20, stride=2), 28, skip=joined, option_a=True)
    both = net.concat("both", net.conv("one", shrunk, 4, kernel=1), shrunk, t_out=1)
    net.classifier("fc", net.concat("all", both, net.conv("two", both, 6, kernel=1), t_out=1))
    return net


def shared(size: tuple[int, int, int] = (12, 10, 3), classes: int = 5) -> Builder:
    """A tensor that a convolution, then an identity skip, then an option-A shortcut reads."""
    net = Builder(*size, classes, crop_pad=1, mean=(120, 130, 110))
    stem = net.conv("stem", 0, 8)
    added = net.conv("added", net.conv("inner", stem, 8), 8, skip=stem, t_out=1)
    shrunk = net.conv("shrunk", net.conv("half", added, 12, stride=2), 12, skip=stem, option_a=True, t_out=1)
    net.classifier("fc", net.global_pool("pool", shrunk))
    return net


class State(NamedTuple):
    """Field order of `LayerState`: `LayerState(*state)`."""

    bits: int
    guard: int
    step: tuple[int, int]
    planes: tuple[bytes, ...]
    params: bytes


def fx(value: float) -> tuple[int, int]:
    """A positive float as mantissa and exponent, 2^30 ≤ m < 2^31 (truncates)."""
    if value == 0:
        return 0, 0
    mantissa, exponent = np.frexp(value)
    return int(mantissa * 2.0**31), int(exponent) - 31


def states(net: Builder, bits: int | tuple[int, ...], guard: int = 0, seed: int = 0) -> list[State]:
    """A random but sane initial state of every weight layer, in record order."""
    rng = np.random.default_rng(seed)
    per_layer = (bits,) * len(net.layers) if isinstance(bits, int) else bits
    return [_state(rng, layer, n, guard) for layer, n in zip(net.layers, per_layer, strict=True)]


def _state(rng: np.random.Generator, layer: tuple[str, int, int, int, int], bits: int, guard: int) -> State:
    kind, rows, kh, kw, cin = layer
    fan_in = kh * kw * cin
    weight = rng.normal(0.0, np.sqrt(2.0 / fan_in), rows * fan_in)
    clip = float(np.abs(weight).max()) * {1: 0.4, 2: 0.6}.get(bits, 1.0)
    top = (2**bits - 1) << guard
    q = np.clip(np.rint(weight / clip * top), -top, top).astype(np.int64)
    planes = [(q < 0), *((np.abs(q) >> i & 1).astype(bool) for i in range(bits + guard))]
    packed = tuple(np.packbits(plane, bitorder="little").tobytes() for plane in planes)
    if kind == "classifier":
        params = rng.integers(-(2**18), 2**18, rows).astype("<i4").tobytes()
    else:
        gamma = (rng.uniform(0.5, 1.5, rows) * 10923 * 65536).astype("<i4")
        beta = (rng.normal(0.0, 0.2, rows) * 349525 * 256).astype("<i4")
        params = (
            gamma.tobytes() + beta.tobytes() + np.zeros(rows, "<i4").tobytes()
            + np.full(rows, 256 * 65536, "<i8").tobytes()
        )  # fmt: skip
    return State(bits, guard, fx(clip / (2**bits - 1)), packed, params)


def images(net: Builder, batch: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Smooth random images u8 [B, H, W, C] and labels u16 [B]; classes differ in their mean pattern."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, net.classes, batch).astype(np.uint16)
    shape = (net.height, net.width, net.channels)
    patterns = np.random.default_rng(99).normal(0, 40, (net.classes, *shape))
    pixels = 120 + patterns[labels] + rng.normal(0, 30, (batch, *shape))
    return np.clip(pixels, 0, 255).astype(np.uint8), labels
