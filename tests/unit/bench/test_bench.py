"""What the benchmarks compute from what they measure."""

from __future__ import annotations

from pathlib import Path
from xml.etree import ElementTree as ET

import pytest

from benchmarks import render_performance
from fedmpq.bench import compare, memory, scaling
from fedmpq.bench.job import Job
from fedmpq.cli import _arena_plot

ROOT = Path(__file__).resolve().parents[3]


def _measured(seconds: float, cpu: float, threads: int = 1) -> compare.Measured:
    return compare.Measured(Job("fedmpq", "resnet8", threads=threads), [seconds], [cpu], 1, 0, {}, (1.0, 1.0), 0)


def test_a_busy_machine_is_compared_by_processor_time_but_threads_never_are() -> None:
    assert compare.time_basis([_measured(1.0, 0.99), _measured(2.0, 1.9)]).name == "wall"
    assert compare.time_basis([_measured(1.0, 0.99), _measured(2.0, 1.0)]).name == "processor"
    assert compare.time_basis([_measured(1.0, 0.5, threads=2)]).name == "wall"


def test_a_straight_line_is_found_again() -> None:
    fixed, slope = memory.line((2, 8, 64), [1000 + 7 * x for x in (2, 8, 64)])
    assert fixed == pytest.approx(1000)
    assert slope == pytest.approx(7)


def test_scaling_compares_one_setting_with_others_of_one_difference() -> None:
    jobs = scaling.jobs_of(Job("fedmpq", "resnet8", batch=64, threads=2), (8, 64, 256), (1, 2))
    assert [(job.batch, job.threads, job.lasso) for job in jobs] == [
        (64, 1, False), (8, 1, False), (256, 1, False), (64, 2, False), (64, 1, True),
    ]  # fmt: skip


def test_scaling_runs() -> None:
    job = Job("fedmpq", "resnet8", (3, 8, 8), batch=4)
    result = scaling.run(job, (8,), (2,), 1, 0.01)
    assert [row["batch"] for row in result["batches"]] == [4, 8]
    assert [row["threads"] for row in result["threads"]] == [1, 2]
    assert result["threads"][0]["speedup"] == 1
    assert result["batch_spread"] >= 0


def test_the_arena_is_drawn_with_every_buffer_inside() -> None:
    buffers = [
        {"name": "state", "kind": "state", "offset": 0, "size": 60, "first": 0, "last": 7},
        {"name": "a <x-hat>", "kind": "x-hat", "offset": 60, "size": 40, "first": 0, "last": 5},
        {"name": "empty", "kind": "work", "offset": 0, "size": 0, "first": 1, "last": 1},
    ]
    root = ET.fromstring(_arena_plot.draw("net & arena", 100, 8, buffers))
    titles = [node.text for node in root.iter("{http://www.w3.org/2000/svg}title")]
    assert titles == ["state: 60 bytes at 0, ops 0 to 7", "a <x-hat>: 40 bytes at 60, ops 0 to 5"]


def test_the_performance_page_is_what_the_files_give() -> None:
    assert (ROOT / "docs" / "performance.md").read_text(encoding="utf-8") == render_performance.render()
