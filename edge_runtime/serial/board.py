"""A core that computes on a device at the other end of a link: the names of `edge_runtime.core`, for the agent.

Programs are parsed and plans are made here, by the same planner as on the device; the device's own number must agree.
Sessions live there: weights, samples and results travel in requests (docs/serial.md).
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Sequence
from typing import Any, Final, NamedTuple

from fedmpq.edge_runtime import core, native
from fedmpq.edge_runtime.serial.link import FirmwareError, Link, RefusedError
from fedmpq.edge_runtime.serial.wire import Address
from fedmpq.errors import ArenaTooSmall, BudgetError, CoreError, FormatError

WRITE, PROGRAM, PLAN, OPEN, PLANE, PARAMS, READ_PLANE, READ_PARAMS = range(2, 10)
RATES, STEP, EVALUATE, PRUNE, FACTS, CLOSE, SHARD, PICK = range(10, 18)

_MAILBOX, _SAMPLES = 0, 1
_ALIGN: Final = 64
_FACTS: Final = struct.Struct("<QQIIIII")
_SHARD: Final = struct.Struct("<IHHHH32s")
_HEAD: Final = struct.Struct("<HIi")  # of a layer's parameters
#: What a device answers that has too little memory: the core's FMPQ_E_ARENA, and bytes outside the memory.
_TOO_SMALL: Final = (3, 204)


class Facts(NamedTuple):
    """Bytes on the device: memory for session and samples, of the open session, and of the firmware itself."""

    limit: int
    planned: int
    data: int
    bss: int
    stack_kept: int
    stack_used: int
    resident_peak: int


class Picked(NamedTuple):
    """A batch by the numbers of its images in the device's own shard."""

    indices: tuple[int, ...]


class ResidentShard:
    """The images that the device holds, as the agent sees them: how many, of what shape, never which.

    Attributes:
        count, shape, classes: as of `shard.Shard`.
        sha256: of the shard file.
    """

    def __init__(self, reply: bytes) -> None:
        self.count, height, width, channels, self.classes, sha256 = _SHARD.unpack(reply)
        self.shape = (height, width, channels)
        self.sha256 = sha256.hex()

    def batch(self, indices: Sequence[int]) -> tuple[Picked, memoryview]:
        """What `RemoteSession.step` takes in place of images; the labels stay on the device, too."""
        return Picked(tuple(indices)), memoryview(bytes(2 * len(indices))).cast("H")


class RemoteCore:
    """The core of the device behind `link`. Classes of values are those of `edge_runtime.core`."""

    Program, Plan, LayerState, Hyper, Stats = core.Program, core.Plan, core.LayerState, core.Hyper, core.Stats
    fx = staticmethod(core.fx)
    plan_memory = staticmethod(core.plan_memory)

    def __init__(self, link: Link) -> None:
        self.link = link

    @classmethod
    def connect(cls, url: str) -> RemoteCore:
        """The core at a URL of `wire.Address`; its firmware must be of this version. Raises what `Link` raises."""
        return cls(Link(Address.parse(url), native.library().fmpq_version().decode()))

    def isa(self) -> str:
        """The device's kernels."""
        return self.link.info.isa

    def Session(self, program: core.Program, plan: core.Plan, limit: int | None = None) -> RemoteSession:  # noqa: N802
        """A session on the device."""
        return RemoteSession(self.link, program, plan, limit)

    def planned_there(self, program: core.Program, plan: core.Plan) -> int:
        """Arena bytes of a plan by the device's own planner; the same as `plan_memory` gives here."""
        _give(self.link, program)
        total, _ = struct.unpack("<QQ", self.link.request(PLAN, _plan_bytes(program, plan), size=16))
        return int(total)

    def facts(self) -> Facts:
        """Where the device's bytes go."""
        return _facts(self.link)

    def resident(self) -> ResidentShard | None:
        """The device's own images, None if it holds none."""
        if not self.link.info.has_shard:
            return None
        return ResidentShard(self.link.request(SHARD, size=_SHARD.size))

    def budget(self, program: core.Program, batch: int) -> int:
        """Bytes that a session may take beside a batch of samples."""
        return max(0, self.link.info.limit - _samples_size(program, batch)) // _ALIGN * _ALIGN


class RemoteSession:
    """A training session on the device behind `link`, with the methods of `core.Session`.

    Args:
        link: to the device; one session at a time.
        program: what is trained; sent where the device holds another.
        plan: bit-widths, batch and options; one thread.
        limit: bytes that the arena may take.

    Raises:
        ArenaTooSmall: the plan takes more than `limit`, or than the device has; so does the largest plane or blob of
            parameters, which passes through the memory behind the session's state.
        BudgetError: the program has more records than the firmware's tables, or the device has no room to plan.
        FirmwareError: the device's planner gives another number.
    """

    def __init__(self, link: Link, program: core.Program, plan: core.Plan, limit: int | None = None) -> None:
        self._link, self.program, self.plan = link, program, plan
        self._rates: bytes = b""
        planned = core.plan_memory(program, plan)
        self.planned_bytes = planned.total
        room = link.info.limit if limit is None else min(limit, link.info.limit)
        if self.planned_bytes > room:
            raise ArenaTooSmall(self.planned_bytes, room)
        mailbox = max(max(-(-layer.theta // 8), layer.params_bytes) for layer in program.weight_layers)
        if planned.persistent + mailbox > link.info.limit:
            raise ArenaTooSmall(planned.persistent + mailbox, link.info.limit)
        if len(program.records) > link.info.records:
            raise BudgetError(
                f"the program has {len(program.records)} records, the firmware of {link.info.board} takes "
                f"{link.info.records}",
                needed=len(program.records),
                available=link.info.records,
                hint=f"build the firmware with --records {len(program.records)}: fedmpq build --what gateway",
            )
        _give(link, program)
        try:
            opened = link.request(OPEN, _plan_bytes(program, plan), size=24)
        except RefusedError as error:
            if error.code not in _TOO_SMALL:
                raise
            raise BudgetError(error.message, needed=self.planned_bytes, available=link.info.limit) from None
        total, _, samples = struct.unpack("<QQQ", opened)
        if total != self.planned_bytes:
            raise FirmwareError(
                f"{link.address}: {link.info.board} plans {total} bytes, this gateway {self.planned_bytes}: "
                f"its firmware was built from another version of the core"
            )
        self._samples = int(samples)

    @property
    def measured_bytes(self) -> int:
        """Bytes of the session, as the device has it open."""
        return _facts(self._link).planned

    def load(self, index: int, state: core.LayerState) -> None:
        """Puts one weight layer in (index counts weight layers) and clears its momentum.

        Raises:
            FormatError: planes or parameters of the wrong number, length or value.
        """
        layer = self.program.weight_layers[index]
        bits, guard = self.plan.bits[index], self.plan.guard
        if state.bits != bits or state.guard != guard or len(state.planes) != 1 + bits + guard:
            raise FormatError(
                f"layer {layer.name}: {len(state.planes)} planes of {state.bits} bits, planned are {bits} bits and "
                f"{guard} guard planes"
            )
        for number, plane in enumerate(state.planes):
            _send(self._link, _MAILBOX, plane)
            self._link.request(PLANE, struct.pack("<HH", index, number) + _checked(plane), size=0)
        _send(self._link, _MAILBOX, state.params)
        self._link.request(PARAMS, struct.pack("<HHIi", index, 0, *state.step) + _checked(state.params), size=0)

    def read(self, index: int) -> core.LayerState:
        """One weight layer as it is now; its bits may have fallen by pruning."""
        layer = self.program.weight_layers[index]
        params, (bits, mantissa, exponent) = self._read_params(index, layer.params_bytes)
        size = (layer.theta + 7) // 8
        planes = tuple(self._read_plane(index, number, size) for number in range(1 + bits + self.plan.guard))
        return core.LayerState(bits, self.plan.guard, (mantissa, exponent), planes, params)

    def step(self, images: Any, labels: Any, hyper: core.Hyper, key: Sequence[int]) -> core.Stats:
        """One training step; arguments as those of `core.Session.step`."""
        rates = _rates_bytes(hyper)
        if rates != self._rates:
            self._link.request(RATES, rates, size=0)
            self._rates = rates
        return self._run(STEP, images, labels, key)

    def evaluate(self, images: Any, labels: Any) -> core.Stats:
        """Loss and accuracy with the running statistics, without augmentation."""
        return self._run(EVALUATE, images, labels, (0, 0, 0, 0))

    def prune(self, eps_q16: int) -> None:
        """Drops sparse top planes (eq. 13)."""
        self._link.request(PRUNE, struct.pack("<I", eps_q16), size=len(self.program.weight_layers))

    # --- inside -------------------------------------------------------------------------------------------------

    def _run(self, kind: int, images: Any, labels: Any, key: Sequence[int]) -> core.Stats:
        count = len(memoryview(labels).cast("B")) // 2
        crc = self._pick(images.indices) if isinstance(images, Picked) else self._send_samples(images, labels)
        request = struct.pack("<4III", *key, count, crc)
        loss, correct, counted = struct.unpack("<qII", self._link.request(kind, request, size=16, work=True))
        return core.Stats(loss, correct, counted)

    def _pick(self, indices: Sequence[int]) -> int:
        """Has the device put images of its own where samples lie; returns their checksum."""
        size = _samples_bytes(self.program, len(indices))
        if size > self._samples:
            raise ArenaTooSmall(self.planned_bytes + size, self.planned_bytes + self._samples)
        room = (self._link.info.payload - 8) // 4
        crc = 0
        for at in range(0, len(indices), room):
            part = indices[at : at + room]
            reply = self._link.request(PICK, struct.pack(f"<II{len(part)}I", len(indices), at, *part), size=4)
            (crc,) = struct.unpack("<I", reply)
        return int(crc)

    def _send_samples(self, images: Any, labels: Any) -> int:
        """Sends a batch; returns its checksum."""
        pixels, numbers = bytes(memoryview(images).cast("B")), bytes(memoryview(labels).cast("B"))
        count = len(numbers) // 2
        if len(pixels) != count * (len(pixels) // max(1, count)):
            raise CoreError(f"{len(pixels)} bytes of images for {count} labels")
        data = pixels + bytes(len(pixels) % 2) + numbers
        if len(data) > self._samples:
            raise ArenaTooSmall(self.planned_bytes + len(data), self.planned_bytes + self._samples)
        _send(self._link, _SAMPLES, data)
        return zlib.crc32(data)

    def _read_plane(self, index: int, number: int, size: int) -> bytes:
        out = b""
        while len(out) < size:
            part = min(self._link.info.payload, size - len(out))
            out += self._link.request(READ_PLANE, struct.pack("<HHIH", index, number, len(out), part), size=part)
        return out

    def _read_params(self, index: int, size: int) -> tuple[bytes, tuple[int, int, int]]:
        out, facts = b"", (0, 0, 0)
        while len(out) < size:
            part = min(self._link.info.payload - _HEAD.size, size - len(out))
            request = struct.pack("<HHIH", index, 0, len(out), part)
            reply = self._link.request(READ_PARAMS, request, size=_HEAD.size + part)
            facts = _HEAD.unpack_from(reply)
            out += reply[_HEAD.size :]
        return out, facts


def _facts(link: Link) -> Facts:
    return Facts(*_FACTS.unpack(link.request(FACTS, size=_FACTS.size)))


def _give(link: Link, program: core.Program) -> None:
    """Sends the program where the device holds another."""
    if link.info.program != program.sha256:
        _send(link, _MAILBOX, program.data)
        link.request(PROGRAM, _checked(program.data), size=32)
        link.info = link.info.with_program(program.sha256)


def _send(link: Link, space: int, data: bytes) -> None:
    size = link.info.payload - 5
    for at in range(0, len(data), size):
        link.request(WRITE, struct.pack("<BI", space, at) + data[at : at + size], size=0)


def _samples_size(program: core.Program, batch: int) -> int:
    """Bytes that a batch takes of the device's memory, from an aligned start."""
    return _samples_bytes(program, batch) + _ALIGN


def _samples_bytes(program: core.Program, batch: int) -> int:
    """Bytes of a batch: images to an even number, labels."""
    height, width, channels = program.in_shape
    images = batch * height * width * channels
    return images + images % 2 + 2 * batch


def _checked(data: bytes) -> bytes:
    return struct.pack("<II", len(data), zlib.crc32(data))


def _plan_bytes(program: core.Program, plan: core.Plan) -> bytes:
    made = plan.struct(program)
    options = (
        made.accumulate, made.act_bits, made.guard, made.momentum, made.crop, made.flip, made.decay_bn, made.recompute,
    )  # fmt: skip
    return struct.pack("<I9B", made.batch, *options, len(plan.bits)) + bytes(plan.bits)


def _rates_bytes(hyper: core.Hyper) -> bytes:
    head = struct.pack("<IiIiIB", *hyper.lr, *hyper.weight_decay, hyper.momentum_q15, len(hyper.lasso))
    return head + b"".join(struct.pack("<Ii", *rate) for rate in hyper.lasso)
