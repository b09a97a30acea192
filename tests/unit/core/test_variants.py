"""Every kernel table of this build against the scalar one, over generated shapes (core/tests/variants.c)."""

from __future__ import annotations

import subprocess
from functools import cache
from pathlib import Path

import pytest

from fedmpq.edge_runtime import core
from fedmpq.toolchain import edge as build
from fedmpq.toolchain import sources
from tests.helpers import edge


@cache
def _runner() -> Path:
    test = sources.root() / "tests" / "variants.c"
    return build.program(edge.native_profile(), "variants", [test], edge.BUILD / "native")


@pytest.mark.parametrize("seed", [1, 2])
@pytest.mark.parametrize("isa", core.isas())
def test_a_table_equals_the_scalar_one(isa, seed):
    done = subprocess.run([_runner(), str(seed), "150", isa], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-500:]
    assert len(done.stdout.splitlines()) == 13


def test_a_wrong_kernel_would_be_noticed(tmp_path):
    """The runner with one bit of a result changed behind the kernel's back."""
    source = (sources.root() / "tests" / "variants.c").read_text()
    changed = source.replace("k->igemm(&j);", "k->igemm(&j); theirs.s16[0] ^= 1;", 1)
    assert changed != source
    wrong = tmp_path / "wrong.c"
    wrong.write_text(changed.replace('"../src/', f'"{sources.root()}/src/'))
    runner = build.program(edge.native_profile(), "wrong", [wrong], edge.BUILD / "native")
    done = subprocess.run([runner, "1", "5"], capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "igemm differs at byte 0" in done.stdout
