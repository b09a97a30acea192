"""The messages between devices and coordinator: one dataclass each, every field checked both ways.

Control messages are canonical JSON objects with ``v`` and ``type`` beside the fields; blobs travel as binary chunks
(`chunks`). `decode` takes the kind of the topic a message came on and refuses types that do not belong there.
docs/protocol.md tells the order of messages.

Version 1 is integer training. Version 2 adds full-precision runs (`FloatJob` and the Float… messages); whatever
version 1 knows is still sent as version 1, byte for byte.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, replace
from typing import Annotated, ClassVar, Final, Literal, TypeAlias

from fedmpq.edge_runtime import topics
from fedmpq.edge_runtime.chunks import (
    CHUNK_SIZE,
    HEADER_SIZE,
    MAX_BLOB,
    MAX_CHUNKS,
    MAX_MESSAGE,
    Chunk,
    decode_chunks,
    is_chunk,
)
from fedmpq.edge_runtime.schema import (
    U16,
    U32,
    U53,
    Bool,
    Choice,
    Fx,
    Int,
    List,
    Nested,
    OneOf,
    Opt,
    Str,
    dump_json,
    dump_object,
    load_object,
)
from fedmpq.edge_runtime.schema import parse_json as _parse_json
from fedmpq.errors import ProtocolError

VERSION: Final = 1
FLOAT_VERSION: Final = 2
MAX_LAYERS: Final = 64
MAX_BITS: Final = 8
#: Blobs one message can name: 64 layers of sign, 8 planes and parameters, and the program. Senders also keep to
#: MAX_MESSAGE, which bites first only where bitmaps are long: they then ask for a part and later for the rest.
MAX_WANTS: Final = 641

assert CHUNK_SIZE + HEADER_SIZE <= MAX_MESSAGE

_NAME = Str(topics.NAME, "a name (lower-case letters, digits, '.', '_', '-')")
_HASH = Str(r"[0-9a-f]{64}", "a SHA-256 in hex")
_TEXT = Str(r"[^\x00-\x1f\x7f]{0,400}", "a line of at most 400 characters")
_SLUG = Str(r"[a-z0-9][a-z0-9-]{0,39}|", "a reason code")
_VERSION = Str(r"[0-9A-Za-z.+_-]{1,40}", "a version")
_BITMAP = Str(rf"([0-9a-f]{{2}}){{1,{MAX_CHUNKS // 8}}}", "a bitmap in hex")
_BYTES = Int(0, U53)
_MILLISECONDS = Int(0, U53)
_U32 = Int(0, U32)
_BITS = Int(1, MAX_BITS)
_BLOB_SIZE = Int(1, MAX_BLOB)
_LIMIT_SOURCE = Choice(("option", "cgroup-v2", "cgroup-v1", "available", "address-space", "board"))
#: What a full-precision client does to its change before it sends it (`edge_runtime.ort.coding`).
METHODS: Final = ("fedavg", "fedpaq", "fedpaq8", "uveqfed", "uveqfed4")

FxPair: TypeAlias = tuple[int, int]


# --- parts ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Settings:
    """The part of a plan that is the same for every device and round of a run (docs/arithmetic.md)."""

    batch: Annotated[int, Int(1, 4096)]
    micro_batch: Annotated[int | None, Opt(Int(1, 4096))]
    act_bits: Annotated[int, Choice((4, 8))]
    guard: Annotated[int, Int(0, 7)]  # every device tries 8 bits, and the core has 15 planes
    momentum: Annotated[bool, Bool()]
    crop: Annotated[bool, Bool()]
    flip: Annotated[bool, Bool()]
    decay_bn: Annotated[bool, Bool()]
    recompute: Annotated[bool, Bool()]


@dataclass(frozen=True, slots=True)
class Job:
    """What a run trains: the program's hash and size in bytes, classes for checking shards, and the settings."""

    program: Annotated[str, _HASH]
    program_size: Annotated[int, Int(128, 64 + 64 * MAX_LAYERS)]
    settings: Annotated[Settings, Nested(Settings)]


@dataclass(frozen=True, slots=True)
class FloatJob:
    """What a full-precision run trains: a bundle of ONNX Runtime training files, whose state has `values` floats."""

    bundle: Annotated[str, _HASH]
    bundle_size: Annotated[int, _BLOB_SIZE]
    values: Annotated[int, Int(1, MAX_BLOB // 4)]
    batch: Annotated[int, Int(1, 4096)]


@dataclass(frozen=True, slots=True)
class PlanSize:
    """Bytes of a training arena with every layer at `bits`: by the planner, and as a trial step measured them.

    `measured_bytes` is None where no trial was run because the plan exceeds the limit.
    """

    bits: Annotated[int, _BITS]
    planned_bytes: Annotated[int, _BYTES]
    measured_bytes: Annotated[int | None, Opt(_BYTES)]


@dataclass(frozen=True, slots=True)
class LayerBlobs:
    """One weight layer by reference: bits, step, hashes of [sign, plane 1, .. plane bits] and of the parameters."""

    bits: Annotated[int, _BITS]
    step: Annotated[FxPair, Fx()]
    planes: Annotated[tuple[str, ...], List(_HASH, 2, MAX_BITS + 1)]
    params: Annotated[str, _HASH]

    def check(self, where: str) -> None:
        """Refuse a number of planes that is not bits + 1."""
        if len(self.planes) != self.bits + 1:
            raise ProtocolError(f"{where}: {len(self.planes)} planes for {self.bits} bits and a sign")

    @property
    def blobs(self) -> tuple[str, ...]:
        """Every hash of the layer, in order."""
        return (*self.planes, self.params)


@dataclass(frozen=True, slots=True)
class Want:
    """Chunks of one blob that a receiver lacks, as a bitmap in hex (`chunks.indices_of`)."""

    sha256: Annotated[str, _HASH]
    bitmap: Annotated[str, _BITMAP]


# --- coordinator, retained ----------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class CoordState:
    """The coordinator is there (or, as its will, gone); with a job, devices profile themselves against it."""

    TYPE: ClassVar[str] = "coord"
    run: Annotated[str, _NAME]
    online: Annotated[bool, Bool()]
    seq: Annotated[int, _U32]
    job: Annotated[Job | FloatJob | None, Opt(OneOf((Job, FloatJob)))]


@dataclass(frozen=True, slots=True)
class RoundState:
    """Where a run stands. Rounds count from 1; `deadline_ms` is Unix time, 0 outside `collect`.

    `seq` is the one of `CoordState`, so that (seq, round, phase) has an order: a message that was overtaken is known
    for what it is, and a coordinator restored from a backup may return to an earlier round.
    """

    TYPE: ClassVar[str] = "round"
    run: Annotated[str, _NAME]
    round: Annotated[int, _U32]
    rounds: Annotated[int, _U32]
    phase: Annotated[
        Literal["waiting", "collect", "closed", "finished", "cancelled"],
        Choice(("waiting", "collect", "closed", "finished", "cancelled")),
    ]
    deadline_ms: Annotated[int, _MILLISECONDS]
    seq: Annotated[int, _U32]

    @property
    def over(self) -> bool:
        """Whether no round follows, unless the run is resumed."""
        return self.phase in ("finished", "cancelled")

    @property
    def order(self) -> tuple[int, int, int]:
        """Grows with every state of a run but for a deadline that moves."""
        ranks = {"collect": 0, "closed": 1, "waiting": 2, "finished": 3, "cancelled": 3}
        return self.seq, self.round, ranks[self.phase]


# --- device -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class DeviceState:
    """Birth of a device, or as its will (same `bd_seq`, online false) its death. Retained."""

    TYPE: ClassVar[str] = "device"
    device: Annotated[str, _NAME]
    online: Annotated[bool, Bool()]
    bd_seq: Annotated[int, _U32]
    version: Annotated[str, _VERSION]


@dataclass(frozen=True, slots=True)
class Profile:
    """What a device has: memory (bytes), instruction set, samples, and the arena sizes of the run's program.

    `budget_bytes` is what a training arena may take; `limit_source` names where it comes from. `plans` has one entry
    for each of 1..8 bits, planned for `threads` threads. `peak_bytes` is the resident peak (VmHWM) of the process
    that ran the trial steps.
    """

    TYPE: ClassVar[str] = "profile"
    device: Annotated[str, _NAME]
    run: Annotated[str, _NAME]
    program: Annotated[str, _HASH]
    samples: Annotated[int, _U32]
    budget_bytes: Annotated[int, _BYTES]
    limit_source: Annotated[
        Literal["option", "cgroup-v2", "cgroup-v1", "available", "address-space", "board"],
        Choice(("option", "cgroup-v2", "cgroup-v1", "available", "address-space", "board")),
    ]
    ram_bytes: Annotated[int, _BYTES]
    available_bytes: Annotated[int, _BYTES]
    cgroup_bytes: Annotated[int | None, Opt(_BYTES)]
    peak_bytes: Annotated[int, _BYTES]
    plans: Annotated[tuple[PlanSize, ...], List(Nested(PlanSize), MAX_BITS, MAX_BITS)]
    machine: Annotated[str, _TEXT]
    isa: Annotated[str, _TEXT]
    cpus: Annotated[int, Int(1, U16)]
    threads: Annotated[int, Int(1, U16)]
    version: Annotated[str, _VERSION]

    def check(self, where: str) -> None:
        """Refuse a table that does not name 1..8 bits in order."""
        if [plan.bits for plan in self.plans] != list(range(1, MAX_BITS + 1)):
            raise ProtocolError(f"{where}.plans: expected 1..{MAX_BITS} bits in order")


@dataclass(frozen=True, slots=True)
class FloatProfile:
    """What a full-precision client has, and what a trial step of the run's bundle took.

    `step_bytes` is how far a process grew from before its engine loaded the model to the peak of a training step, None
    where the trial did not survive; `peak_bytes` is that process's resident peak (VmHWM), `engine` name and version.
    """

    TYPE: ClassVar[str] = "float-profile"
    device: Annotated[str, _NAME]
    run: Annotated[str, _NAME]
    bundle: Annotated[str, _HASH]
    samples: Annotated[int, _U32]
    budget_bytes: Annotated[int, _BYTES]
    limit_source: Annotated[str, _LIMIT_SOURCE]
    ram_bytes: Annotated[int, _BYTES]
    available_bytes: Annotated[int, _BYTES]
    cgroup_bytes: Annotated[int | None, Opt(_BYTES)]
    step_bytes: Annotated[int | None, Opt(_BYTES)]
    peak_bytes: Annotated[int, _BYTES]
    machine: Annotated[str, _TEXT]
    engine: Annotated[str, _TEXT]
    cpus: Annotated[int, Int(1, U16)]
    threads: Annotated[int, Int(1, U16)]
    version: Annotated[str, _VERSION]


@dataclass(frozen=True, slots=True)
class Request:
    """A device pulls: chunks of blobs it lacks, or (`plan` true) the plan of a round it has not seen."""

    TYPE: ClassVar[str] = "request"
    run: Annotated[str, _NAME]
    round: Annotated[int, _U32]
    plan: Annotated[bool, Bool()]
    wants: Annotated[tuple[Want, ...], List(Nested(Want), 0, MAX_WANTS)]


@dataclass(frozen=True, slots=True)
class Update:
    """The result of local training, by reference; the coordinator then asks for blobs it lacks (`Need`).

    `plan` is the `PlanMessage.identity` trained under; `count`, `correct` and `loss_q16` sum over all steps.
    """

    TYPE: ClassVar[str] = "update"
    run: Annotated[str, _NAME]
    round: Annotated[int, _U32]
    plan: Annotated[str, _HASH]
    samples: Annotated[int, Int(1, U32)]
    steps: Annotated[int, _U32]
    count: Annotated[int, _BYTES]
    correct: Annotated[int, _BYTES]
    loss_q16: Annotated[int, _BYTES]
    planned_bytes: Annotated[int, _BYTES]
    measured_bytes: Annotated[int, _BYTES]
    train_ms: Annotated[int, _MILLISECONDS]
    layers: Annotated[tuple[LayerBlobs, ...], List(Nested(LayerBlobs), 1, MAX_LAYERS)]

    def check(self, where: str) -> None:
        """Refuse layers whose planes do not match their bits."""
        for i, layer in enumerate(self.layers):
            layer.check(f"{where}.layers[{i}]")


@dataclass(frozen=True, slots=True)
class FloatUpdate:
    """The result of local training in full precision: the coded change of the state, by reference.

    `blob` is coded by the plan's method; `count`, `correct` and `loss_q16` sum over all steps; `measured_bytes` is how
    far training made the process grow.
    """

    TYPE: ClassVar[str] = "float-update"
    run: Annotated[str, _NAME]
    round: Annotated[int, _U32]
    plan: Annotated[str, _HASH]
    samples: Annotated[int, Int(1, U32)]
    steps: Annotated[int, _U32]
    count: Annotated[int, _BYTES]
    correct: Annotated[int, _BYTES]
    loss_q16: Annotated[int, _BYTES]
    measured_bytes: Annotated[int, _BYTES]
    train_ms: Annotated[int, _MILLISECONDS]
    blob: Annotated[str, _HASH]
    blob_size: Annotated[int, _BLOB_SIZE]

    @property
    def layers(self) -> tuple[LayerBlobs, ...]:
        """No layers of their own bit-widths."""
        return ()


@dataclass(frozen=True, slots=True)
class Refusal:
    """A device will not train a plan (`plan` is its identity): a reason, and for memory the two numbers in bytes."""

    TYPE: ClassVar[str] = "refusal"
    run: Annotated[str, _NAME]
    round: Annotated[int, _U32]
    plan: Annotated[str, _HASH]
    reason: Annotated[str, _SLUG]
    planned_bytes: Annotated[int, _BYTES]
    limit_bytes: Annotated[int, _BYTES]
    detail: Annotated[str, _TEXT]


# --- coordinator to one device ------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class PlanMessage:
    """What one device shall train in one round: its bit-widths, where the weights are, rates and keys.

    `client` is the device's number in the random key (seed, round, client, step); `lasso` has one fx for each weight
    layer or none at all; `eps_q16` is the pruning threshold in 1/65536 (0: no pruning); times are the coordinator's
    Unix clock, so `deadline_ms - sent_ms` is the time allowed whatever the device's own clock says. `late_rounds`: so
    many rounds later the update still counts, with less weight, unless the device has been given another plan.
    """

    TYPE: ClassVar[str] = "plan"
    run: Annotated[str, _NAME]
    round: Annotated[int, _U32]
    program: Annotated[str, _HASH]
    program_size: Annotated[int, Int(128, 64 + 64 * MAX_LAYERS)]
    settings: Annotated[Settings, Nested(Settings)]
    layers: Annotated[tuple[LayerBlobs, ...], List(Nested(LayerBlobs), 1, MAX_LAYERS)]
    epochs: Annotated[int, Int(1, 1000)]
    seed: Annotated[int, _U32]
    client: Annotated[int, _U32]
    lr: Annotated[FxPair, Fx()]
    weight_decay: Annotated[FxPair, Fx()]
    momentum_q15: Annotated[int, Int(0, 32767)]
    lasso: Annotated[tuple[FxPair, ...], List(Fx(), 0, MAX_LAYERS)]
    eps_q16: Annotated[int, Int(0, 65536)]
    planned_bytes: Annotated[int, _BYTES]
    sent_ms: Annotated[int, _MILLISECONDS]
    deadline_ms: Annotated[int, _MILLISECONDS]
    late_rounds: Annotated[int, Int(0, 64)] = 0

    def check(self, where: str) -> None:
        """Refuse layers whose planes do not match their bits, and a Lasso of another number of layers."""
        for i, layer in enumerate(self.layers):
            layer.check(f"{where}.layers[{i}]")
        if self.lasso and len(self.lasso) != len(self.layers):
            raise ProtocolError(f"{where}.lasso: {len(self.lasso)} entries for {len(self.layers)} layers")

    @property
    def bits(self) -> tuple[int, ...]:
        """Bits of each weight layer."""
        return tuple(layer.bits for layer in self.layers)

    @property
    def identity(self) -> str:
        """SHA-256 over everything but the two times: a plan that is sent again is still the same plan."""
        return digest(encode(replace(self, sent_ms=0, deadline_ms=0)))


@dataclass(frozen=True, slots=True)
class FloatPlan:
    """What a full-precision client shall train in one round: the global state, rates, keys, and how to code its change.

    `state` is the SHA-256 of `values` float32 (little-endian), in the order of the bundle's manifest.
    """

    TYPE: ClassVar[str] = "float-plan"
    run: Annotated[str, _NAME]
    round: Annotated[int, _U32]
    bundle: Annotated[str, _HASH]
    state: Annotated[str, _HASH]
    values: Annotated[int, Int(1, MAX_BLOB // 4)]
    method: Annotated[str, Choice(METHODS)]
    epochs: Annotated[int, Int(1, 1000)]
    batch: Annotated[int, Int(1, 4096)]
    crop: Annotated[bool, Bool()]
    flip: Annotated[bool, Bool()]
    seed: Annotated[int, _U32]
    client: Annotated[int, _U32]
    lr: Annotated[FxPair, Fx()]
    weight_decay: Annotated[FxPair, Fx()]
    momentum_q15: Annotated[int, Int(0, 32767)]
    sent_ms: Annotated[int, _MILLISECONDS]
    deadline_ms: Annotated[int, _MILLISECONDS]

    @property
    def identity(self) -> str:
        """SHA-256 over everything but the two times, as `PlanMessage.identity`."""
        return digest(encode(replace(self, sent_ms=0, deadline_ms=0)))


@dataclass(frozen=True, slots=True)
class Need:
    """Answer to an update: the chunks the coordinator lacks before it can judge it. `ref` is the update's SHA-256."""

    TYPE: ClassVar[str] = "need"
    run: Annotated[str, _NAME]
    round: Annotated[int, _U32]
    ref: Annotated[str, _HASH]
    wants: Annotated[tuple[Want, ...], List(Nested(Want), 1, MAX_WANTS)]


@dataclass(frozen=True, slots=True)
class Ack:
    """The application's verdict on a profile, update or refusal, named by the SHA-256 of its bytes."""

    TYPE: ClassVar[str] = "ack"
    run: Annotated[str, _NAME]
    round: Annotated[int, _U32]
    of: Annotated[Literal["profile", "update", "refusal"], Choice(("profile", "update", "refusal"))]
    ref: Annotated[str, _HASH]
    accepted: Annotated[bool, Bool()]
    reason: Annotated[str, _SLUG]
    detail: Annotated[str, _TEXT]

    def check(self, where: str) -> None:
        """Refuse a rejection without a reason and an acceptance with one."""
        if self.accepted == bool(self.reason):
            raise ProtocolError(f"{where}.reason: a rejection has a reason, an acceptance has none")

    @property
    def verdict(self) -> str:
        """For logs and tables: ``accepted`` or ``rejected:<reason>``."""
        return "accepted" if self.accepted else f"rejected:{self.reason}"


FloatControl: TypeAlias = FloatProfile | FloatUpdate | FloatPlan
_FLOAT_NAMES: Final = (FloatProfile.TYPE, FloatUpdate.TYPE, FloatPlan.TYPE)
IntegerControl: TypeAlias = (
    CoordState | RoundState | DeviceState | Profile | Request | Update | Refusal | PlanMessage | Need | Ack
)
Control: TypeAlias = IntegerControl | FloatControl


@dataclass(frozen=True, slots=True)
class Bundle:
    """Several chunks in one message."""

    TYPE: ClassVar[str] = "chunks"
    chunks: tuple[Chunk, ...]


Message: TypeAlias = Control | Chunk | Bundle

#: Which messages may come on which kind of topic.
ALLOWED: Final[dict[str, tuple[type[Message], ...]]] = {
    topics.COORD_STATE: (CoordState,),
    topics.ROUND: (RoundState,),
    topics.STATE: (DeviceState,),
    topics.PROFILE: (Profile, FloatProfile),
    topics.UPDATE: (Update, FloatUpdate, Refusal, Chunk),
    topics.REQUEST: (Request,),
    topics.PLAN: (PlanMessage, FloatPlan),
    topics.CHUNK: (Chunk,),
    topics.ACK: (Ack, Need),
}


def version_of(message: Message) -> int:
    """The first version of the protocol that has this message."""
    if isinstance(message, FloatControl):
        return FLOAT_VERSION
    return FLOAT_VERSION if isinstance(message, CoordState) and isinstance(message.job, FloatJob) else VERSION


def encode(message: Control) -> bytes:
    """The bytes of a control message, checked field by field. Raises `ProtocolError` for what no peer would take."""
    body = dump_object(message, message.TYPE)
    _cross_check(message, message.TYPE)
    data = dump_json({"v": version_of(message), "type": message.TYPE, **body})
    if len(data) > MAX_MESSAGE:
        raise ProtocolError(f"{message.TYPE}: {len(data)} bytes, a message has at most {MAX_MESSAGE}")
    return data


def decode(kind: str, data: bytes) -> Message:
    """The message that came on a topic of kind `kind` (`topics.Route.kind`).

    Raises:
        ProtocolError: too large, not JSON, unknown or misplaced type, another version, or a field that its check
            refuses; the message names the field's path.
    """
    allowed = ALLOWED[kind]
    if len(data) > MAX_MESSAGE:
        raise ProtocolError(f"{kind}: {len(data)} bytes, a message has at most {MAX_MESSAGE}")
    if is_chunk(data):
        if Chunk not in allowed:
            raise ProtocolError(f"{kind}: a chunk does not belong here")
        found_chunks = decode_chunks(data)
        return found_chunks[0] if len(found_chunks) == 1 else Bundle(found_chunks)
    found = _parse_json(data, kind)
    version = found.pop("v", None)
    name = found.pop("type", None)
    if type(version) is not int or version not in {VERSION, FLOAT_VERSION}:
        speaks = f"{VERSION} and {FLOAT_VERSION}"
        raise ProtocolError(f"{kind}: protocol version {str(version)[:20]}, this build speaks {speaks}")
    for cls in allowed:
        if cls is not Chunk and name == cls.TYPE:
            if cls is not CoordState and (version == FLOAT_VERSION) != (name in _FLOAT_NAMES):
                raise ProtocolError(f"{cls.TYPE}: not a message of protocol version {version}")
            message = load_object(cls, found, cls.TYPE)
            if version_of(message) != version:
                raise ProtocolError(f"{cls.TYPE}: such a job belongs to protocol version {version_of(message)}")
            _cross_check(message, cls.TYPE)
            return message
    raise ProtocolError(f"{kind}: a message of type {str(name)[:40]!r} does not belong here")


def digest(data: bytes) -> str:
    """The SHA-256 (hex) that names a blob, or a message in an ack's `ref`."""
    return hashlib.sha256(data).hexdigest()


def _cross_check(message: Message, where: str) -> None:
    """Checks over several fields, where a message has some."""
    check = getattr(message, "check", None)
    if check is not None:
        check(where)


__all__ = [
    "ALLOWED",
    "FLOAT_VERSION",
    "MAX_BITS",
    "MAX_BLOB",
    "MAX_LAYERS",
    "MAX_MESSAGE",
    "MAX_WANTS",
    "METHODS",
    "VERSION",
    "Ack",
    "Bundle",
    "Chunk",
    "Control",
    "CoordState",
    "DeviceState",
    "FloatJob",
    "FloatPlan",
    "FloatProfile",
    "FloatUpdate",
    "FxPair",
    "Job",
    "LayerBlobs",
    "Message",
    "Need",
    "PlanMessage",
    "PlanSize",
    "Profile",
    "Refusal",
    "Request",
    "RoundState",
    "Settings",
    "Update",
    "Want",
    "decode",
    "digest",
    "encode",
    "version_of",
]
