"""Builds bare-metal firmware that trains a golden run on a board; its linker script comes from the board's profile."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from fedmpq.errors import BudgetError, ConfigError
from fedmpq.firmware_profiles import Profile
from fedmpq.toolchain import sources, tools
from fedmpq.toolchain.compile import BuildError, compile_all, link
from fedmpq.toolchain.sources import COMMON, WARNINGS, Unit

PORTS = ("firmware_main.c", "golden.c", "memory_bare.c", "semihost.c", "sha256.c", "startup.c")
#: Records of the largest program that this firmware takes: tables are sized by it.
RECORDS = 12

_SCRIPT = """/* Made from profile {name}: what does not fit does not link. */
MEMORY
{{
  CODE (rx) : ORIGIN = {code:#010x}, LENGTH = {flash}
  RAM (rw) : ORIGIN = {ram:#010x}, LENGTH = {available}
}}
ENTRY(Reset_Handler)
SECTIONS
{{
  .text : {{ KEEP(*(.vectors)) *(.text*) *(.rodata*) . = ALIGN(8); }} > CODE
  .ARM.exidx : {{ *(.ARM.exidx*) . = ALIGN(8); }} > CODE
  .data : ALIGN(8) {{ __data_start = .; *(.data*) . = ALIGN(8); __data_end = .; }} > RAM AT > CODE
  __data_load = LOADADDR(.data);
  .bss (NOLOAD) : ALIGN(8) {{ __bss_start = .; *(.bss*) *(COMMON) . = ALIGN(8); __bss_end = .; }} > RAM
  .stack (NOLOAD) : ALIGN(8) {{ __stack_low = .; . += {stack}; __stack_top = .; }} > RAM
  .arena (NOLOAD) : ALIGN(64) {{ __arena_start = .; *(.arena*) }} > RAM
}}
"""


def build(
    profile: Profile,
    case: str,
    arena: int,
    batch: int,
    out: Path,
    advance: Callable[[int], None] = lambda _: None,
    *,
    roomy: int = 0,
) -> Path:
    """Compiles and links; returns the ELF file.

    Args:
        profile: a bare-metal profile.
        case: a golden run of ResNet8.
        arena: bytes for the session; the planner's number on a 64-bit host bounds that of a 32-bit board.
        batch: samples of a step of that run.
        out: folder for objects and result.
        advance: told of each compiled file.
        roomy: of the plan (fedmpq.edge_runtime.core.Plan).

    Raises:
        ConfigError: not a bare-metal profile.
        BudgetError: the arena is larger than the board's RAM.
        BuildError: the compiler or the linker refused: for example code, data, stack and arena exceed the board.
    """
    if profile.board is None:
        raise ConfigError(f"profile {profile.name} is no bare-metal board, firmware needs one")
    if arena + profile.board.stack > profile.available:
        raise BudgetError(
            f"an arena of {arena} and a stack of {profile.board.stack} bytes exceed the {profile.available} bytes of "
            f"{profile.name}",
            needed=arena + profile.board.stack,
            available=profile.available,
        )
    given = {
        "FMPQ_CASE": f'"{case}"', "FMPQ_ARENA": arena, "FMPQ_BATCH": batch, "FMPQ_CLOCK": profile.board.clock,
        "FMPQ_RECOMPUTE": 1 + roomy,
    }  # fmt: skip
    return program(profile, sources.ports(*PORTS), given, out, "firmware.elf", advance)


def program(
    profile: Profile,
    own: Sequence[Path],
    given: Mapping[str, object],
    out: Path,
    name: str,
    advance: Callable[[int], None] = lambda _: None,
) -> Path:
    """The core and the files `own` as a bare-metal program `out/name`.

    Args:
        profile: a bare-metal profile.
        own: C files with start-up code and main.
        given: macros of theirs and the core's.
        out: folder; objects are kept in `out/objects`.
        name: of the ELF file.
        advance: told of each compiled file.

    Raises:
        BuildError: the compiler or the linker refused: for example code, data, stack and arena exceed the board.
    """
    out.mkdir(parents=True, exist_ok=True)
    script = out / "board.ld"
    script.write_text(linker_script(profile))
    compiler = tools.compiler(profile, flags=False)
    units, kernels = sources.core(profile)
    units += [Unit(path, profile.toolchain.flags) for path in own]
    macros = {"FMPQ_MAX_RECORDS": RECORDS, **dict.fromkeys(kernels, 1), **given}
    include = [f"-I{sources.root() / 'include'}", f"-I{sources.root() / 'src'}"]
    flags = [*COMMON, *WARNINGS, "-O3", "-ffunction-sections", "-fdata-sections", *include]
    flags += [f"-D{key}={value}" for key, value in macros.items()]
    objects = compile_all(compiler, units, flags, out / "objects", advance)
    options = ["-nostartfiles", "--specs=nano.specs", "-Wl,--gc-sections", f"-Wl,-T,{script}"]
    try:
        return link([*compiler, *profile.toolchain.flags], objects, options, out / name)
    except BuildError as error:
        raise BuildError(f"{profile.name}: {error.message}") from None


def linker_script(profile: Profile) -> str:
    """The linker script of a board: code and RAM where they lie, as large as the profile allows."""
    assert profile.board is not None
    board, memory = profile.board, profile.memory
    return _SCRIPT.format(
        name=profile.name, code=board.code_origin, flash=memory.flash, ram=board.ram_origin,
        available=profile.available, stack=board.stack,
    )  # fmt: skip
