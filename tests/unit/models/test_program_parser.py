"""The reference's own parser: it accepts what the helper writes and names what is wrong in anything else."""

from __future__ import annotations

import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedmpq.edge_runtime import core
from fedmpq.errors import FedmpqError, FormatError, TruncatedError, VersionError
from fedmpq.models.reference.program import Kind, Skip, parse
from tests.helpers import programs

NETS = [
    programs.resnet(1),
    programs.resnet(3, size=(8, 8, 1), mean=(78,)),
    programs.variety(),
    programs.variety(flat=True),
    programs.variety(linear=True),
]
GOOD = programs.variety().build()


def changed(offset: int, fmt: str, value: int) -> bytes:
    data = bytearray(GOOD)
    struct.pack_into(fmt, data, offset, value)
    return bytes(data)


@pytest.mark.parametrize("net", NETS)
def test_records_and_shapes_come_back(net: programs.Builder) -> None:
    parsed = parse(net.build())
    assert parsed.in_shape == (net.height, net.width, net.channels)
    assert [(r.h_out, r.w_out, r.cout) for r in parsed.records] == net.shapes[1:]
    for record, (_, rows, kh, kw, cin) in zip(parsed.weight_layers, net.layers, strict=True):
        assert record.weight_shape == (rows, kh, kw, cin)
        assert record.fan_in == kh * kw * cin


def test_a_resnet_has_option_a_shortcuts_and_a_pooled_classifier() -> None:
    parsed = parse(programs.resnet(1, t_residual=2).build())
    skips = [r for r in parsed.records if r.skip_kind is not Skip.NONE]
    assert [(r.skip_kind, r.skip_pad_c) for r in skips] == [
        (Skip.IDENTITY, 0),
        (Skip.OPTION_A, 8),
        (Skip.OPTION_A, 16),
    ]
    assert parsed.pooled_window == 64
    assert parsed.records[-2].kind is Kind.GLOBAL_POOL
    assert parsed.exponents[parsed.records[-1].input] == 2


@pytest.mark.parametrize("length", range(0, len(GOOD), 7))
def test_a_program_cut_anywhere_is_refused(length: int) -> None:
    with pytest.raises(TruncatedError):
        parse(GOOD[:length])


@pytest.mark.parametrize(
    ("data", "error", "text"),
    [
        (b"X" + GOOD[1:], FormatError, "magic"),
        (changed(8, "<H", 2), VersionError, "version 2"),
        (changed(10, "<H", 3), TruncatedError, "3 records"),
        (changed(22, "<H", 1), FormatError, "header"),
        (changed(24, "<B", 17), FormatError, "header"),
        (changed(25, "<B", 1), FormatError, "reserved"),
        (changed(28 + 3, "<B", 9), FormatError, "header"),
        (changed(64, "<B", 6), FormatError, "record 0"),
        (changed(64 + 5, "<B", 3), FormatError, "record 0"),
        (changed(64 + 6, "<B", 7), FormatError, "record 0 .stem.: bad output exponent"),
        (changed(64 + 3, "<B", 0), FormatError, "record 0"),
        (changed(64 + 12, "<H", 9), FormatError, "record 1"),
        (changed(64 + 18, "<H", 3), FormatError, "output shape"),
        (changed(128 + 22, "<H", 5), FormatError, "record 1"),
        (changed(128 + 8, "<H", 3), FormatError, "groups"),
        (changed(192 + 24, "<H", 0), FormatError, "skip"),
        (changed(192 + 24, "<H", 2), FormatError, "skip"),
        (changed(len(GOOD) - 64, "<B", 1), FormatError, "classifier"),
        (changed(len(GOOD) - 64 + 32, "<B", 0xFF), FormatError, "UTF-8"),
    ],
)
def test_bad_fields_are_named(data: bytes, error: type[FedmpqError], text: str) -> None:
    with pytest.raises(error, match=text):
        parse(data)


def _pools(kind: int, window: tuple[int, int, int, int], tail: tuple[int, int] = (0, 0)) -> bytes:
    """A convolution, a pool of this window, stride and padding, a classifier of this exponent and skip padding."""
    net = programs.Builder(4, 4, 1, 3)
    pooled = net._add(kind, "pool", net.conv("first", 0, 4), window, 4)
    net.classifier("fc", pooled)
    data = bytearray(net.build())
    data[-64 + 6] = tail[0]
    data[-64 + 26] = tail[1]
    return bytes(data)


@pytest.mark.parametrize(
    ("data", "text"),
    [
        (_pools(programs.AVG_POOL, (2, 2, 1, 1)), "padding"),
        (_pools(programs.GLOBAL_POOL, (4, 4, 3, 1)), "padding"),
        (_pools(programs.MAX_POOL, (2, 2, 1, 1), (1, 0)), "exponent"),
        (_pools(programs.MAX_POOL, (2, 2, 1, 1), (0, 1)), "skip"),
        (changed(64 + 26, "<H", 1), "skip"),
        (changed(64 * 5 + 26, "<H", 1), "skip"),
    ],
    ids=["average", "global", "classifier-exponent", "classifier-skip", "convolution-skip", "pool-skip"],
)
def test_core_and_reference_refuse_the_same_fields(data: bytes, text: str) -> None:
    with pytest.raises(FormatError, match=text):
        parse(data)
    with pytest.raises(FormatError):
        core.Program(data)
    good = _pools(programs.MAX_POOL, (2, 2, 1, 1))
    assert parse(good).data == core.Program(good).data


@given(st.integers(0, len(GOOD) - 1), st.integers(1, 255))
def test_any_changed_byte_is_accepted_or_refused_with_a_named_error(offset: int, flip: int) -> None:
    data = bytearray(GOOD)
    data[offset] ^= flip
    try:
        parse(bytes(data))
    except FormatError as error:
        assert str(error)  # noqa: PT017 - most flips are refused, some change a name or a mean


def test_a_tensor_that_nobody_reads_is_refused() -> None:
    net = programs.Builder(8, 8, 1, 3)
    first = net.conv("first", 0, 4)
    net.conv("idle", first, 4)
    net.classifier("fc", net.global_pool("pool", first))
    with pytest.raises(FormatError, match="tensor 2"):
        parse(net.build())


def test_a_pool_in_front_of_the_classifier_has_no_other_reader() -> None:
    net = programs.Builder(1, 1, 2, 3)
    first = net.conv("first", 0, 4, kernel=1)
    pooled = net.global_pool("pool", first)
    net.conv("other", pooled, 4, kernel=1)
    net.classifier("fc", pooled)
    with pytest.raises(FormatError, match=r"tensor 3|only the classifier"):
        parse(net.build())
