"""Debian's arm64 packages on this machine, without installing any: an aarch64 Python for qemu-user, and a kernel.

Packages come from the archive that this machine's apt uses, into build/arm64; nothing outside of it is changed.
"""

from __future__ import annotations

import os
import subprocess
import sys
from functools import cache
from pathlib import Path

from fedmpq.firmware_profiles import load
from fedmpq.toolchain import wheel

FOLDER = Path(__file__).parents[2] / "build" / "arm64"
EMULATOR = "qemu-aarch64-static"
CPU = "cortex-a53"
_PYTHON = (
    "python3.11-minimal", "libpython3.11-minimal", "libpython3.11-stdlib", "libc6", "libssl3", "libexpat1", "zlib1g",
    "libffi8", "liblzma5", "libbz2-1.0", "libuuid1", "libgcc-s1",
)  # fmt: skip
#: The metapackage of the kernel for virtual machines: small, with the emulated serial port built in.
_KERNEL = "linux-image-cloud-arm64"


def _apt(*command: str) -> str:
    """Runs apt-get or apt-cache as on an arm64 machine that has nothing installed."""
    state = FOLDER / "apt"
    for part in ("state/lists/partial", "cache/archives/partial"):
        (state / part).mkdir(parents=True, exist_ok=True)
    (state / "status").touch()
    options = {
        "APT::Architecture": "arm64", "APT::Architectures": "arm64", "Dir::State": f"{state}/state",
        "Dir::State::status": f"{state}/status", "Dir::Cache": f"{state}/cache", "Acquire::Languages": "none",
        "APT::Sandbox::User": "root", "Dir::Etc::Trusted": "/etc/apt/trusted.gpg",
    }  # fmt: skip
    words = [word for name, value in options.items() for word in ("-o", f"{name}={value}")]
    done = subprocess.run(
        [command[0], *words, *command[1:]], cwd=FOLDER, capture_output=True, text=True, timeout=600, check=False
    )
    assert done.returncode == 0, done.stderr[-600:]
    return done.stdout


@cache
def _lists() -> None:
    _apt("apt-get", "-qq", "update")


def _unpacked(package: str, root: Path) -> None:
    """Unpacks a package into a folder, once."""
    stamp = FOLDER / f"{package}.unpacked"
    if stamp.exists():
        return
    _lists()
    _apt("apt-get", "-qq", "download", package)
    (file,) = FOLDER.glob(f"{package}_*.deb")
    subprocess.run(["dpkg-deb", "-x", str(file), str(root)], check=True)
    file.unlink()
    stamp.touch()


@cache
def kernel() -> Path:
    """A bootable kernel image."""
    root = FOLDER / "kernel"
    if not list(root.glob("boot/vmlinuz-*")):
        _lists()
        depends = _apt("apt-cache", "depends", _KERNEL)
        (package,) = {line.split()[-1] for line in depends.splitlines() if "Depends: linux-image-" in line}
        _unpacked(package, root)
    return next(iter(root.glob("boot/vmlinuz-*")))


@cache
def python() -> Path:
    """A command that is CPython for aarch64, emulated, with the device package for aarch64 and what it depends on.

    The package is the wheel that `fedmpq build --what wheel` makes, installed by pip as on such a machine.
    """
    root, site = FOLDER / "root", FOLDER / "site"
    for package in _PYTHON:
        _unpacked(package, root)
    built = wheel.build(load("rpi-zero-2w"), FOLDER)
    target = ["--platform", "manylinux2014_aarch64", "--only-binary=:all:", "--python-version", "3.11"]
    pip = [sys.executable, "-m", "pip", "install", "-q", "--disable-pip-version-check", "--upgrade"]
    subprocess.run([*pip, "--target", str(site), *target, str(built)], check=True, stderr=subprocess.DEVNULL)
    command = FOLDER / "python3"
    command.write_text(
        f"#!/bin/sh\nexport PYTHONHOME={root}/usr PYTHONPATH={site}\n"
        f'exec {EMULATOR} -cpu {CPU} -L {root} -0 "$0" {root}/usr/bin/python3.11 "$@"\n'
    )
    command.chmod(0o755)
    return command


def clean_environment() -> dict[str, str]:
    """This process's environment without what would lead the other Python to this one's packages."""
    return {k: v for k, v in os.environ.items() if not k.startswith("PYTHON") and k != "FEDMPQ_CORE"}
