"""The same runner for aarch64, against the aarch64 wheel's runtime, in qemu: the bits of this machine."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tests.executorch.runner import ROOT, SOURCE, Task, make

pytestmark = [pytest.mark.slow, pytest.mark.arm]

EMULATOR = ["qemu-aarch64-static", "-cpu", "max", "-L", "/usr/aarch64-linux-gnu"]


def test_an_emulated_pi_trains_to_the_same_bits(tmp_path: Path) -> None:
    package = Path(os.environ["FEDMPQ_EXECUTORCH_AARCH64"])
    toolchain = f"-DCMAKE_TOOLCHAIN_FILE={SOURCE / 'aarch64.cmake'}"
    runner = make(ROOT / "build" / "executorch-runner-aarch64", package, toolchain, "-DFMPQ_WERROR=OFF")
    assert runner.read_bytes()[18:20] == b"\xb7\x00"  # EM_AARCH64
    Task.make(tmp_path).check([*EMULATOR, str(runner)], tmp_path / "trained.fmpq")
