"""Builds the package's wheel with the core compiled for another processor: py3-none-manylinux…, plain C ABI."""

from __future__ import annotations

import base64
import hashlib
import os
import shlex
import sys
from pathlib import Path
from tempfile import TemporaryDirectory
from zipfile import ZIP_DEFLATED, ZipFile

from fedmpq.errors import ConfigError
from fedmpq.firmware_profiles import Profile
from fedmpq.toolchain import sources, tools
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
        raise ConfigError(f"profile {profile.name} names no wheel tag: Python does not run there", "--what edge")
    tools.compiler(profile)  # says what to install where zig is missing
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
            f"build-dir={folder / 'cmake'}",
            f"cmake.args={';'.join(options)}",
        ]
        pip = [sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "--no-build-isolation"]
        os.environ.pop("CMAKE_ARGS", None)
        pip += [f"--config-settings={setting}" for setting in settings]
        run([*pip, "-w", str(folder / "wheels"), str(project)], "building the wheel")
        (made,) = (folder / "wheels").glob("*.whl")
        return _retag(made, tag, out)


def _retag(wheel: Path, tag: str, out: Path) -> Path:
    """A copy of a wheel under another platform tag: its name, its WHEEL file and that file's line in RECORD change."""
    name, version, *_ = wheel.stem.split("-")
    target = out / f"{name}-{version}-py3-none-{tag}.whl"
    info = f"{name}-{version}.dist-info"
    with ZipFile(wheel) as source, ZipFile(target, "w", ZIP_DEFLATED) as copy:
        lines = [line for line in source.read(f"{info}/WHEEL").decode().splitlines() if not line.startswith("Tag:")]
        lines += [f"Tag: py3-none-{each}" for each in tag.split(".")]
        changed = "\n".join(line for line in lines if line).encode() + b"\n"
        digest = base64.urlsafe_b64encode(hashlib.sha256(changed).digest()).rstrip(b"=").decode()
        records = source.read(f"{info}/RECORD").decode().splitlines()
        mine = f"{info}/WHEEL,sha256={digest},{len(changed)}"
        record = "".join(f"{mine if r.startswith(f'{info}/WHEEL,') else r}\n" for r in records).encode()
        for item in source.infolist():
            replaced = {f"{info}/WHEEL": changed, f"{info}/RECORD": record}.get(item.filename)
            copy.writestr(item, source.read(item) if replaced is None else replaced, ZIP_DEFLATED)
    return target
