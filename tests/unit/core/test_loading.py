"""Which library is loaded, and what is said where there is none."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest


def _isas(**environment: str) -> subprocess.CompletedProcess[str]:
    code = "from fedmpq.edge_runtime import core; print(*core.isas())"
    return subprocess.run(
        [sys.executable, "-c", code], env={**os.environ, **environment}, capture_output=True, text=True, check=False
    )


@pytest.mark.parametrize(
    ("environment", "said"),
    [
        ({"FEDMPQ_CORE": "/nowhere/libfmpq.so"}, "FEDMPQ_CORE=/nowhere/libfmpq.so is not there"),
        ({"FEDMPQ_CORE": sys.executable}, "is not this version's integer core"),
        ({"FEDMPQ_ISA": "mmx"}, "FEDMPQ_ISA=mmx is not available here (one of: scalar"),
    ],
)
def test_a_library_that_was_asked_for_and_is_not_there_is_an_error(environment, said):
    done = _isas(**environment)
    assert done.returncode
    assert said in done.stderr


def test_without_a_wish_the_fastest_kernels_come_last():
    assert _isas(FEDMPQ_CORE="", FEDMPQ_ISA="").stdout.split()[0] == "scalar"
