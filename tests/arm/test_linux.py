"""The static program on emulated Linux devices: the recorded states on every processor and kernel table; its size."""

from __future__ import annotations

import os
from functools import cache
from pathlib import Path

import pytest

from fedmpq.firmware_profiles import load
from fedmpq.toolchain import edge as build
from fedmpq.toolchain import sources
from tests.golden.test_edge import check
from tests.helpers import edge, golden

pytestmark = pytest.mark.arm
FULL = os.environ.get("FEDMPQ_ARM") == "full"
MIB = 1 << 20

#: Profile whose build is run, emulated processor, kernel table.
_RUNS = [
    ("rpi-zero-2w", "qemu-aarch64-static", "cortex-a53", "scalar"),
    ("rpi-zero-2w", "qemu-aarch64-static", "cortex-a53", "neon"),
    ("rpi-zero-2w", "qemu-aarch64-static", "cortex-a72", "neon"),
    ("rpi-zero-2w", "qemu-aarch64-static", "cortex-a76", "neondot"),
    ("rpi-zero-2w", "qemu-aarch64-static", "max", "neoni8mm"),
    ("armv7-neon", "qemu-arm-static", "cortex-a7", "scalar"),
    ("armv7-neon", "qemu-arm-static", "cortex-a7", "neon"),
    ("rpi-zero", "qemu-arm-static", "arm1176", "scalar"),
]
#: What CI has time for on each of them, and on those without vectors.
_SHORT = ("branches-mixed", "resnet8-mixed", "resnet8-n8-b1", "resnet20-n4")
_SHORT_SCALAR = ("branches-mixed", "resnet8-n8-b1")


@cache
def program(profile: str) -> Path:
    return build.build(load(profile), edge.BUILD / profile)


@pytest.mark.parametrize(("profile", "emulator", "cpu", "isa"), _RUNS, ids=lambda value: str(value))
def test_the_recorded_states(profile, emulator, cpu, isa):
    cases = list(golden.CASES) if FULL else list(_SHORT_SCALAR if isa == "scalar" else _SHORT)
    text = edge.run("selftest", *cases, "--isa", isa, emulator=(emulator, "-cpu", cpu), program=program(profile))
    found = edge.parse_selftest(text)
    assert set(found) == set(cases)
    for name, fields in found.items():
        check(name, fields)
        assert fields["isa"] == isa


@cache
def variants(profile: str) -> Path:
    test = sources.root() / "tests" / "variants.c"
    return build.program(load(profile), "variants", [test], edge.BUILD / profile)


@pytest.mark.parametrize(
    ("profile", "emulator", "cpu", "isa"), [run for run in _RUNS if run[3] != "scalar"], ids=lambda value: str(value)
)
def test_each_kernel_equals_the_scalar_one(profile, emulator, cpu, isa):
    runner = variants(profile)
    text = edge.run("5", "400" if FULL else "100", isa, emulator=(emulator, "-cpu", cpu), program=runner)
    assert text.count(" equal ") == 13


@pytest.mark.parametrize("profile", ["rpi-zero-2w", "armv7-neon", "rpi-zero"])
def test_the_static_program_is_small(profile):
    assert program(profile).stat().st_size <= MIB
