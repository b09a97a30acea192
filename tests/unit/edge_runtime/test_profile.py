"""Profiles: planned and measured bytes at each width, also where the kernel kills the trial."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from fedmpq.edge_runtime import core, memory, profile, protocol
from fedmpq.edge_runtime.profile import Limits
from fedmpq.edge_runtime.trainer import core_plan
from fedmpq.errors import CoreError
from tests.helpers import messages
from tests.helpers.scripted import PROGRAM

SETTINGS = messages.settings(batch=8)


@pytest.fixture
def program_file(tmp_path: Path) -> Path:
    path = tmp_path / "program"
    path.write_bytes(PROGRAM)
    return path


def planned(bits: int) -> int:
    program = core.Program(PROGRAM)
    return core.plan_memory(program, core_plan(core, SETTINGS, [bits] * len(program.weight_layers))).total


def test_the_child_measures_what_the_planner_plans(program_file: Path) -> None:
    sizes, peak = profile.trials_in_child(core, program_file, SETTINGS, 10**8, 1)
    assert [size.planned_bytes for size in sizes] == [planned(bits) for bits in range(1, 9)]
    assert all(size.planned_bytes == size.measured_bytes for size in sizes)
    assert peak > max(size.planned_bytes for size in sizes)
    assert (sizes, True) == (profile.trials_in_process(core, program_file, SETTINGS, 10**8, 1)[0], True)


def test_widths_above_the_budget_are_planned_but_not_tried(program_file: Path) -> None:
    sizes, _ = profile.trials_in_child(core, program_file, SETTINGS, planned(4), 1)
    assert [size.measured_bytes is not None for size in sizes] == [True] * 4 + [False] * 4
    sizes, _ = profile.trials_in_child(core, program_file, SETTINGS, planned(4) - 1, 1)
    assert [size.measured_bytes is not None for size in sizes] == [True] * 3 + [False] * 5


def test_a_child_killed_for_memory_bounds_the_budget(program_file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lines = "".join(
        f'{{"bits": {b}, "planned_bytes": {planned(b)}, "measured_bytes": {planned(b)}}}\n' for b in (1, 2, 3)
    )

    def killed(command: list[str], **_: object) -> subprocess.CompletedProcess[str]:
        return subprocess.CompletedProcess(command, -9, lines, "")

    monkeypatch.setattr(subprocess, "run", killed)
    sizes, _ = profile.trials_in_child(core, program_file, SETTINGS, 10**8, 1)
    assert [size.planned_bytes for size in sizes] == [planned(bits) for bits in range(1, 9)]
    assert [size.measured_bytes is not None for size in sizes] == [True] * 3 + [False] * 5
    found, ceiling = profile.make_profile(core, "pi-1", "r1", program_file, SETTINGS, 5, Limits(10**8))
    assert found.budget_bytes == ceiling == planned(4) - 1


@pytest.mark.parametrize("kind", [bytes, str])
def test_a_child_that_takes_too_long_keeps_what_it_has_measured(
    program_file: Path, monkeypatch: pytest.MonkeyPatch, kind: type, caplog: pytest.LogCaptureFixture
) -> None:
    row = '{{"bits": {0}, "planned_bytes": {1}, "measured_bytes": {1}}}\n'
    lines = row.format(1, planned(1)) + row.format(2, planned(2)) + '{"bits": 3, "plan'

    def late(command: list[str], **_: object) -> None:
        raise subprocess.TimeoutExpired(command, 900, lines.encode() if kind is bytes else lines)

    monkeypatch.setattr(subprocess, "run", late)
    sizes, _ = profile.trials_in_child(core, program_file, SETTINGS, 10**8, 1)
    assert [size.planned_bytes for size in sizes] == [planned(bits) for bits in range(1, 9)]
    assert [size.measured_bytes is not None for size in sizes] == [True] * 2 + [False] * 6
    assert "2 widths took over 900 s" in caplog.text


@pytest.mark.parametrize("out", [None, b"", b'{"bits": 1'])
def test_a_child_that_measures_nothing_in_its_time_is_an_error(
    program_file: Path, monkeypatch: pytest.MonkeyPatch, out: bytes | None
) -> None:
    def late(command: list[str], **_: object) -> None:
        raise subprocess.TimeoutExpired(command, 900, out)

    monkeypatch.setattr(subprocess, "run", late)
    with pytest.raises(CoreError, match=r"took over 900 s .*smaller batch"):
        profile.trials_in_child(core, program_file, SETTINGS, 10**8, 1)


def test_a_full_precision_trial_that_takes_too_long_is_an_error(
    program_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    agent = pytest.importorskip("fedmpq.edge_runtime.ort.agent")

    def late(command: list[str], **_: object) -> None:
        raise subprocess.TimeoutExpired(command, 900)

    monkeypatch.setattr(subprocess, "run", late)
    with pytest.raises(CoreError, match="took over 900 s"):
        agent.trial_in_child(program_file, 8, 1)


def test_a_child_that_fails_otherwise_is_an_error(program_file: Path) -> None:
    program_file.write_bytes(b"no program")
    with pytest.raises(CoreError, match="trial step failed"):
        profile.trials_in_child(core, program_file, SETTINGS, 10**8, 1)


def test_a_profile_can_be_sent(program_file: Path) -> None:
    found, ceiling = profile.make_profile(
        core, "pi-1", "r1", program_file, SETTINGS, 5, Limits(None, 2), profile.trials_in_process
    )
    assert ceiling is None
    assert protocol.decode("up/profile", protocol.encode(found)) == found
    assert found.threads == 2
    assert found.limit_source != "option"
    assert 0 < found.budget_bytes <= memory.measure().ram
