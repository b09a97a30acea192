"""The wheel as a user gets it: one package, one library, no generic names, and a base that needs no torch."""

from __future__ import annotations

import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]
FOLDERS = ("coordinator", "edge_runtime", "export", "firmware_profiles", "models")


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Build the wheel of the working tree."""
    folder = tmp_path_factory.mktemp("wheel")
    command = [
        sys.executable,
        "-m",
        "pip",
        "wheel",
        "-q",
        "--no-deps",
        "--no-build-isolation",
        "-w",
        str(folder),
        str(ROOT),
    ]
    command += ["-Cbuild-dir=" + str(folder / "build")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return next(folder.glob("*.whl"))


@pytest.mark.slow
def test_the_wheel_holds_one_package_and_the_library(wheel):
    assert wheel.name.startswith("fedmpq-0.1.0-py3-none-linux_")
    names = zipfile.ZipFile(wheel).namelist()
    assert {name.partition("/")[0] for name in names} == {"fedmpq", "fedmpq-0.1.0.dist-info"}
    assert "fedmpq/edge_runtime/libfmpq.so" in names
    assert {f"fedmpq/{folder}/__init__.py" for folder in FOLDERS} <= set(names)
    assert "fedmpq/py.typed" in names
    native = "fedmpq/export/executorch/native/"  # compiled on first use, against the executorch that is installed
    assert {f"{native}backend.cpp", f"{native}ports/artifact.c", f"{native}ports/fmpq/fmpq.h"} <= set(names)
    rest = [name for name in names if "dist-info" not in name and not name.startswith(native)]
    assert not [name for name in rest if name.endswith((".c", ".h", ".txt", ".pyc"))]
    sources = {path.relative_to(ROOT).as_posix() for folder in FOLDERS for path in (ROOT / folder).rglob("*.py")}
    sources = {name for name in sources if "/core/" not in name}
    assert {f"fedmpq/{name}" for name in sources} <= set(names)


@pytest.mark.slow
def test_the_installed_base_runs_without_the_extras(wheel, tmp_path):
    """Unpacked beside click alone, the command line starts, and names the extra where one is needed."""
    zipfile.ZipFile(wheel).extractall(tmp_path / "site")
    import click

    (tmp_path / "site/click").symlink_to(Path(click.__file__).parent)

    def run(*arguments: str) -> subprocess.CompletedProcess[str]:
        environment = {key: value for key, value in os.environ.items() if not key.startswith(("FEDMPQ", "PYTHON"))}
        command = [sys.executable, "-S", "-m", "fedmpq", *arguments]  # -S: without site-packages
        path = {"PYTHONPATH": str(tmp_path / "site")}
        return subprocess.run(
            command, env=environment | path, cwd=tmp_path, capture_output=True, text=True, check=False
        )

    version = run("--version")
    assert (version.returncode, version.stderr) == (0, "")
    missing = run("data", "info", "digits")
    assert missing.returncode == 3
    assert missing.stderr == (
        "fedmpq: error: this command needs numpy, which is not installed (pip install 'fedmpq[coordinator]')\n"
    )
