"""The program writer: bytes as specified, and a clear refusal of what the format cannot hold."""

from __future__ import annotations

import struct
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedmpq.edge_runtime import core
from fedmpq.errors import FormatError, ModelError
from fedmpq.export.program import NAME_BYTES, Flag, Kind, ProgramBuilder, fit_name, program_id
from fedmpq.models.reference.program import parse


def small() -> ProgramBuilder:
    builder = ProgramBuilder((9, 8, 3), (10, 20, 30), crop_pad=2)
    builder.conv("stem", 4, (3, 2), stride=2, pad=1, t_out=1)
    builder.conv("a", 4, 3, pad=1)
    builder.conv("b", 4, 3, pad=1, skip=1, t_out=2)
    builder.global_pool()
    builder.classifier("fc", 7)
    return builder


def test_bytes_are_the_specified_ones() -> None:
    data = small().build()
    assert len(data) == 64 + 5 * 64
    assert struct.unpack_from("<8sHHIHHHHBBH", data) == (b"FMPQPROG", 1, 5, len(data), 9, 8, 3, 7, 2, 0, 0)
    assert data[28:31] == bytes([10, 20, 30])
    assert not any(data[31:64])
    record = struct.unpack_from("<BBBBBBBBHHHHHHHHHH4s32s", data, 64)
    assert record == (
        1, 3, 2, 2, 1, 0, 1, 0, 1, 3, 4, 9, 8, 5, 5, 0, 0xFFFF, 0, bytes(4), b"stem".ljust(32, b"\0"),
    )  # fmt: skip
    last = struct.unpack_from("<BBBBBBBBHHHHHHHHHH", data, 64 + 4 * 64)
    assert last == (5, 1, 1, 1, 0, 0, 0, 0, 1, 4, 7, 1, 1, 1, 1, 4, 0xFFFF, 0)


def test_the_core_reads_what_the_builder_writes() -> None:
    builder = small()
    program = core.Program(builder.build())
    assert [(r.name, r.skip_kind, r.skip) for r in program.records][2] == ("b", 1, 1)
    assert program.sha256 == program_id(builder.build())
    assert [r.theta for r in builder.records if r.theta] == [layer.theta for layer in program.weight_layers]


def test_option_a_takes_a_subsampled_skip_with_padded_channels() -> None:
    builder = ProgramBuilder((9, 9, 1))
    first = builder.conv("stem", 4, pad=1)
    builder.conv("a", 8, stride=2, pad=1)
    builder.conv("b", 8, pad=1, skip=first, option_a_pad=1)
    builder.classifier("fc", 2)
    record = core.Program(builder.build()).records[2]
    assert (record.skip_kind, record.skip, record.skip_pad_c) == (2, 1, 1)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda b: b.conv("x", 4, 8), "8×8 kernel exceeds"),
        (lambda b: b.conv("x", 4, stride=5), "stride 5 exceeds"),
        (lambda b: b.conv("x", 4, pad=3), "padding 3 has to be smaller"),
        (lambda b: b.conv("x", 4, 7), "does not fit a map of 5×4"),
        (lambda b: b.conv("x", 5000), "5000 output channels"),
        (lambda b: b.conv("x", 6, groups=3), "3 groups do not divide"),
        (lambda b: b.conv("x", 4, t_out=7), "activation exponent 7"),
        (lambda b: b.conv("x", 4, skip=1), "skip has shape 5×4×4, the output 3×2×4"),
        (lambda b: b.conv("x", 4, pad=1, skip=0), "the input image cannot be a skip"),
        (lambda b: b.conv("x", 4, pad=1, skip=3), "both input and skip"),
        (lambda b: b.conv("x", 4, pad=1, skip=2, option_a_pad=0), "an option-A shortcut from 5×4×4"),
        (lambda b: b.conv("x", 4, input=9), "there is no tensor 9"),
        (lambda b: b.conv("x" * 32, 4, pad=1), "takes 32 bytes"),
        (lambda b: b.pool("x", Kind.AVG_POOL, 2, pad=1), "without padding only"),
        (lambda b: b.pool("x", Kind.MAX_POOL, 2, input=0), "the image itself"),
        (lambda b: b.pool("x", Kind.CONV, 2), "no window pooling"),
        (lambda b: b.concat("x", 1, 0), "the image itself cannot be concatenated"),
        (lambda b: b.concat("x", 2, 2), "concatenated with itself"),
        (lambda b: b.concat("x", 2, b.conv("y", 4)), "cannot stand side by side"),
        (lambda b: b.concat("x", 2, b.conv("y", 4, pad=1, flags=Flag.LINEAR)), "behind a ReLU, the other is not"),
        (lambda b: b.classifier("x", 1), "1 classes"),
        (lambda b: b.classifier("x", 2) and b.conv("y", 4, 1), "nothing may follow the classifier"),
        (lambda b: b.build(), "has to end in a classifier"),
        (lambda b: [b.conv(f"x{i}", 4, pad=1) for i in range(62)], "at most 64 records"),
    ],
)
def test_what_does_not_fit_is_refused(change: Callable[[ProgramBuilder], object], message: str) -> None:
    builder = ProgramBuilder((9, 8, 3))
    builder.conv("stem", 4, stride=2, pad=1)
    builder.conv("a", 4, pad=1)
    builder.conv("b", 4, pad=1)
    builder.shapes[1] = builder.shapes[2]
    with pytest.raises(ModelError, match=message):
        change(builder)


@pytest.mark.parametrize(
    ("record", "offset", "value"),
    [
        (0, 7, 4),  # a flag that does not exist
        (3, 7, 1),  # a flag of a concatenation
        (3, 5, 1),  # its skip kind
        (3, 6, 0),  # its exponent, below that of an input
        (3, 10, 9),  # its channels
        (3, 22, 3),  # both inputs the same
        (2, 7, 0),  # one input unsigned, the other signed
        (2, 5, 3),  # a convolution that concatenates
    ],
)
def test_both_parsers_refuse_what_a_record_cannot_be(record: int, offset: int, value: int) -> None:
    builder = ProgramBuilder((6, 6, 3))
    builder.conv("a", 4, pad=1)
    builder.conv("b", 4, pad=1, t_out=1, flags=Flag.LINEAR)
    builder.conv("c", 4, pad=1, input=1, flags=Flag.LINEAR | Flag.BIASED)
    builder.concat("cat", 2, 3)
    builder.classifier("fc", 4)
    program = bytearray(builder.build())
    assert [r.flags for r in core.Program(bytes(program)).records] == [0, 1, 3, 1, 1]
    assert parse(bytes(program)).zeros == (0, 0, 128, 128, 128, 128)
    program[64 + 64 * record + offset] = value
    for read in (core.Program, parse):
        with pytest.raises(FormatError):
            read(bytes(program))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (((0, 8, 3),), "out of range"),
        (((8, 513, 3),), "out of range"),
        (((8, 8, 17),), "17 channels"),
        (((8, 8, 3), (1, 2)), "2 channel means for 3"),
        (((8, 8, 1), (256,)), "0…255"),
        (((8, 8, 1), (0,), 17), "crop padding 17"),
    ],
)
def test_bad_headers_are_refused(arguments: tuple[object, ...], message: str) -> None:
    with pytest.raises(ModelError, match=message):
        ProgramBuilder(*arguments)  # type: ignore[arg-type]


@given(st.lists(st.text(st.characters(exclude_categories=["Cs", "Cc"]), min_size=1, max_size=60), max_size=12))
def test_names_always_fit_and_never_repeat(paths: list[str]) -> None:
    taken: list[str] = []
    for path in paths:
        name = fit_name(path, taken)
        assert 0 < len(name.encode()) <= NAME_BYTES
        assert name not in taken
        taken.append(name)


def test_short_names_stay_as_they_are() -> None:
    assert fit_name("layer1.0.conv1", []) == "layer1.0.conv1"
    assert fit_name("a", ["a"]) == "a#2"
