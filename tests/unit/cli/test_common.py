"""The helpers of command authors: results, tables, sizes, progress."""

from __future__ import annotations

import json
from pathlib import Path

import click
import numpy as np
import pytest

from fedmpq.cli import _common
from fedmpq.cli._common import ByteSize, emit, example, human_bytes, print_table, progress


def test_json_takes_what_results_hold(capsys):
    emit({"path": Path("a/b"), "n": np.int64(3), "row": np.arange(2), "raw": b"\x0f", "set": {2, 1}, "é": 1.5}, True)
    assert json.loads(capsys.readouterr().out) == {
        "path": "a/b", "n": 3, "row": [0, 1], "raw": "0f", "set": [1, 2], "é": 1.5,
    }  # fmt: skip


def test_json_refuses_what_it_cannot_say():
    with pytest.raises(TypeError, match="object has no place"):
        emit({"x": object()}, True)


def test_results_for_people(capsys):
    emit({"a": 1, "long": 2}, False)
    assert capsys.readouterr().out == "a     1\nlong  2\n"
    emit({"a": 1}, False, lambda result: click.echo(f"<{result['a']}>"))
    assert capsys.readouterr().out == "<1>\n"


def test_tables_align_and_show_everything_literally(capsys):
    print_table(["name", "bytes", "ok"], [["[red]x", 1234567, True], ["y", None, False]], title="sizes")
    out = capsys.readouterr().out
    assert "sizes" in out
    assert "[red]x" in out
    assert "1,234,567" in out
    assert "–" in out
    assert "yes" in out
    print_table(["only"], [])
    assert "only" in capsys.readouterr().out


def test_wide_tables_are_not_folded_in_a_pipe(capsys):
    print_table([f"column{i}" for i in range(12)], [["x" * 10] * 12])
    assert "x" * 10 in capsys.readouterr().out


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("65536", 65536),
        ("64KiB", 65536),
        ("64 kib", 65536),
        ("1.5MB", 1_500_000),
        ("2g", 2 * 10**9),
        ("1_000", 1000),
        ("0", 0),
    ],
)
def test_sizes(text, size):
    assert ByteSize().convert(text, None, None) == size


@pytest.mark.parametrize("text", ["", "x", "12q", "-1", "1e99g", "nan", "KiB", "1.2.3M"])
def test_wrong_sizes(text):
    with pytest.raises(click.BadParameter, match=r"is no size|out of range"):
        ByteSize().convert(text, None, None)


def test_bytes_for_people():
    assert [human_bytes(n) for n in (0, 9999, 10_000, 3 * 1024**2, 64 * 1024**2)] == [
        "0 B", "9,999 B", "9.8 KiB", "3,072.0 KiB", "64.00 MiB",
    ]  # fmt: skip


def test_progress_stays_off_standard_output_and_short(capsys, monkeypatch):
    now = iter(range(0, 1000, 6))
    monkeypatch.setattr(_common.time, "monotonic", lambda: float(next(now)))
    with progress("decoding", total=10) as advance:
        for _ in range(10):
            advance(1)
    output = capsys.readouterr()
    assert output.out == ""
    assert 2 <= output.err.count("\n") < 10
    assert "of 10" in output.err
    assert output.err.splitlines()[-1].startswith("decoding: done in")


def test_short_work_reports_nothing(capsys):
    with progress("decoding", total=10) as advance:
        advance(10)
    assert capsys.readouterr().err == ""


def test_examples_are_not_rewrapped():
    assert example("fedmpq a", "fedmpq b") == "\b\nExamples:\n  fedmpq a\n  fedmpq b"
