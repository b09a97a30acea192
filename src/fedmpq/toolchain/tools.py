"""Finds compilers and emulators, and says what to install where one is missing."""

from __future__ import annotations

import os
import shlex
import shutil
import sys
from importlib.util import find_spec

from fedmpq.errors import ConfigError
from fedmpq.firmware_profiles import Profile

#: Commands -> what installs them.
_INSTALL = {
    "zig": "pip install ziglang",
    "gcc": "apt-get install gcc",
    "arm-none-eabi": "apt-get install gcc-arm-none-eabi libnewlib-arm-none-eabi",
    "qemu-system-arm": "apt-get install qemu-system-arm",
    "qemu-system-aarch64": "apt-get install qemu-system-arm",
    "qemu-aarch64-static": "apt-get install qemu-user-static",
    "qemu-arm-static": "apt-get install qemu-user-static",
}


def compiler(profile: Profile, flags: bool = True) -> list[str]:
    """The command line that compiles C for a profile: target included, processor flags unless told not to.

    `FEDMPQ_CC` replaces the compiler (not the flags).

    Raises:
        ConfigError: the compiler is not installed; says what installs it.
    """
    chain = profile.toolchain
    given = os.environ.get("FEDMPQ_CC")
    if given:
        command = shlex.split(given)
    elif not _has(chain.compiler):
        problem = f"profile {profile.name} is built with {chain.compiler}, which is not installed"
        raise ConfigError(problem, _INSTALL[chain.compiler])
    elif chain.compiler == "zig":
        command = [sys.executable, "-m", "ziglang", "cc"]
    elif chain.compiler == "gcc":
        command = [shutil.which("gcc") or "cc"]
    else:
        command = ["arm-none-eabi-gcc"]
    target = ["-target", chain.target] if chain.compiler == "zig" and not given else []
    return [*command, *target, *(chain.flags if flags else ())]


def emulator(profile: Profile) -> list[str]:
    """The command line in front of a program of this profile; empty where programs run directly.

    Raises:
        ConfigError: the emulator is not installed; says what installs it.
    """
    command = profile.emulator.command
    if not command:
        return []
    if shutil.which(command) is None:
        hint = _INSTALL.get(command, f"install {command}")
        raise ConfigError(f"programs of profile {profile.name} run in {command}, which is not installed", hint)
    return [command, *profile.emulator.options]


def missing(profile: Profile) -> list[str]:
    """What of a profile's compiler and emulator is not installed here, with the command that installs it."""
    names = [profile.toolchain.compiler, profile.emulator.command]
    return [f"{name}: {_INSTALL.get(name, 'install it')}" for name in names if name and not _has(name)]


def _has(name: str) -> bool:
    if name == "zig":
        return find_spec("ziglang") is not None
    if name == "gcc":
        return shutil.which("gcc") is not None or shutil.which("cc") is not None
    return shutil.which("arm-none-eabi-gcc" if name == "arm-none-eabi" else name) is not None
