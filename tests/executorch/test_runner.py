"""The C++ runner: no Python on the device, the same bits, the arena refused with both numbers."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from tests.executorch.runner import ROOT, Task, make


@pytest.fixture(scope="module")
def runner() -> str:
    return str(make(ROOT / "build" / "executorch-runner", None, "-DFMPQ_WERROR=OFF"))


@pytest.fixture(scope="module")
def task(tmp_path_factory: pytest.TempPathFactory) -> Task:
    return Task.make(tmp_path_factory.mktemp("task"))


def refused(runner: str, *arguments: str | Path) -> tuple[int, str]:
    done = subprocess.run([runner, *map(str, arguments)], capture_output=True, text=True, check=False)
    assert done.stdout == ""
    return done.returncode, done.stderr.strip().splitlines()[-1]


@pytest.mark.slow
def test_it_trains_to_the_native_bits_and_writes_the_artifact(runner: str, task: Task, tmp_path: Path) -> None:
    result = task.check([runner], tmp_path / "trained.fmpq")
    assert result["limit_bytes"] == 0
    assert result["other_bytes"] < 8192


@pytest.mark.slow
def test_the_delegate_refuses_an_arena_over_the_limit(runner: str, task: Task) -> None:
    code, said = refused(runner, *task.arguments, "--limit", str(task.planned - 1))
    assert code == 7
    assert said.endswith(f"the plan takes {task.planned} bytes but {task.planned - 1} are allowed, 1 too few")


@pytest.mark.slow
def test_bad_files_and_options_are_named(runner: str, task: Task, tmp_path: Path) -> None:
    whole = task.program.read_bytes()
    cut, other = tmp_path / "cut.pte", tmp_path / "other.pte"
    cut.write_bytes(whole[: len(whole) // 2])
    at = whole.index(b"FMPQART1") + 700
    other.write_bytes(whole[:at] + bytes([whole[at] ^ 1]) + whole[at + 1 :])
    assert refused(runner, cut, task.shard)[0] == 5
    assert refused(runner, other, task.shard)[0] == 5
    assert refused(runner, task.shard, task.shard)[0] == 5
    assert refused(runner, tmp_path / "absent.pte", task.shard)[0] == 5
    assert refused(runner, task.program, task.program)[0] == 4
    assert refused(runner, task.program, task.shard, "--lr", "fast") == (
        2, "fedmpq_runner: error: --lr cannot be 'fast'",
    )  # fmt: skip
