"""Parser of training programs: 64 bytes of header, 64 bytes a record, everything checked."""

from __future__ import annotations

import hashlib
import struct
from dataclasses import dataclass
from enum import IntEnum, IntFlag

from fedmpq.errors import FormatError, TruncatedError, VersionError

_HEADER = struct.Struct("<8sHHI4HBBH16s20s")
_RECORD = struct.Struct("<8B3H4H3H4s32s")
_NO_TENSOR = 0xFFFF


class Kind(IntEnum):
    """What a record computes."""

    CONV = 1
    MAX_POOL = 2
    AVG_POOL = 3
    GLOBAL_POOL = 4
    CLASSIFIER = 5
    CONCAT = 6


class Skip(IntEnum):
    """How a second input is added, or put behind the first."""

    NONE = 0
    IDENTITY = 1
    OPTION_A = 2
    CONCAT = 3


class Flag(IntFlag):
    """What a convolution does without."""

    LINEAR = 1  #: no ReLU: the output is signed, stored with zero point 128
    BIASED = 2  #: no batch-norm: statistics and γ are constants of the state


NO_FLAGS = Flag(0)
_POOLS = {Kind.MAX_POOL, Kind.AVG_POOL, Kind.GLOBAL_POOL}


@dataclass(frozen=True)
class Record:
    """One operation: tensor `input` (and `skip`) to tensor `index + 1`; maps are h × w × channels."""

    index: int
    kind: Kind
    name: str
    kh: int
    kw: int
    stride: int
    pad: int
    groups: int
    cin: int
    cout: int
    h_in: int
    w_in: int
    h_out: int
    w_out: int
    input: int
    skip_kind: Skip
    skip: int
    skip_pad_c: int
    t_out: int
    flags: Flag = NO_FLAGS

    @property
    def linear(self) -> bool:
        """Whether the output has no ReLU."""
        return Flag.LINEAR in self.flags

    @property
    def biased(self) -> bool:
        """Whether a bias stands in place of batch-norm."""
        return Flag.BIASED in self.flags

    @property
    def weighted(self) -> bool:
        """Whether the record has weights."""
        return self.kind in {Kind.CONV, Kind.CLASSIFIER}

    @property
    def weight_shape(self) -> tuple[int, int, int, int]:
        """OHWI shape of the weights; I counts the channels of one group."""
        return self.cout, self.kh, self.kw, self.cin // self.groups

    @property
    def fan_in(self) -> int:
        """Weights of one output channel."""
        return self.kh * self.kw * self.cin // self.groups

    @property
    def inputs(self) -> tuple[int, ...]:
        """The tensors it reads, main input first."""
        return (self.input,) if self.skip_kind is Skip.NONE else (self.input, self.skip)


@dataclass(frozen=True)
class Program:
    """A parsed program. `exponents[t]` and `zeros[t]` are exponent and zero point of tensor t (0 for the input)."""

    data: bytes
    in_shape: tuple[int, int, int]
    classes: int
    crop_pad: int
    mean: tuple[int, ...]
    records: tuple[Record, ...]
    exponents: tuple[int, ...]
    zeros: tuple[int, ...]
    pooled_window: int

    @property
    def sha256(self) -> str:
        """The program's id."""
        return hashlib.sha256(self.data).hexdigest()

    @property
    def weight_layers(self) -> tuple[Record, ...]:
        """Records with weights, in order."""
        return tuple(record for record in self.records if record.weighted)


def parse(data: bytes) -> Program:
    """Read and check a program.

    Raises:
        FormatError: on anything a training step could not be run from; names the record.
    """
    if len(data) < _HEADER.size:
        raise TruncatedError(f"training program of {len(data)} bytes ends inside its header")
    magic, version, count, total, h, w, c, classes, crop_pad, r0, r1, mean, rest = _HEADER.unpack_from(data)
    if magic != b"FMPQPROG":
        raise FormatError("not a training program: wrong magic bytes")
    if version != 1:
        raise VersionError(f"training program of version {version}, this build reads version 1")
    if total != len(data) or total != _HEADER.size + count * _RECORD.size:
        raise TruncatedError(f"training program of {len(data)} bytes, header says {total} for {count} records")
    _check(1 <= count <= 64 and 2 <= classes <= 1024 and 1 <= c <= 16 and min(h, w) >= 1, "header", "a size")
    _check(crop_pad <= 16 and r0 == r1 == 0 and not any(rest) and not any(mean[c:]), "header", "a reserved byte")

    shapes = [(h, w, c)]
    records: list[Record] = []
    exponents, zeros = [0], [0]
    for index in range(count):
        record = _record(data, index)
        _check_record(record, shapes, classes, last=index == count - 1)
        records.append(record)
        shapes.append((record.h_out, record.w_out, record.cout))
        if record.kind is Kind.CONCAT:
            _check_concat(record, exponents, zeros)
        exponents.append(exponents[record.input] if record.kind in _POOLS else record.t_out)
        zeros.append(128 * record.linear if record.kind is Kind.CONV else zeros[record.input])
    window = _check_readers(records)
    constants = tuple(exponents), tuple(zeros), window
    return Program(bytes(data), (h, w, c), classes, crop_pad, tuple(mean[:c]), tuple(records), *constants)


def _record(data: bytes, index: int) -> Record:
    fields = _RECORD.unpack_from(data, _HEADER.size + index * _RECORD.size)
    kind, kh, kw, stride, pad, skip_kind, t_out, flags = fields[:8]
    groups, cin, cout, h_in, w_in, h_out, w_out, source, skip, skip_pad_c, rest, name = fields[8:]
    where = f"record {index}"
    _check(kind in Kind.__members__.values() and skip_kind in Skip.__members__.values(), where, "kind")
    _check(flags <= (3 if kind == Kind.CONV else 0) and not any(rest), where, "flag or reserved byte")
    try:
        text = name.rstrip(b"\0").decode()
    except UnicodeDecodeError:
        raise FormatError(f"training program, {where}: the name is not UTF-8") from None
    return Record(
        index, Kind(kind), text, kh, kw, stride, pad, groups, cin, cout, h_in, w_in, h_out, w_out,
        source, Skip(skip_kind), skip, skip_pad_c, t_out, Flag(flags),
    )  # fmt: skip


def _check_record(r: Record, shapes: list[tuple[int, int, int]], classes: int, *, last: bool) -> None:
    where = f"record {r.index} ({r.name})"
    _check((r.kind is Kind.CLASSIFIER) == last, where, "kind: the classifier is the last record")
    _check(r.input <= r.index and min(r.kh, r.kw, r.stride, r.groups, r.cout) >= 1, where, "a size or tensor number")
    h, w, c = shapes[r.input]
    _check((r.kind is Kind.CONCAT) == (r.skip_kind is Skip.CONCAT), where, "skip kind")
    if r.kind is Kind.CONCAT:
        _check(0 < r.skip <= r.index and 0 < r.input != r.skip and r.skip_pad_c == 0, where, "tensor")
        _check(r.kh == r.kw == r.stride == r.groups == 1 and r.pad == 0 and r.t_out <= 6, where, "constant")
        _check(shapes[r.skip] == (h, w, r.cin - c) and r.cout == r.cin, where, "channels")
        _check((r.h_in, r.w_in, r.h_out, r.w_out) == (h, w, h, w), where, "shape")
        return
    if r.kind is Kind.CLASSIFIER:
        _check(r.cin == h * w * c and r.cout == classes and r.groups == 1, where, "channels")
        _check(r.kh == r.kw == r.stride == r.h_in == r.w_in == r.h_out == r.w_out == 1, where, "shape")
    else:
        if r.kind is Kind.CONV and r.h_in == r.w_in == r.kh == r.kw == 1:  # a hidden linear layer flattens its input
            h, w, c = 1, 1, h * w * c
        _check((r.h_in, r.w_in, r.cin) == (h, w, c), where, "input shape")
        out = ((h + 2 * r.pad - r.kh) // r.stride + 1, (w + 2 * r.pad - r.kw) // r.stride + 1)
        _check((r.h_out, r.w_out) == out and min(out) >= 1 and r.pad < min(r.kh, r.kw), where, "output shape")
    if r.kind is Kind.CONV:
        _check(r.cin % r.groups == 0 and r.cout % r.groups == 0, where, "groups")
        _check(r.t_out <= 6, where, "output exponent")
    else:
        _check(r.input > 0 and r.skip_kind is Skip.NONE and r.t_out == 0, where, "input, skip or exponent")
    if r.kind in _POOLS:
        _check(r.cout == r.cin and r.groups == 1, where, "channels")
        _check(r.kind is Kind.MAX_POOL or r.pad == 0, where, "padding")
    if r.kind is Kind.GLOBAL_POOL:
        _check((r.kh, r.kw, r.pad) == (h, w, 0), where, "window")
    if r.skip_kind is Skip.NONE:
        _check(r.skip == _NO_TENSOR and r.skip_pad_c == 0, where, "skip")
        return
    _check(0 < r.skip <= r.index and r.skip != r.input, where, "skip tensor")
    sh, sw, sc = shapes[r.skip]
    if r.skip_kind is Skip.IDENTITY:
        _check((sh, sw, sc) == (r.h_out, r.w_out, r.cout) and r.skip_pad_c == 0, where, "skip shape")
    else:
        _check(((sh + 1) // 2, (sw + 1) // 2) == (r.h_out, r.w_out), where, "skip shape")
        _check(r.skip_pad_c + sc <= r.cout, where, "skip channels")


def _check_concat(r: Record, exponents: list[int], zeros: list[int]) -> None:
    where = f"record {r.index} ({r.name})"
    _check(max(exponents[r.input], exponents[r.skip]) <= r.t_out, where, "output exponent")
    _check(zeros[r.input] == zeros[r.skip], where, "input: a linear and an unsigned tensor")


def _check_readers(records: list[Record]) -> int:
    """Every tensor is read; returns the window of the global pool in front of the classifier, 1 if there is none."""
    readers = [0] * (len(records) + 1)
    for record in records:
        for tensor in record.inputs:
            readers[tensor] += 1
    for tensor, count in enumerate(readers[:-1]):
        _check(count > 0, f"tensor {tensor}", "use: no record reads it")
    source = records[-1].input
    pool = records[source - 1]
    if pool.kind is not Kind.GLOBAL_POOL:
        return 1
    _check(readers[source] == 1, f"record {pool.index} ({pool.name})", "use: only the classifier may read it")
    return pool.kh * pool.kw


def _check(good: bool, where: str, what: str) -> None:
    if not good:
        raise FormatError(f"training program, {where}: bad {what}")
