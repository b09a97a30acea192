"""The core under AddressSanitizer and UBSan: real steps, and programs with wrong bytes."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
CORE = ROOT / "edge_runtime" / "core"


def _runtime(name: str) -> str:
    return subprocess.run(
        ["gcc", f"-print-file-name={name}"], capture_output=True, text=True, check=True
    ).stdout.strip()


@pytest.fixture(scope="module")
def sanitized(tmp_path_factory: pytest.TempPathFactory) -> Path:
    library = tmp_path_factory.mktemp("core") / "libfmpq.so"
    sources = [*CORE.glob("src/*.c"), *CORE.glob("src/ref/*.c"), CORE / "port" / "pool_pthread.c"]
    flags = ["-std=c11", "-g", "-O1", "-fsanitize=address,undefined", "-fno-sanitize-recover=all", "-fPIC", "-shared"]
    includes = [f"-I{CORE / 'include'}", f"-I{CORE / 'src'}"]
    subprocess.run(["gcc", *flags, *includes, *map(str, sources), "-o", str(library), "-lpthread"], check=True)
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
