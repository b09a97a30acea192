"""The artifact file: program, weights, default plan and manifest in one (docs/artifact.md).

`read` checks everything before anything is used: hashes, versions, lengths, ranges, and that the parts belong together.
`write` replaces a file atomically. Standard library only; the C core checks the program's records once more.
"""

from __future__ import annotations

import hashlib
import json
import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fedmpq.edge_runtime import container
from fedmpq.edge_runtime.weights import LayerBlobs, check_layer, pack_weights, unpack_weights
from fedmpq.errors import FormatError, HashError

PROGRAM_MAGIC = b"FMPQPROG"
SECTIONS = ("program", "weights", "plan", "manifest")
MAX_JSON = 1 << 20

#: Plan fields: type and inclusive range. `bits` has one entry for each weight layer in record order.
PLAN_FIELDS: dict[str, tuple[type[int], int, int]] = {
    "batch": (int, 1, 65535),
    "micro_batch": (int, 1, 65535),
    "act_bits": (int, 4, 8),
    "guard": (int, 0, 8),
    "momentum": (bool, 0, 1),
    "threads": (int, 1, 256),
    "crop": (bool, 0, 1),
    "flip": (bool, 0, 1),
    "decay_bn": (bool, 0, 1),
    "recompute": (bool, 0, 1),
}

Json = dict[str, Any]


@dataclass(frozen=True)
class WeightShape:
    """What the program says about one weight layer."""

    record: int
    name: str
    theta: int  #: number of weights
    channels: int  #: output channels or classes
    params_bytes: int  #: length of the batch-norm or bias blob


@dataclass(frozen=True)
class Artifact:
    """The parts of an artifact file.

    Attributes:
        program: the program's bytes.
        layers: one entry for each weight layer, in record order.
        plan: the default plan: `bits` and the fields of `PLAN_FIELDS`.
        manifest: where it comes from: model, budget, profile, versions. `pack` adds the hashes of the other sections.
    """

    program: bytes
    layers: tuple[LayerBlobs, ...]
    plan: Json
    manifest: Json = field(default_factory=dict)

    @property
    def program_id(self) -> str:
        """SHA-256 of the program."""
        return sha256(self.program)


def sha256(data: bytes | memoryview) -> str:
    """SHA-256 as hex."""
    return hashlib.sha256(data).hexdigest()


def canonical(value: Json) -> bytes:
    """Canonical JSON: UTF-8, keys sorted, no spaces, no NaN. Equal values give equal bytes, so equal hashes."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False).encode()


def pack(artifact: Artifact) -> bytes:
    """The bytes of an artifact file; checks the parts as `unpack` does."""
    weights = pack_weights(artifact.layers)
    plan = canonical(artifact.plan)
    hashes = {"program": artifact.program_id, "weights": sha256(weights), "plan": sha256(plan)}
    manifest = canonical({**artifact.manifest, "sha256": hashes})
    data = container.pack({"program": artifact.program, "weights": weights, "plan": plan, "manifest": manifest})
    unpack(data, "the new artifact")
    return data


def write(path: str | Path, artifact: Artifact) -> int:
    """Writes an artifact atomically and returns its size in bytes."""
    data = pack(artifact)
    container.write_atomic(path, data)
    return len(data)


def read(path: str | Path) -> Artifact:
    """Reads and checks an artifact file. Raises a FormatError that names the file and what is wrong with it."""
    return unpack(container.read_bytes(path), str(path))


def unpack(data: bytes | memoryview, source: str = "artifact") -> Artifact:
    """Reads and checks the bytes of an artifact file; any bytes give an artifact or a FormatError."""
    sections = container.unpack(data, source)
    missing = [name for name in SECTIONS if name not in sections]
    if missing:
        raise FormatError(f"{source} has no section {', '.join(missing)}")
    unknown = sorted(set(sections) - set(SECTIONS))
    if unknown:
        raise FormatError(f"{source} has sections this build does not know: {', '.join(unknown)}")
    if tuple(sections) != SECTIONS:
        raise FormatError(f"{source} has its sections in the order {', '.join(sections)}, not {', '.join(SECTIONS)}")
    program = bytes(sections["program"])
    shapes = weight_shapes(program, f"{source}: program")
    layers = unpack_weights(sections["weights"], f"{source}: weights")
    _check_layers(layers, shapes, source)
    plan = _json(sections["plan"], f"{source}: plan")
    check_plan(plan, [layer.bits for layer in layers], f"{source}: plan")
    guards = {layer.guard for layer in layers}
    if guards != {plan["guard"]}:
        raise FormatError(f"{source}: the plan has {plan['guard']} guard planes, its layers {sorted(guards)}")
    manifest = _json(sections["manifest"], f"{source}: manifest")
    _check_manifest(manifest, sections, source)
    return Artifact(program, layers, plan, manifest)


def weight_shapes(program: bytes, source: str = "program") -> tuple[WeightShape, ...]:
    """The weight layers a program asks for. Checks lengths only; the C core checks the records themselves."""
    if len(program) < 64 or program[:8] != PROGRAM_MAGIC:
        raise FormatError(f"{source} does not start with {PROGRAM_MAGIC.decode()} and a header of 64 bytes")
    count, total = struct.unpack_from("<HI", program, 10)
    if total != len(program) or total != 64 + 64 * count or not 1 <= count <= 64:
        raise FormatError(f"{source} has {len(program)} bytes, its header says {count} records in {total}")
    shapes = []
    for index in range(count):
        record = program[64 + 64 * index : 128 + 64 * index]
        kind, kh, kw = record[0], record[1], record[2]
        groups, cin, cout = struct.unpack_from("<HHH", record, 8)
        if kind not in {1, 5}:
            continue
        if not groups or not cin or not cout or not kh or not kw or cin % groups:
            raise FormatError(f"{source}: record {index} has impossible sizes ({cin} → {cout}, {groups} groups)")
        name = record[32:].rstrip(b"\0").decode(errors="replace")
        conv = kind == 1
        theta = cout * cin // groups * (kh * kw if conv else 1)
        shapes.append(WeightShape(index, name, theta, cout, cout * (20 if conv else 4)))
    return tuple(shapes)


def check_plan(plan: Mapping[str, Any], bits: Sequence[int], source: str = "plan") -> None:
    """Checks a plan's fields, types and ranges, and that its bit-widths are those of the weights."""
    keys = set(PLAN_FIELDS) | {"bits"}
    if set(plan) != keys:
        wrong = sorted(set(plan) ^ keys)
        raise FormatError(f"{source}: fields {', '.join(wrong)} are missing or unknown")
    for name, (kind, low, high) in PLAN_FIELDS.items():
        value = plan[name]
        if type(value) is not kind or not low <= value <= high:
            raise FormatError(f"{source}: {name} = {str(value)[:40]!r} must be of type {kind.__name__} in {low}…{high}")
    if plan["act_bits"] not in {4, 8}:
        raise FormatError(f"{source}: act_bits = {plan['act_bits']} must be 4 or 8")
    if plan["micro_batch"] > plan["batch"]:
        raise FormatError(f"{source}: micro_batch {plan['micro_batch']} exceeds batch {plan['batch']}")
    planned = plan["bits"]
    if not isinstance(planned, list) or any(type(n) is not int for n in planned) or planned != list(bits):
        raise FormatError(f"{source}: bits {str(planned)[:80]} differ from those of the weights, {list(bits)}")


def _check_layers(layers: Sequence[LayerBlobs], shapes: Sequence[WeightShape], source: str) -> None:
    if len(layers) != len(shapes):
        raise FormatError(f"{source}: {len(layers)} weight layers for a program of {len(shapes)}")
    for layer, shape in zip(layers, shapes, strict=True):
        where = f"{source}: layer {shape.name!r}"
        if (layer.theta, len(layer.params)) != (shape.theta, shape.params_bytes):
            raise FormatError(
                f"{where} has {layer.theta} weights and {len(layer.params)} parameter bytes, "
                f"the program asks for {shape.theta} and {shape.params_bytes}"
            )
        check_layer(layer, where)


def _json(view: memoryview, source: str) -> Json:
    if len(view) > MAX_JSON:
        raise FormatError(f"{source} has {len(view)} bytes, at most {MAX_JSON} are read")
    raw = bytes(view)
    try:
        value = json.loads(raw.decode())
        same = isinstance(value, dict) and canonical(value) == raw
    except (ValueError, RecursionError) as error:
        raise FormatError(f"{source} is not JSON: {str(error)[:120]}") from None
    if not same:
        raise FormatError(f"{source} is not a canonical JSON object")
    result: Json = value
    return result


def _check_manifest(manifest: Json, sections: Mapping[str, memoryview], source: str) -> None:
    hashes = manifest.get("sha256")
    if not isinstance(hashes, dict) or set(hashes) != {"program", "weights", "plan"}:
        raise FormatError(f"{source}: the manifest lists no hashes of program, weights and plan")
    for name, digest in hashes.items():
        if digest != sha256(sections[name]):
            raise HashError(f"{source}: the manifest's hash of {name} is not that of the section")
