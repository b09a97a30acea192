"""Firmware in emulated boards whose RAM is cut to the profile's: recorded states, bytes by part, integers only."""

from __future__ import annotations

import re
import subprocess
from dataclasses import replace
from pathlib import Path

import pytest

from fedmpq.edge_runtime import core
from fedmpq.errors import BudgetError
from fedmpq.firmware_profiles import Profile, load
from fedmpq.toolchain import firmware, sources, tools
from fedmpq.toolchain.compile import BuildError
from tests.golden.test_edge import check
from tests.helpers import edge, golden

pytestmark = pytest.mark.arm

#: Generated shapes a kernel.
ROUNDS = 300
#: Profile, case. Each board runs inside the RAM that its profile leaves for training.
_RUNS = [
    ("stm32f746", "resnet8-n1-b1"),
    ("stm32f746", "resnet8-n2-b1"),
    ("stm32f746", "resnet8-n4-b1"),
    ("stm32h743", "resnet8-n8-b1"),
    ("stm32h743", "resnet8-mixed"),
    ("corstone-300", "resnet8-n4-b1"),
    ("corstone-300", "resnet8-mixed-b1"),
]


def _planned(case: str) -> int:
    chosen = golden.CASES[case]
    return core.plan_memory(core.Program(chosen.net.build()), chosen.plan).total


def _build(profile: Profile, case: str, arena: int | None = None) -> Path:
    folder = edge.BUILD.parent / "firmware" / profile.name / case
    return firmware.build(profile, case, arena or _planned(case), golden.CASES[case].batch, folder)


def _run(profile: Profile, elf: Path) -> tuple[int, str]:
    options = [
        "-nographic",
        "-icount",
        "shift=0",
        "-semihosting-config",
        "enable=on,target=native",
        "-kernel",
        str(elf),
    ]
    done = subprocess.run(
        [*tools.emulator(profile), *options],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=900,
        check=False,
    )
    return done.returncode, done.stdout + done.stderr


def _check_run(profile: Profile, case: str) -> dict[str, str]:
    code, text = _run(profile, _build(profile, case))
    assert code == 0, text[-500:]
    fields = edge.parse_selftest("\n".join(line for line in text.splitlines() if line.startswith(case)))[case]
    check(case, fields)
    used = sum(int(fields[part]) for part in ("data", "bss", "stack_kept", "arena"))
    assert used <= profile.available
    assert int(fields["stack"]) < int(fields["stack_kept"])
    assert int(fields["arena"]) <= _planned(case)
    print(
        profile.name,
        case,
        {k: v for k, v in fields.items() if v.isdigit()},
        f"RAM in all {used} of {profile.available}",
    )
    return fields


@pytest.mark.parametrize(("name", "case"), _RUNS)
def test_the_recorded_state(name, case):
    _check_run(load(name), case)


def test_an_m4_with_all_its_256_kb():
    """What the nRF52840's profile keeps for an application is used: 2 bits take 214 KB of arena."""
    profile = load("nrf52840")
    whole = replace(profile, memory=replace(profile.memory, system=0, training=250_000))
    _check_run(whole, "resnet8-n2-b1")


@pytest.mark.parametrize(("name", "table"), [("nrf52840", "dsp"), ("stm32f746", "dsp"), ("corstone-300", "mve")])
def test_each_kernel_equals_the_scalar_one(name, table, tmp_path):
    """The generated shapes need more RAM than the boards have: here the emulated board gives all of its own."""
    profile = load(name)
    assert profile.board is not None
    origin = 0x21000000 if profile.emulator.options[-1] == "mps3-an547" else profile.board.ram_origin
    roomy = replace(
        profile,
        memory=replace(profile.memory, ram=4 << 20, system=0, flash=512 << 10),
        board=replace(profile.board, ram_origin=origin, stack=65536),
    )
    folder = sources.root() / "tests"
    given = {"ROOM": 1 << 15, "FMPQ_ARGUMENTS": f'"variants","5","{ROUNDS}","{table}"'}
    elf = firmware.program(roomy, [folder / "variants.c", folder / "bare_metal.c"], given, tmp_path, "variants.elf")
    code, text = _run(roomy, elf)
    assert code == 0, text[-500:]
    assert text.count(" equal ") == 11


def test_what_does_not_fit_does_not_link():
    profile = load("stm32f746")
    room = profile.available - (profile.board.stack if profile.board else 0)
    with pytest.raises(BudgetError, match="exceed"):
        _build(profile, "resnet8-n4-b1", arena=room + 1)
    with pytest.raises(BuildError, match=r"stm32f746: .*RAM.*overflowed by \d+ bytes"):
        _build(profile, "resnet8-n4-b1", arena=room)
    small = replace(profile, memory=replace(profile.memory, flash=16384))
    with pytest.raises(BuildError, match=r"CODE.*overflowed by \d+ bytes"):
        _build(small, "resnet8-n4-b1")


@pytest.mark.parametrize("name", ["stm32f746", "nrf52840", "corstone-300"])
def test_only_integers(name):
    """No soft-float helper is linked and no object of the core holds a floating-point instruction."""
    profile = load(name)
    elf = _build(replace(profile, memory=replace(profile.memory, system=0, training=250_000)), "resnet8-n4-b1")
    symbols = subprocess.run(["arm-none-eabi-nm", elf], capture_output=True, text=True, check=True).stdout
    helpers = re.findall(r"\b__(?:aeabi_(?:[fd]\w+|[iul]+2[fd])|\w*[sd]f[234i]\w*)\b", symbols)
    assert not helpers
    objects = sorted((elf.parent / "objects").glob("*.o"))
    assert objects
    for item in objects:
        code = subprocess.run(["arm-none-eabi-objdump", "-d", item], capture_output=True, text=True, check=True).stdout
        floats = re.findall(r"\t(v\w+\.f(?:16|32|64)\b[^\n]*)", code)
        assert not floats, (item.name, floats[:3])
