"""Builds the package's wheel with the core compiled for another processor: py3-none-manylinux…, plain C ABI."""

from __future__ import annotations

import os
import shlex
import shutil
import sys
from pathlib import Path
from tempfile import TemporaryDirectory

from fedmpq.errors import ConfigError
from fedmpq.firmware_profiles import Profile
from fedmpq.toolchain import sources
from fedmpq.toolchain.compile import run

#: zig's glibc target of a wheel tag: the oldest that zig offers at or above manylinux2014's 2.17.
_GLIBC = {
    "manylinux_2_17_aarch64": ("aarch64-linux-gnu.2.17", "aarch64"),
    "manylinux_2_17_armv7l": ("arm-linux-gnueabihf.2.17", "armv7l"),
    "manylinux_2_17_x86_64": ("x86_64-linux-gnu.2.17", "x86_64"),
    "linux_armv6l": ("arm-linux-gnueabihf.2.17", "armv6l"),
}


def build(profile: Profile, out: Path) -> Path:
    """The wheel for a profile's platform tag, in `out`.

    Raises:
        ConfigError: no wheel for this profile, or no checkout.
        BuildError: the build failed.
    """
    tag = profile.toolchain.wheel
    target, processor = _GLIBC.get(tag.partition(".")[0], ("", ""))
    if not target:
        raise ConfigError(f"profile {profile.name} names no wheel tag: Python does not run there", "build --what edge")
    project = sources.root().parents[1]
    out.mkdir(parents=True, exist_ok=True)
    # a wheel runs on every processor of its tag: only the kernels' own files use extensions
    generic = {"armv7l": ["-mcpu=generic+v7a+vfp3d16"], "armv6l": ["-mcpu=arm1176jzf_s"]}.get(processor, [])
    with TemporaryDirectory() as name:
        folder = Path(name)
        compiler = folder / "cc"
        command = shlex.join([sys.executable, "-m", "ziglang", "cc", "-target", target, *generic])
        compiler.write_text(f'#!/bin/sh\nexec {command} "$@"\n')
        compiler.chmod(0o755)
        options = [
            f"-DCMAKE_C_COMPILER={compiler}", "-DCMAKE_SYSTEM_NAME=Linux", f"-DCMAKE_SYSTEM_PROCESSOR={processor}",
        ]  # fmt: skip
        settings = [
            f"--config-settings=build-dir={folder / 'cmake'}",
            f"--config-settings=cmake.args={';'.join(options)}",
        ]
        pip = [sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "--no-build-isolation"]
        os.environ.pop("CMAKE_ARGS", None)
        pip += [f"--config-settings={setting}" for setting in settings]
        run([*pip, "-w", str(folder / "wheels"), str(project)], "building the wheel")
        (made,) = (folder / "wheels").glob("*.whl")
        tagging = [sys.executable, "-m", "wheel", "tags", "--remove", "--platform-tag", tag, str(made)]
        renamed = run(tagging, "tagging the wheel").split()[-1]
        return Path(shutil.copy(made.parent / renamed, out / renamed))
