"""The integer core from Python: program, plan, exact memory, session (docs/arithmetic.md). Standard library only."""

from __future__ import annotations

import ctypes as c
import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from fedmpq.edge_runtime.native import (
    MAX_RECORDS,
    BufferStruct,
    Fx,
    HyperStruct,
    KeyStruct,
    MemoryStruct,
    PlanStruct,
    ProgramStruct,
    RecordStruct,
    StatsStruct,
    View,
    available,
    library,
)
from fedmpq.errors import ArenaTooSmall, CoreError, FormatError, VersionError

Scale = tuple[int, int]

CONV, MAXPOOL, AVGPOOL, GLOBALPOOL, CLASSIFIER = 1, 2, 3, 4, 5
BUFFER_KINDS = ("state", "x-hat", "y", "residual", "error", "work")

_ALIGN = 64
_GUARD = 4096
_PATTERN = b"\xa5"


def fx(value: float) -> Scale:
    """A non-negative number as m·2^e with 2^30 ≤ m < 2^31 (0 as (0, 0)); exact for float32 values."""
    if not math.isfinite(value) or value < 0:
        raise CoreError(f"{value} is not a finite, non-negative scale")
    if value == 0:
        return (0, 0)
    fraction, exponent = math.frexp(value)
    return (int(math.ldexp(fraction, 31)), exponent - 31)


def _check(code: int, where: str) -> None:
    if code:
        lib = library()
        name, text = lib.fmpq_error_name(code).decode(), lib.fmpq_error_text(code).decode()
        kind = (
            VersionError
            if name == "FMPQ_E_PROGRAM_VERSION"
            else FormatError
            if 20 <= code < 40 or 60 <= code < 80
            else CoreError
        )
        raise kind(f"{where}: {text}", name)


class Record(NamedTuple):
    """One record of a program."""

    kind: int
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
    skip_kind: int
    skip: int
    skip_pad_c: int
    t_out: int
    flags: int


class WeightLayer(NamedTuple):
    """A record that has weights: `theta` weights in `rows` rows of `row_len`, `params_bytes` of other state."""

    record: int
    name: str
    kind: int
    theta: int
    rows: int
    row_len: int
    channels: int
    params_bytes: int


class Program:
    """A parsed and checked program.

    Raises:
        FormatError, VersionError: the bytes are not a program that this core can train.
    """

    def __init__(self, data: bytes) -> None:
        self.data = bytes(data)
        self.struct = ProgramStruct()
        lib = library()
        _check(lib.fmpq_program_parse(self.data, len(self.data), c.byref(self.struct)), "program")
        self.sha256 = hashlib.sha256(self.data).hexdigest()
        self.classes = int(self.struct.classes)
        self.crop_pad = int(self.struct.crop_pad)
        self.in_shape = (int(self.struct.in_h), int(self.struct.in_w), int(self.struct.in_c))
        self.mean = tuple(self.struct.mean[: self.struct.in_c])
        self.records: list[Record] = []
        self.weight_layers: list[WeightLayer] = []
        for i in range(self.struct.n_records):
            r: RecordStruct = self.struct.rec[i]
            name = r.name.decode("utf-8", "replace")
            self.records.append(
                Record(name=name, **{key: int(getattr(r, key)) for key in Record._fields if key != "name"})
            )
            theta = int(lib.fmpq_record_theta(c.byref(r)))
            if theta:
                params = int(lib.fmpq_params_size(c.byref(r)))
                self.weight_layers.append(WeightLayer(i, name, r.kind, theta, r.cout, theta // r.cout, r.cout, params))


@dataclass(frozen=True)
class Plan:
    """How a program is trained: everything that memory depends on.

    Attributes:
        bits: magnitude planes of each weight layer, 1…8.
        batch: samples of a step; the last batch of an epoch may be smaller.
        micro_batch: samples in memory at once (default: all of the batch); their updates are summed.
        act_bits: 4 or 8.
        guard: guard planes, 0…8.
        momentum: int8 momentum a weight.
        recompute: residual sums are computed again in the backward pass instead of kept (same bits).
        roomy: how a batch of one is worked on (same bits): 0 in the smallest strips of rows; 1 in larger ones, with
            a fifth more bytes and a quarter fewer instructions on a microcontroller; 2 in whole maps.
    """

    bits: tuple[int, ...]
    batch: int = 64
    micro_batch: int | None = None
    act_bits: int = 4
    guard: int = 0
    momentum: bool = False
    threads: int = 1
    crop: bool = True
    flip: bool = True
    decay_bn: bool = True
    recompute: bool = True
    roomy: int = 0

    def struct(self, program: Program) -> PlanStruct:
        """The C structure, checked against the program's layers."""
        if len(self.bits) != len(program.weight_layers):
            raise CoreError(
                f"the plan has bits for {len(self.bits)} layers, the program has {len(program.weight_layers)}"
            )
        micro = self.micro_batch or self.batch
        good = (
            micro >= 1 and self.batch >= 1 and 1 <= self.threads <= 64 and 0 <= self.guard <= 8 and 0 <= self.roomy <= 2
        )
        if not good:
            raise CoreError("the plan's batch, micro-batch, threads, guard planes or roomy are out of range")
        for layer, bits in zip(program.weight_layers, self.bits, strict=True):
            if not 1 <= bits <= 8:
                raise CoreError(f"layer {layer.name}: {bits} bits, allowed are 1 to 8")
        plan = PlanStruct()
        plan.batch = min(micro, self.batch)
        plan.accumulate = int(micro < self.batch)
        plan.act_bits, plan.guard, plan.momentum, plan.threads = self.act_bits, self.guard, self.momentum, self.threads
        plan.crop, plan.flip, plan.decay_bn = self.crop, self.flip, self.decay_bn
        plan.recompute = 1 + self.roomy if self.recompute else 0
        for layer, bits in zip(program.weight_layers, self.bits, strict=True):
            plan.bits[layer.record] = bits
        return plan


class Buffer(NamedTuple):
    """A buffer of the arena, alive from op `first` to op `last`."""

    name: str
    kind: str
    record: int
    offset: int
    size: int
    first: int
    last: int


@dataclass(frozen=True)
class MemoryPlan:
    """Exact bytes of an arena and what they are for.

    Attributes:
        total: bytes of the arena.
        persistent: planes, parameters, momentum and the session's own tables.
        activations: largest sum of activations and errors alive at once.
        workspace: the rest: tiles, packed weights, gradient tiles.
        ops: number of ops in a step, forward and backward.
    """

    total: int
    persistent: int
    activations: int
    workspace: int
    ops: int
    buffers: tuple[Buffer, ...] = field(repr=False)

    def live(self, op: int) -> int:
        """Bytes alive during an op."""
        return sum(b.size for b in self.buffers if b.first <= op <= b.last)


def plan_memory(program: Program, plan: Plan) -> MemoryPlan:
    """Exact arena bytes of a plan, from the planner that sessions use.

    Raises:
        CoreError: a value of the plan is out of range, or the micro-batch is too large for exact statistics.
    """
    lib = library()
    memory = MemoryStruct()
    buffers = (BufferStruct * (MAX_RECORDS * 9 + 1))()
    scratch = c.create_string_buffer(lib.fmpq_plan_scratch() + _ALIGN)
    code = lib.fmpq_plan_memory(
        c.byref(program.struct),
        c.byref(plan.struct(program)),
        _aligned(scratch),
        c.byref(memory),
        buffers,
        len(buffers),
    )
    _check(code, "plan")
    rows = []
    for b in buffers[: memory.n_buffers]:
        kind = BUFFER_KINDS[b.kind]
        name = kind if kind == "state" else f"{program.records[b.record].name} {kind}"
        if b.size:
            rows.append(Buffer(name, kind, b.record, b.offset, b.size, b.first, b.last))
    activations = max(
        sum(b.size for b in rows if b.kind not in ("state", "work") and b.first <= op <= b.last)
        for op in range(memory.n_ops)
    )
    total, state = int(memory.total), int(memory.state)
    return MemoryPlan(total, state, activations, total - state - activations, int(memory.n_ops), tuple(rows))


def _aligned(buffer: Any) -> int:
    return (c.addressof(buffer) + _ALIGN - 1) // _ALIGN * _ALIGN


@dataclass(frozen=True)
class LayerState:
    """What travels for one weight layer: see docs/arithmetic.md, section 3."""

    bits: int
    guard: int
    step: Scale
    planes: tuple[bytes, ...]
    params: bytes


@dataclass(frozen=True)
class Hyper:
    """Rates of a step: lr and weight decay as fx, momentum in 1/32768, Lasso λ of each weight layer as fx."""

    lr: Scale
    weight_decay: Scale = (0, 0)
    momentum_q15: int = 29491
    lasso: tuple[Scale, ...] = ()

    def struct(self, program: Program) -> HyperStruct:
        """The C structure."""
        h = HyperStruct()
        h.lr, h.decay, h.momentum_q15 = Fx(*self.lr), Fx(*self.weight_decay), self.momentum_q15
        if self.lasso:
            if len(self.lasso) != len(program.weight_layers):
                raise CoreError(f"{len(self.lasso)} Lasso rates for {len(program.weight_layers)} layers")
            h.has_lasso = 1
            for layer, rate in zip(program.weight_layers, self.lasso, strict=True):
                h.lasso[layer.record] = Fx(*rate)
        return h


@dataclass(frozen=True)
class Stats:
    """Sums over the samples of a call: loss in 1/65536 nat, correct predictions, samples."""

    loss_q16: int
    correct: int
    count: int


class Session:
    """A training session inside one arena of exactly the planned bytes.

    Args:
        program: what is trained.
        plan: bit-widths, batch and options.
        limit: bytes that the arena may take.

    Raises:
        ArenaTooSmall: the plan takes more than `limit` bytes.
    """

    def __init__(self, program: Program, plan: Plan, limit: int | None = None) -> None:
        self._lib = library()
        self._threads: int | None = None
        self.program, self.plan = program, plan
        self.planned_bytes = plan_memory(program, plan).total
        if limit is not None and limit < self.planned_bytes:
            raise ArenaTooSmall(self.planned_bytes, limit)
        # the pattern behind the arena shows any byte written past the plan
        self._memory = c.create_string_buffer(self.planned_bytes + _ALIGN + _GUARD)
        base = _aligned(self._memory)
        self._tail = (c.c_char * _GUARD).from_address(base + self.planned_bytes)
        c.memset(self._tail, _PATTERN[0], _GUARD)
        scratch = c.create_string_buffer(self._lib.fmpq_plan_scratch() + _ALIGN)
        handle = c.c_void_p()
        self._plan_struct = plan.struct(program)
        code = self._lib.fmpq_init(
            c.byref(program.struct),
            c.byref(self._plan_struct),
            base,
            self.planned_bytes,
            _aligned(scratch),
            c.byref(handle),
        )
        _check(code, "session")
        self._s = handle
        if plan.threads > 1:
            self._threads = self._lib.fmpq_threads_new(plan.threads)
            self._lib.fmpq_threads_attach(self._threads, self._s)

    def __del__(self) -> None:
        if getattr(self, "_threads", None):
            self._lib.fmpq_threads_free(self._threads)
            self._threads = None

    @property
    def measured_bytes(self) -> int:
        """Bytes that the session has in use, after checking that it wrote nothing behind its arena."""
        if bytes(self._tail) != _PATTERN * _GUARD:
            raise CoreError("the session wrote behind its arena")
        return self.planned_bytes

    def load(self, index: int, state: LayerState) -> None:
        """Puts one weight layer in (index counts weight layers) and clears its momentum.

        Raises:
            FormatError: planes or parameters of the wrong number, length or value.
        """
        layer = self.program.weight_layers[index]
        where = f"layer {layer.name}"
        if (
            state.bits != self.plan.bits[index]
            or state.guard != self.plan.guard
            or len(state.planes) != 1 + state.bits + state.guard
        ):
            planned = f"{self.plan.bits[index]} bits and {self.plan.guard} guard planes"
            raise FormatError(f"{where}: {len(state.planes)} planes of {state.bits} bits, planned are {planned}")
        for number, plane in enumerate(state.planes):
            _check(
                self._lib.fmpq_load_plane(self._s, layer.record, number, bytes(plane), len(plane)),
                f"{where}, plane {number}",
            )
        _check(self._lib.fmpq_check_weights(self._s, layer.record), where)
        _check(
            self._lib.fmpq_load_params(self._s, layer.record, Fx(*state.step), bytes(state.params), len(state.params)),
            where,
        )

    def read(self, index: int) -> LayerState:
        """One weight layer as it is now; its bits may have fallen by pruning."""
        layer = self.program.weight_layers[index]
        bits = int(self._lib.fmpq_bits(self._s, layer.record))
        size = (layer.theta + 7) // 8
        planes = []
        for number in range(1 + bits + self.plan.guard):
            plane = c.create_string_buffer(size)
            _check(self._lib.fmpq_read_plane(self._s, layer.record, number, plane, size), layer.name)
            planes.append(plane.raw)
        params, step = c.create_string_buffer(layer.params_bytes), Fx()
        _check(self._lib.fmpq_read_params(self._s, layer.record, c.byref(step), params, layer.params_bytes), layer.name)
        return LayerState(bits, self.plan.guard, (int(step.m), int(step.e)), tuple(planes), params.raw)

    def step(self, images: Any, labels: Any, hyper: Hyper, key: Sequence[int]) -> Stats:
        """One training step.

        Args:
            images: u8 [B, H, W, C], any buffer; read in place.
            labels: u16 [B], native byte order.
            hyper: rates.
            key: (seed, round, client, step); step counts micro-batches.
        """
        count = self._count(labels)
        out = StatsStruct()
        with View(images, count * self._pixels, "images") as i, View(labels, count * 2, "labels") as y:
            code = self._lib.fmpq_step(
                self._s, i, y, count, c.byref(hyper.struct(self.program)), KeyStruct(*key), c.byref(out)
            )
        _check(code, "step")
        return Stats(int(out.loss_q16), int(out.correct), int(out.count))

    def evaluate(self, images: Any, labels: Any) -> Stats:
        """Loss and accuracy with the running statistics, without augmentation."""
        count = self._count(labels)
        out = StatsStruct()
        with View(images, count * self._pixels, "images") as i, View(labels, count * 2, "labels") as y:
            code = self._lib.fmpq_evaluate(self._s, i, y, count, c.byref(out))
        _check(code, "evaluate")
        return Stats(int(out.loss_q16), int(out.correct), int(out.count))

    def predict(self, images: Any) -> list[list[int]]:
        """Logits of each image, in 1/65536 nat."""
        count = memoryview(images).nbytes // self._pixels
        classes = self.program.classes
        out = (c.c_int32 * (count * classes))()
        with View(images, count * self._pixels, "images") as i:
            code = self._lib.fmpq_predict(self._s, i, count, out)
        _check(code, "predict")
        return [list(out[k * classes : (k + 1) * classes]) for k in range(count)]

    def set_count(self, index: int) -> tuple[int, ...]:
        """Set bits of each magnitude plane of a layer, least significant first; density = count / theta (eq. 13)."""
        layer = self.program.weight_layers[index]
        planes = int(self._lib.fmpq_bits(self._s, layer.record)) + self.plan.guard
        counts = (c.c_uint32 * planes)()
        _check(self._lib.fmpq_set_counts(self._s, layer.record, counts, planes), layer.name)
        return tuple(counts)

    def prune(self, eps_q16: int) -> tuple[int, ...]:
        """Drops top planes whose density is below eps (in 1/65536); returns the bits of every weight layer."""
        _check(self._lib.fmpq_prune(self._s, eps_q16), "prune")
        return tuple(int(self._lib.fmpq_bits(self._s, layer.record)) for layer in self.program.weight_layers)

    def state_hash(self) -> str:
        """SHA-256 over all layers' planes and parameters, in order: the golden hash."""
        digest = hashlib.sha256()
        for index in range(len(self.program.weight_layers)):
            state = self.read(index)
            for plane in state.planes:
                digest.update(plane)
            digest.update(state.params)
        return digest.hexdigest()

    @property
    def _pixels(self) -> int:
        h, w, ch = self.program.in_shape
        return h * w * ch

    @staticmethod
    def _count(labels: Any) -> int:
        return memoryview(labels).nbytes // 2


def isa() -> str:
    """The instruction set in use."""
    return str(library().fmpq_isa().decode())


def isas() -> list[str]:
    """The instruction sets that this build has and this processor runs, slowest first."""
    return available(library())


def set_isa(name: str | None) -> None:
    """Makes later sessions use an instruction set; None: the best one."""
    if library().fmpq_set_isa(name.encode() if name else None):
        raise CoreError(f"instruction set {name} is not available", f"one of: {', '.join(isas())}")


def version() -> str:
    """Version of the core."""
    return str(library().fmpq_version().decode())
