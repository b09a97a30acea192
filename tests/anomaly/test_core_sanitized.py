"""The core under AddressSanitizer and UBSan: real steps, and programs with wrong bytes."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from fedmpq.edge_runtime import core
from fedmpq.toolchain import sources
from tests.helpers import edge

ROOT = Path(__file__).resolve().parents[2]
CORE = ROOT / "edge_runtime" / "core"


def _runtime(name: str) -> str:
    return subprocess.run(
        ["gcc", f"-print-file-name={name}"], capture_output=True, text=True, check=True
    ).stdout.strip()


SANITIZE = ("-std=c11", "-g", "-O1", "-fsanitize=address,undefined", "-fno-sanitize-recover=all")


@pytest.fixture(scope="module")
def sanitized(tmp_path_factory: pytest.TempPathFactory) -> Path:
    library = tmp_path_factory.mktemp("core") / "libfmpq.so"
    sources = [*CORE.glob("src/*.c"), *CORE.glob("src/ref/*.c"), CORE / "port" / "pool_pthread.c"]
    includes = [f"-I{CORE / 'include'}", f"-I{CORE / 'src'}"]
    subprocess.run(
        ["gcc", *SANITIZE, "-fPIC", "-shared", *includes, *map(str, sources), "-o", str(library), "-lpthread"],
        check=True,
    )
    return library


def test_steps_and_mutated_programs_are_clean(sanitized: Path) -> None:
    environment = os.environ | {
        "FEDMPQ_CORE": str(sanitized),
        "LD_PRELOAD": f"{_runtime('libasan.so')}:{_runtime('libubsan.so')}",
        "ASAN_OPTIONS": "detect_leaks=0",
    }
    environment.pop("FEDMPQ_ISA", None)
    done = subprocess.run(
        [sys.executable, "-m", "tests.helpers.sanitized", "7", "400"],
        cwd=ROOT, env=environment, capture_output=True, text=True, timeout=400, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-4000:]
    assert 20 < int(done.stdout) < 400, "mutations should be both accepted and refused"


@pytest.fixture(scope="module")
def variants(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The comparison of kernel tables, tables and all."""
    folder = tmp_path_factory.mktemp("variants")
    units, macros = sources.core(edge.native_profile())
    common = [*SANITIZE, f"-I{CORE / 'include'}", *(f"-D{name}" for name in macros)]
    objects = []
    for number, unit in enumerate(units):
        objects.append(str(folder / f"{number}.o"))
        subprocess.run(["gcc", *common, *unit.flags, "-c", str(unit.path), "-o", objects[-1]], check=True)
    runner = folder / "variants"
    test = str(CORE / "tests" / "variants.c")
    subprocess.run(["gcc", *common, test, *objects, "-o", str(runner), "-lpthread"], check=True)
    return runner


@pytest.mark.parametrize("isa", core.isas())
def test_kernels_are_clean(variants: Path, isa: str) -> None:
    done = subprocess.run([variants, "5", "60", isa], capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stdout[-500:] + done.stderr[-3000:]
