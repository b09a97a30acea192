"""Every way an artifact file can be bad ends in a named error before anything in it is used."""

from __future__ import annotations

import dataclasses
import os
import struct
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fedmpq.edge_runtime import artifact, container
from fedmpq.edge_runtime.artifact import Artifact
from fedmpq.edge_runtime.weights import LayerBlobs, check_layer, pack_weights, unpack_weights
from fedmpq.errors import FormatError, HashError, TruncatedError, VersionError
from fedmpq.export.program import ProgramBuilder


def small_program() -> bytes:
    builder = ProgramBuilder((6, 6, 1))
    builder.conv("conv1", 3, pad=1, stride=2)
    builder.global_pool()
    builder.classifier("fc", 5)
    return builder.build()


def zero_layer(theta: int, params: int, bits: int, guard: int = 0) -> LayerBlobs:
    planes = (bytes((theta + 7) // 8),) * (1 + bits + guard)
    return LayerBlobs(bits, guard, (1 << 30, -35), theta, planes, bytes(params))


def small_plan(bits: list[int]) -> dict[str, object]:
    return {
        "bits": bits, "batch": 8, "micro_batch": 8, "act_bits": 4, "guard": 1, "momentum": True, "threads": 1,
        "crop": True, "flip": False, "decay_bn": True, "recompute": True,
    }  # fmt: skip


def small_artifact() -> Artifact:
    layers = (zero_layer(27, 60, 2, guard=1), zero_layer(15, 20, 3, guard=1))
    return Artifact(small_program(), layers, small_plan([2, 3]), {"model": "small", "budget": None})


GOOD = artifact.pack(small_artifact())


def rebuilt(**changes: bytes) -> bytes:
    """The good file with sections replaced and all container hashes right again."""
    sections = {name: bytes(view) for name, view in container.unpack(GOOD).items()}
    return container.pack({**sections, **changes})


def test_round_trip_keeps_every_byte() -> None:
    read = artifact.unpack(GOOD)
    good = small_artifact()
    assert (read.program, read.layers, read.plan) == (good.program, good.layers, good.plan)
    assert read.manifest["model"] == "small"
    assert read.manifest["sha256"]["program"] == good.program_id
    assert artifact.pack(read) == GOOD


def test_truncation_at_every_byte_is_noticed() -> None:
    for length in range(len(GOOD)):
        with pytest.raises(TruncatedError):
            artifact.unpack(GOOD[:length])


def test_a_flipped_bit_anywhere_is_noticed() -> None:
    for position in range(len(GOOD)):
        damaged = bytearray(GOOD)
        damaged[position] ^= 1 << (position % 8)
        with pytest.raises(FormatError):
            artifact.unpack(bytes(damaged))


def test_sections_in_another_order_are_refused() -> None:
    sections = {name: bytes(view) for name, view in container.unpack(GOOD).items()}
    turned = container.pack(dict(reversed(sections.items())))
    with pytest.raises(FormatError, match="in the order manifest, plan, weights, program"):
        artifact.unpack(turned)


def test_bytes_after_the_end_are_refused() -> None:
    with pytest.raises(FormatError, match="after its end"):
        artifact.unpack(GOOD + b"\0")


@settings(max_examples=300, suppress_health_check=[HealthCheck.too_slow])
@given(st.binary(max_size=400), st.sampled_from([b"", container.MAGIC, GOOD[:64], GOOD[:320]]))
def test_any_bytes_give_an_artifact_or_a_format_error(tail: bytes, head: bytes) -> None:
    with pytest.raises(FormatError):
        artifact.unpack(head + tail)


@settings(max_examples=300)
@given(
    st.sampled_from(["program", "weights", "plan", "manifest"]),
    st.data(),
)
def test_damage_behind_right_hashes_is_noticed_or_harmless(name: str, data: st.DataObject) -> None:
    """An attacker can recompute hashes: the content checks alone must hold."""
    sections = {key: bytes(view) for key, view in container.unpack(GOOD).items()}
    body = bytearray(sections[name])
    for _ in range(data.draw(st.integers(1, 4))):
        body[data.draw(st.integers(0, len(body) - 1))] = data.draw(st.integers(0, 255))
    if data.draw(st.booleans()):
        del body[data.draw(st.integers(0, len(body) - 1)) :]
    try:
        artifact.unpack(rebuilt(**{name: bytes(body)}))
    except FormatError:
        return


def test_wrong_version_says_both_numbers() -> None:
    damaged = bytearray(GOOD)
    damaged[8:10] = struct.pack("<H", 7)
    with pytest.raises(VersionError, match="version 7, this build reads version 1"):
        artifact.unpack(bytes(damaged))


def test_wrong_hash_names_the_section() -> None:
    damaged = bytearray(GOOD)
    damaged[64 * 5 + 70] ^= 1
    with pytest.raises(HashError, match="'program'"):
        artifact.unpack(bytes(damaged))


def test_foreign_file_is_named() -> None:
    with pytest.raises(FormatError, match="not a fedmpq artifact"):
        artifact.unpack(b"PK\x03\x04 something else entirely")


@pytest.mark.parametrize("name", artifact.SECTIONS)
def test_missing_section_is_named(name: str) -> None:
    sections = {key: bytes(view) for key, view in container.unpack(GOOD).items() if key != name}
    with pytest.raises(FormatError, match=f"no section {name}"):
        artifact.unpack(container.pack(sections))


def test_unknown_section_is_refused() -> None:
    with pytest.raises(FormatError, match="extra"):
        artifact.unpack(rebuilt(extra=b"1"))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"planes": (bytes(4), bytes(4), bytes(3))}, "plane 2 has 3 bytes, 27 weights take 4"),
        ({"planes": (bytes(4), bytes(4), b"\0\0\0\x08")}, "bits set after its 27 weights"),
        ({"planes": (b"\1\0\0\0", bytes(4), bytes(4))}, "zero weights as negative"),
        ({"planes": (bytes(4),) * 2}, "2 planes, 3 are needed"),
        ({"step": (5, 0)}, "not a normalised scale"),
        ({"step": (1 << 30, 40000)}, "not a normalised scale"),
        ({"bits": 9}, "9 bits"),
    ],
)
def test_bad_layer_says_what_is_wrong(change: dict[str, object], message: str) -> None:
    layer = dataclasses.replace(zero_layer(27, 60, 2), **change)  # type: ignore[arg-type]
    with pytest.raises(FormatError, match=message):
        check_layer(layer, "layer 'conv1'")


def test_plane_of_wrong_length_shifts_nothing_silently() -> None:
    """A plane one byte short makes the weights section end early: the table's offsets notice."""
    body = pack_weights(small_artifact().layers)
    with pytest.raises(TruncatedError):
        unpack_weights(body[:-1])
    with pytest.raises(FormatError, match="after the last layer"):
        unpack_weights(body + b"\0")


def test_weights_of_another_program_are_refused() -> None:
    layers = (zero_layer(28, 60, 2, guard=1), zero_layer(15, 20, 3, guard=1))
    with pytest.raises(FormatError, match=r"'conv1' has 28 weights .* asks for 27"):
        artifact.pack(dataclasses.replace(small_artifact(), layers=layers))


def test_too_few_layers_are_refused() -> None:
    with pytest.raises(FormatError, match="1 weight layers for a program of 2"):
        artifact.pack(dataclasses.replace(small_artifact(), layers=small_artifact().layers[:1]))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"bits": [2, 4]}, "differ from those of the weights"),
        ({"batch": 0}, "batch = '0'"),
        ({"batch": True}, "must be of type int"),
        ({"momentum": 1}, "must be of type bool"),
        ({"act_bits": 5}, "must be 4 or 8"),
        ({"micro_batch": 9}, "exceeds batch"),
        ({"colour": 1}, "colour"),
        ({"guard": 0}, r"0 guard planes, its layers \[1\]"),
    ],
)
def test_bad_plan_names_the_field(change: dict[str, object], message: str) -> None:
    plan = {**small_plan([2, 3]), **change}
    with pytest.raises(FormatError, match=message):
        artifact.pack(dataclasses.replace(small_artifact(), plan=plan))


@pytest.mark.parametrize("raw", [b'{"a": 1}', b"[" * 20000, b"{}x", b"\xff", b'{"a":NaN}', b'{"a":1,"a":1}', b"[]"])
def test_json_must_be_a_canonical_object(raw: bytes) -> None:
    with pytest.raises(FormatError, match="JSON"):
        artifact.unpack(rebuilt(manifest=raw))


def test_manifest_of_another_artifact_is_refused() -> None:
    other = artifact.pack(dataclasses.replace(small_artifact(), plan={**small_plan([2, 3]), "batch": 9}))
    manifest = bytes(container.unpack(other)["manifest"])
    with pytest.raises(HashError, match="hash of plan"):
        artifact.unpack(rebuilt(manifest=manifest))


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda p: b"XXXXXXXX" + p[8:], "does not start with"),
        (lambda p: p[:-1], "its header says"),
        (lambda p: p[:74] + bytes(2) + p[76:], "impossible sizes"),
    ],
)
def test_bad_program_is_refused(damage: object, message: str) -> None:
    with pytest.raises(FormatError, match=message):
        artifact.unpack(rebuilt(program=damage(small_program())))  # type: ignore[operator]


def test_missing_file_says_so(tmp_path: Path) -> None:
    with pytest.raises(FormatError, match=r"there is no file .*nothing\.fmpq"):
        artifact.read(tmp_path / "nothing.fmpq")
    with pytest.raises(FormatError, match="cannot read"):
        artifact.read(tmp_path)


def test_write_replaces_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A write that fails half-way leaves the old file and no litter."""
    file = tmp_path / "model.fmpq"
    artifact.write(file, small_artifact())
    before = file.read_bytes()

    def full_disk(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full_disk)
    with pytest.raises(FormatError, match="No space left"):
        artifact.write(file, dataclasses.replace(small_artifact(), manifest={"model": "other"}))
    assert file.read_bytes() == before
    assert [p.name for p in tmp_path.iterdir()] == ["model.fmpq"]
