"""The static program `fedmpq-edge` built for this machine with its own compiler, and running it."""

from __future__ import annotations

import subprocess
from dataclasses import replace
from functools import cache
from pathlib import Path

from fedmpq.firmware_profiles import Profile, load
from fedmpq.toolchain import edge

BUILD = Path(__file__).parents[2] / "build" / "edge"


def native_profile() -> Profile:
    """This machine as a profile: gcc instead of zig, so that tests on x86-64 need no cross compiler."""
    profile = load("x86-64")
    return replace(profile, name="native", toolchain=replace(profile.toolchain, compiler="gcc", target="", flags=()))


@cache
def native() -> Path:
    """The program, built once a run (and again only where a source has changed)."""
    return edge.build(native_profile(), BUILD / "native")


def run(*arguments: str | Path, expect: int = 0, emulator: tuple[str, ...] = (), program: Path | None = None) -> str:
    """Runs it; returns its standard output, or its standard error where a failure is expected."""
    command = [*emulator, str(program or native()), *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=1500, check=False)
    assert done.returncode == expect, (done.returncode, done.stdout[-400:], done.stderr[-400:])
    return done.stderr if expect else done.stdout


def parse_selftest(text: str) -> dict[str, dict[str, str]]:
    """Case -> field -> value of `selftest`'s lines."""
    cases = {}
    for line in text.splitlines():
        name, *words = line.split()
        cases[name] = dict(word.split("=", 1) for word in words)
    return cases
