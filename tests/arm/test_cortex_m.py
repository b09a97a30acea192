"""Firmware in emulated boards whose RAM is cut to the profile's: recorded states, bytes by part, integers only."""

from __future__ import annotations

import os
import re
import subprocess
from array import array
from dataclasses import replace
from pathlib import Path

import pytest

from fedmpq.edge_runtime import artifact, core, sampling
from fedmpq.errors import BudgetError
from fedmpq.firmware_profiles import Profile, load
from fedmpq.toolchain import firmware, image, sources, tools
from fedmpq.toolchain.compile import BuildError
from tests.golden.test_edge import check
from tests.helpers import edge, golden, programs
from tests.helpers.artifacts import artifact_of, session_of

pytestmark = pytest.mark.arm
FULL = os.environ.get("FEDMPQ_ARM") == "full"

#: Generated shapes a kernel.
ROUNDS = 300
#: Profile, case, size of strips. Each board runs inside the RAM that its profile leaves for training:
#: the M4 in 192 KB, the M7 in 256 KB.
_RUNS = [
    ("nrf52840", "resnet8-n1-b1", 0),
    ("nrf52840", "resnet8-n2-b1", 1),
    ("stm32f746", "resnet8-n1-b1", 0),
    ("stm32f746", "resnet8-n2-b1", 1),
    ("stm32f746", "resnet8-n4-b1", 2),
    ("stm32h743", "resnet8-n8-b1", 1),
    ("stm32h743", "resnet8-mixed", 0),
    ("corstone-300", "resnet8-n1", 0),
    ("corstone-300", "resnet8-n2-b1", 1),
    ("corstone-300", "resnet8-n4-b1", 2),
    ("corstone-300", "resnet8-n8-b1", 0),
    ("corstone-300", "resnet8-mixed-b1", 1),
    ("nrf52840", "branches-n4-b1", 0),
    ("stm32f746", "branches-n4-b1", 1),
    ("corstone-300", "branches-n4-b1", 2),
    ("corstone-300", "branches-mixed", 0),
]


def _planned(case: str, roomy: int) -> int:
    chosen = golden.CASES[case]
    return core.plan_memory(core.Program(chosen.net.build()), replace(chosen.plan, roomy=roomy)).total


def _build(profile: Profile, case: str, arena: int | None = None, roomy: int = 0) -> Path:
    folder = edge.BUILD.parent / "firmware" / profile.name / f"{case}-{roomy}"
    arena = arena or _planned(case, roomy)
    return firmware.build(profile, case, arena, golden.CASES[case].batch, folder, roomy=roomy)


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


def _check_run(profile: Profile, case: str, roomy: int) -> dict[str, str]:
    code, text = _run(profile, _build(profile, case, roomy=roomy))
    assert code == 0, text[-500:]
    fields = edge.parse_selftest("\n".join(line for line in text.splitlines() if line.startswith(case)))[case]
    check(case, fields)
    used = sum(int(fields[part]) for part in ("data", "bss", "stack_kept", "arena"))
    assert used <= profile.available
    assert int(fields["stack"]) < int(fields["stack_kept"])
    assert int(fields["arena"]) <= _planned(case, roomy)
    print(
        profile.name,
        case,
        {k: v for k, v in fields.items() if v.isdigit()},
        f"RAM in all {used} of {profile.available}",
    )
    return fields


#: What CI has time for.
_SHORT = [run for run in _RUNS if run[1] == "branches-n4-b1"] + [("stm32f746", "resnet8-n4-b1", 2)]


@pytest.mark.parametrize(("name", "case", "roomy"), _RUNS if FULL else _SHORT)
def test_the_recorded_state(name, case, roomy):
    _check_run(load(name), case, roomy)


@pytest.mark.parametrize(("name", "most"), [("stm32f746", 1.5), ("corstone-300", 0.3)])
def test_instructions_a_multiply_add(name, most):
    """ResNet8 at 4 bits, in 256 KB on the M7; counted by the emulator, 36,276,096 multiply-adds a sample."""
    fields = _check_run(load(name), "resnet8-n4-b1", 2)
    assert int(fields["instructions"]) <= most * 36_276_096


@pytest.fixture
def files(tmp_path):
    """An artifact of ResNet8 at 2 bits, batch 1."""
    artifact.write(tmp_path / "a.fmpq", artifact_of(programs.resnet(1), 2, 1, manifest={"model": "test"}))
    return tmp_path / "a.fmpq", tmp_path / "out"


def _trained_here(path: Path) -> str:
    """The state after the firmware's two steps."""
    session = session_of(path)
    height, width, channels = session.program.in_shape
    images = bytes(sampling.rand((1, 2), i) & 255 for i in range(height * width * channels))
    for step in range(2):
        session.step(images, array("H", [0]), core.Hyper(core.fx(1 / 16), momentum_q15=0), (1, 0, 0, step))
    return session.state_hash()


def test_firmware_with_an_artifact(files):
    path, out = files
    profile = load("stm32f746")
    code, text = _run(profile, image.build(profile, path, out))
    assert code == 0, text[-500:]
    assert f"state={_trained_here(path)}" in text
    small = replace(profile, memory=replace(profile.memory, flash=32768))
    with pytest.raises(BudgetError, match=r"need \d+ bytes more than the 32768 of flash"):
        image.build(small, path, out)
    tiny = replace(profile, memory=replace(profile.memory, ram=150_000, system=0, training=100_000))
    with pytest.raises(BudgetError, match=r"\d+ bytes more than the 150000 of stm32f746"):
        image.build(tiny, path, out)


def _narrow() -> programs.Builder:
    """The planner's tables take more than the session."""
    net = programs.Builder(8, 8, 1, 4)
    net.classifier("fc", net.global_pool("pool", net.conv("conv", 0, 8)))
    return net


def _wide() -> programs.Builder:
    """A plane takes more than a step."""
    net = programs.Builder(4, 4, 1, 4)
    wide = net.conv("wide", net.conv("stem", 0, 160, stride=2), 224, stride=2)
    net.classifier("fc", net.global_pool("pool", wide))
    return net


@pytest.mark.parametrize("net", [_narrow(), _wide()], ids=["narrow", "wide"])
def test_an_arena_smaller_than_what_comes_before_and_after_training(net, tmp_path):
    path = tmp_path / "a.fmpq"
    artifact.write(path, artifact_of(net, 1, 1, manifest={"model": "test"}))
    code, text = _run(load("stm32f746"), image.build(load("stm32f746"), path, tmp_path / "out"))
    assert code == 0, text[-500:]
    assert f"state={_trained_here(path)}" in text


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
    own = [folder / "variants.c", folder / "bare_metal.c", *sources.ports("semihost.c")]
    elf = firmware.program(roomy, own, given, tmp_path, "variants.elf")
    code, text = _run(roomy, elf)
    assert code == 0, text[-500:]
    assert text.count(" equal ") == 13


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
