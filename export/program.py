"""The program: the compiled training graph as bytes (docs/artifact.md, section "Program").

A program is a header and up to 64 records of 64 bytes. It holds shapes and constants only: bit-widths and batch size
belong to the plan, so one program (addressed by its SHA-256) serves every device. The C core reads these bytes
itself and checks them again; this module is the only writer.
"""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import IntEnum, IntFlag

from fedmpq.errors import ModelError

MAGIC = b"FMPQPROG"
VERSION = 1
MAX_RECORDS = 64
MAX_CHANNELS_IN = 16
MAX_CLASSES = 1024
MAX_CROP_PAD = 16
MAX_T = 6
NAME_BYTES = 31  # the 32nd byte stays zero
MAX_MAP = 512
MAX_KERNEL = 7
MAX_STRIDE = 4
MAX_POOL = 16
MAX_GLOBAL_POOL = 64
MAX_CHANNELS = 4096
MAX_WEIGHTS = 1 << 26
NO_TENSOR = 0xFFFF

_HEADER = struct.Struct("<8sHHIHHHHBBH16s20s")
_RECORD = struct.Struct("<BBBBBBBBHHHHHHHHHH4s32s")
assert _HEADER.size == 64
assert _RECORD.size == 64


class Kind(IntEnum):
    """What a record computes, forward and backward."""

    CONV = 1  #: convolution, batch-norm or bias, optional skip, optional ReLU, quantisation to u8
    MAX_POOL = 2
    AVG_POOL = 3
    GLOBAL_POOL = 4  #: average over the whole map, read by the classifier
    CLASSIFIER = 5  #: linear and softmax cross-entropy; always the last record
    CONCAT = 6  #: channels of two tensors, one behind the other


class Skip(IntEnum):
    """How the second tensor enters a record."""

    NONE = 0
    IDENTITY = 1
    OPTION_A = 2  #: every second row and column, channels padded with zeros (He et al. 2016, option A)
    CONCAT = 3  #: behind the first


class Flag(IntFlag):
    """What a convolution record does without."""

    LINEAR = 1  #: no ReLU: the output is signed, stored with zero point 128
    BIASED = 2  #: no batch-norm: statistics and γ are constants of the state


NO_FLAGS = Flag(0)


@dataclass(frozen=True)
class Shape:
    """Height, width and channels of one sample of a tensor (NHWC)."""

    h: int
    w: int
    c: int

    @property
    def elements(self) -> int:
        """Elements of one sample."""
        return self.h * self.w * self.c

    def __str__(self) -> str:
        return f"{self.h}×{self.w}×{self.c}"


@dataclass(frozen=True)
class Record:
    """One step of the program; tensor 0 is the input image, tensor i + 1 the output of record i."""

    kind: Kind
    name: str
    kh: int
    kw: int
    stride: int
    pad: int
    groups: int
    inp: Shape
    out: Shape
    input: int
    skip_kind: Skip = Skip.NONE
    skip: int = NO_TENSOR
    skip_pad_c: int = 0
    t_out: int = 0  #: activation exponent; pooling keeps its input's and stores 0
    flags: Flag = NO_FLAGS

    @property
    def cin(self) -> int:
        """Input channels as the record stores them: a classifier reads the flattened tensor."""
        return self.inp.elements if self.kind is Kind.CLASSIFIER else self.inp.c

    @property
    def theta(self) -> int:
        """Number of weights (0 for pooling)."""
        if self.kind is Kind.CONV:
            return self.out.c * self.kh * self.kw * (self.inp.c // self.groups)
        return self.out.c * self.cin if self.kind is Kind.CLASSIFIER else 0

    @property
    def macs(self) -> int:
        """Multiplications of one sample's forward pass."""
        return self.theta * self.out.h * self.out.w

    def pack(self) -> bytes:
        """The record's 64 bytes."""
        flat = self.kind is Kind.CLASSIFIER
        return _RECORD.pack(
            self.kind, self.kh, self.kw, self.stride, self.pad, self.skip_kind, self.t_out, self.flags,
            self.groups, self.cin, self.out.c,
            1 if flat else self.inp.h, 1 if flat else self.inp.w, self.out.h, self.out.w,
            self.input, self.skip, self.skip_pad_c, bytes(4), self.name.encode(),
        )  # fmt: skip


def fit_name(name: str, taken: Sequence[str]) -> str:
    """Shortens a module path to 31 UTF-8 bytes (head~tail) and makes it unique among `taken`."""
    candidate, number = name, 1
    while True:
        suffix = "" if number == 1 else f"#{number}"
        raw = name.encode()
        room = NAME_BYTES - len(suffix.encode())
        if len(raw) > room:
            tail = raw[len(raw) - (room - 9) :].decode(errors="ignore")
            candidate = raw[:8].decode(errors="ignore") + "~" + tail
        else:
            candidate = name
        candidate += suffix
        if candidate not in taken:
            return candidate
        number += 1


@dataclass
class ProgramBuilder:
    """Builds a program record by record, deriving shapes and refusing what the format cannot hold.

    Args:
        input_shape: (height, width, channels) of the images, channels 1…16.
        mean: channel mean in pixels (0…255), subtracted from each pixel; one value serves all channels.
        crop_pad: padding of the random crop in pixels, 0…16.

    Every method returns the number of the tensor it makes. The default input is the latest tensor.
    """

    input_shape: tuple[int, int, int]
    mean: Sequence[int] = (128,)
    crop_pad: int = 0
    records: list[Record] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.shapes: list[Shape] = [Shape(*self.input_shape)]
        self.exponents: list[int] = [0]  #: activation exponent by tensor
        self.linear: list[bool] = [False]  #: whether a tensor is signed
        self.mean = tuple(self.mean) * (self.shapes[0].c if len(self.mean) == 1 else 1)
        shape = self.shapes[0]
        _require(1 <= shape.c <= MAX_CHANNELS_IN, f"the input has {shape.c} channels, 1 to {MAX_CHANNELS_IN} work")
        _require(
            1 <= shape.h <= MAX_MAP and 1 <= shape.w <= MAX_MAP,
            f"an image of {shape.h}×{shape.w} is out of range (1…{MAX_MAP})",
        )
        _require(len(self.mean) == shape.c, f"{len(self.mean)} channel means for {shape.c} channels")
        _require(all(0 <= v <= 255 for v in self.mean), f"channel means {self.mean} must lie in 0…255 pixels")
        _require(0 <= self.crop_pad <= MAX_CROP_PAD, f"crop padding {self.crop_pad} must lie in 0…{MAX_CROP_PAD}")

    @property
    def last(self) -> int:
        """The latest tensor."""
        return len(self.records)

    def conv(
        self,
        name: str,
        cout: int,
        kernel: int | tuple[int, int] = 3,
        *,
        stride: int = 1,
        pad: int = 0,
        groups: int = 1,
        input: int | None = None,  # noqa: A002 - the field's name in the format
        skip: int | None = None,
        option_a_pad: int | None = None,
        t_out: int = 0,
        flatten: bool = False,
        flags: Flag = NO_FLAGS,
    ) -> int:
        """Convolution + batch-norm (+ skip) + ReLU, the second and last as `flags` say.

        Args:
            name: of the record, at most 31 bytes.
            cout: output channels.
            kernel: one side, or (height, width), up to 7.
            stride: of both directions, up to 4.
            pad: zeros on each side, fewer than the kernel.
            groups: cin and cout are multiples of it; cin groups make it depthwise.
            input: tensor to read.
            skip: tensor added before the ReLU.
            option_a_pad: makes the skip an option-A shortcut with so many zero channels in front.
            t_out: activation exponent of the output.
            flatten: a hidden linear layer: reads the whole map, in h, w, c order, as one pixel.
            flags: LINEAR without ReLU, BIASED without batch-norm.
        """
        source = self.last if input is None else input
        inp = self._shape(source, name)
        if flatten:
            inp = Shape(1, 1, inp.elements)
            _require(inp.c <= 65535, f"{name}: {inp.c} features, at most 65535 work")
        kh, kw = (kernel, kernel) if isinstance(kernel, int) else kernel
        _require(kh <= MAX_KERNEL and kw <= MAX_KERNEL, f"{name}: a {kh}×{kw} kernel exceeds {MAX_KERNEL}×{MAX_KERNEL}")
        _require(stride <= MAX_STRIDE, f"{name}: stride {stride} exceeds {MAX_STRIDE}")
        out = _window(name, inp, (kh, kw), stride, pad, cout)
        _require(
            groups >= 1 and inp.c % groups == 0 and cout % groups == 0,
            f"{name}: {groups} groups do not divide {inp.c} input and {cout} output channels",
        )
        _require(0 <= t_out <= MAX_T, f"{name}: activation exponent {t_out} must lie in 0…{MAX_T}")
        kind, pad_c = Skip.NONE, 0
        if skip is not None:
            kind, pad_c = self._skip(name, skip, option_a_pad, out)
            _require(skip != source, f"{name}: one tensor is both input and skip")
        return self._add(
            Record(
                Kind.CONV, name, kh, kw, stride, pad, groups, inp, out, source,
                kind, NO_TENSOR if skip is None else skip, pad_c, t_out, flags,
            )
        )  # fmt: skip

    def pool(
        self,
        name: str,
        kind: Kind,
        kernel: int | tuple[int, int],
        *,
        stride: int | None = None,
        pad: int = 0,
        input: int | None = None,  # noqa: A002
    ) -> int:
        """Max or average pooling; the stride defaults to the kernel height."""
        source = self.last if input is None else input
        inp = self._shape(source, name)
        kh, kw = (kernel, kernel) if isinstance(kernel, int) else kernel
        step = kh if stride is None else stride
        _require(kind in {Kind.MAX_POOL, Kind.AVG_POOL}, f"{name}: {kind!r} is no window pooling")
        _require(pad == 0 or kind is Kind.MAX_POOL, f"{name}: average pooling works without padding only")
        _require(source > 0, f"{name}: the image itself cannot be pooled")
        _require(kh <= MAX_POOL and kw <= MAX_POOL, f"{name}: a {kh}×{kw} window exceeds {MAX_POOL}×{MAX_POOL}")
        out = _window(name, inp, (kh, kw), step, pad, inp.c)
        return self._add(Record(kind, name, kh, kw, step, pad, 1, inp, out, source))

    def concat(self, name: str, first: int, second: int) -> int:
        """The channels of two tensors of one map size, at the larger of their exponents."""
        a, b = self._shape(first, name), self._shape(second, name)
        _require(
            min(first, second) > 0, f"{name}: the image itself cannot be concatenated (its pixels are no activations)"
        )
        _require(first != second, f"{name}: a tensor is concatenated with itself")
        _require((a.h, a.w) == (b.h, b.w), f"{name}: maps of {a} and {b} cannot stand side by side")
        _require(self.linear[first] == self.linear[second], f"{name}: one tensor is behind a ReLU, the other is not")
        both = Shape(a.h, a.w, a.c + b.c)
        _require(both.c <= MAX_CHANNELS, f"{name}: {both.c} channels are out of range (1…{MAX_CHANNELS})")
        t_out = max(self.exponents[first], self.exponents[second])
        return self._add(Record(Kind.CONCAT, name, 1, 1, 1, 0, 1, both, both, first, Skip.CONCAT, second, 0, t_out))

    def global_pool(self, name: str = "pool", *, input: int | None = None) -> int:  # noqa: A002
        """Average over the whole map."""
        source = self.last if input is None else input
        inp = self._shape(source, name)
        _require(max(inp.h, inp.w) <= MAX_GLOBAL_POOL, f"{name}: a map of {inp} is too large for global pooling")
        return self._add(Record(Kind.GLOBAL_POOL, name, inp.h, inp.w, 1, 0, 1, inp, Shape(1, 1, inp.c), source))

    def classifier(self, name: str, classes: int, *, input: int | None = None) -> int:  # noqa: A002
        """Linear layer and softmax cross-entropy over the flattened tensor (h, w, c order); ends the program."""
        source = self.last if input is None else input
        inp = self._shape(source, name)
        _require(2 <= classes <= MAX_CLASSES, f"{name}: {classes} classes, 2 to {MAX_CLASSES} work")
        _require(inp.elements <= 65535, f"{name}: {inp.elements} features, at most 65535 work")
        return self._add(Record(Kind.CLASSIFIER, name, 1, 1, 1, 0, 1, inp, Shape(1, 1, classes), source))

    def build(self) -> bytes:
        """The program's bytes."""
        _require(
            bool(self.records) and self.records[-1].kind is Kind.CLASSIFIER, "a program has to end in a classifier"
        )
        shape = self.shapes[0]
        header = _HEADER.pack(
            MAGIC, VERSION, len(self.records), 64 + 64 * len(self.records),
            shape.h, shape.w, shape.c, self.records[-1].out.c, self.crop_pad, 0, 0,
            bytes(self.mean), bytes(20),
        )  # fmt: skip
        return header + b"".join(record.pack() for record in self.records)

    def _shape(self, tensor: int, name: str) -> Shape:
        _require(0 <= tensor < len(self.shapes), f"{name}: there is no tensor {tensor}")
        return self.shapes[tensor]

    def _skip(self, name: str, skip: int, option_a_pad: int | None, out: Shape) -> tuple[Skip, int]:
        source = self._shape(skip, name)
        _require(skip > 0, f"{name}: the input image cannot be a skip (it is signed)")
        if option_a_pad is None:
            _require(source == out, f"{name}: the skip has shape {source}, the output {out}")
            return Skip.IDENTITY, 0
        _require(
            ((source.h + 1) // 2, (source.w + 1) // 2) == (out.h, out.w) and 0 <= option_a_pad <= out.c - source.c,
            f"{name}: an option-A shortcut from {source} with {option_a_pad} channels in front does not give {out}",
        )
        return Skip.OPTION_A, option_a_pad

    def _add(self, record: Record) -> int:
        _require(record.theta <= MAX_WEIGHTS, f"{record.name}: {record.theta} weights exceed {MAX_WEIGHTS}")
        _require(len(self.records) < MAX_RECORDS, f"{record.name}: a program holds at most {MAX_RECORDS} records")
        _require(
            not self.records or self.records[-1].kind is not Kind.CLASSIFIER,
            f"{record.name}: nothing may follow the classifier",
        )
        raw = len(record.name.encode())
        _require(0 < raw <= NAME_BYTES, f"record name {record.name!r} takes {raw} bytes, 1 to {NAME_BYTES} fit")
        own = record.kind in {Kind.CONV, Kind.CONCAT}
        self.records.append(record)
        self.shapes.append(record.out)
        self.exponents.append(record.t_out if own else self.exponents[record.input])
        self.linear.append(Flag.LINEAR in record.flags if record.kind is Kind.CONV else self.linear[record.input])
        return self.last


def program_id(program: bytes) -> str:
    """The address of a program: SHA-256 of its bytes, as hex."""
    return hashlib.sha256(program).hexdigest()


def _window(name: str, inp: Shape, kernel: tuple[int, int], stride: int, pad: int, cout: int) -> Shape:
    kh, kw = kernel
    _require(1 <= kh <= 255 and 1 <= kw <= 255, f"{name}: a window of {kh}×{kw} is out of range (1…255)")
    _require(1 <= stride <= 255, f"{name}: stride {stride} is out of range (1…255)")
    _require(0 <= pad < min(kh, kw), f"{name}: padding {pad} has to be smaller than the {kh}×{kw} window")
    _require(1 <= cout <= MAX_CHANNELS, f"{name}: {cout} output channels are out of range (1…{MAX_CHANNELS})")
    h, w = (inp.h + 2 * pad - kh) // stride + 1, (inp.w + 2 * pad - kw) // stride + 1
    _require(
        h >= 1 and w >= 1 and inp.h + 2 * pad >= kh and inp.w + 2 * pad >= kw,
        f"{name}: a {kh}×{kw} window does not fit a map of {inp} with padding {pad}",
    )
    return Shape(h, w, cout)


def _require(condition: bool, message: str) -> None:
    if not condition:
        raise ModelError(message)
