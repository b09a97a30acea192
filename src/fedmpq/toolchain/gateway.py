"""Builds the firmware of a bare-metal board that trains behind a gateway (docs/serial.md)."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from fedmpq.edge_runtime.shard import Shard
from fedmpq.errors import ConfigError
from fedmpq.firmware_profiles import Profile
from fedmpq.toolchain import sources, tools
from fedmpq.toolchain.compile import BuildError, compile_all, link
from fedmpq.toolchain.firmware import linker_script
from fedmpq.toolchain.sources import COMMON, WARNINGS, Unit

PORTS = (
    "gateway_main.c", "memory_bare.c", "serial_frame.c", "serial_server.c", "sha256.c", "shard.c", "startup.c",
    "uart_cmsdk.c",
)  # fmt: skip
#: Records of the largest program that the firmware takes, on small boards and on those with more than 256 KB for it.
RECORDS = (12, 64)


def build(
    profile: Profile, out: Path, advance: Callable[[int], None] = lambda _: None, *, shard: Path | None = None,
    version: str = "", records: int = 0,
) -> Path:  # fmt: skip
    """Compiles and links; returns the ELF file. What code, data and stack leave of the RAM is the arena.

    Args:
        profile: a bare-metal profile.
        out: folder for objects and result.
        advance: told of each compiled file.
        shard: the device's images, put into its flash.
        version: what the firmware says it was built from, for tests of the gateway; normally the core's version.
        records: of the largest program; by default `RECORDS`.

    Raises:
        ConfigError: not a bare-metal profile, or its compiler is not installed.
        ShardError: the shard cannot be used.
        BuildError: the compiler or the linker refused: for example code, data and stack exceed the board.
    """
    if profile.board is None:
        raise ConfigError(f"profile {profile.name} is no bare-metal board; Linux devices run `fedmpq-edge serve`")
    out.mkdir(parents=True, exist_ok=True)
    script = out / "board.ld"
    script.write_text(linker_script(profile) + "__ram_end = ORIGIN(RAM) + LENGTH(RAM);\n")
    compiler = tools.compiler(profile, flags=False)
    units, macros = sources.core(profile)
    ports = sources.ports(*PORTS)
    units += [Unit(ports[0], (*profile.toolchain.flags, *_resident(shard)))]
    units += [Unit(path, profile.toolchain.flags) for path in ports[1:]]
    given = {
        "FMPQ_BOARD": f'"{profile.name[:31]}"', "FMPQ_UART": f"{profile.board.uart:#x}u",
        "FMPQ_CLOCK": f"{profile.board.clock}u", "FMPQ_MAX_RECORDS": records or RECORDS[profile.available > 1 << 18],
        **dict.fromkeys(macros, 1),
    }  # fmt: skip
    if version:
        given["FMPQ_VERSION"] = f'"{version}"'
    include = [f"-I{sources.root() / 'include'}", f"-I{sources.root() / 'src'}"]
    flags = [*COMMON, *WARNINGS, "-O3", "-ffunction-sections", "-fdata-sections", *include]
    objects = compile_all(
        compiler, units, [*flags, *(f"-D{k}={v}" for k, v in given.items())], out / "objects", advance
    )
    options = ["-nostartfiles", "--specs=nano.specs", "-Wl,--gc-sections", f"-Wl,-T,{script}"]
    try:
        return link([*compiler, *profile.toolchain.flags], objects, options, out / "gateway.elf")
    except BuildError as error:
        raise BuildError(f"{profile.name}: {error.message}") from None


def _resident(shard: Path | None) -> tuple[str, ...]:
    """Flags that put a shard into the firmware; its hash is among them, so that another one is compiled in anew."""
    if shard is None:
        return ()
    with Shard(shard) as held:
        return f'-DFMPQ_RESIDENT="{shard.resolve()}"', f"-DFMPQ_RESIDENT_ID={held.sha256[:16]}"


def file_count(profile: Profile) -> int:
    """Number of files that `build` compiles."""
    return len(sources.core(profile)[0]) + len(PORTS)


def line(serial: str) -> list[str]:
    """QEMU's options that put the board's serial line at `tcp:HOST:PORT` or `unix:PATH`; then comes the ELF file."""
    return ["-display", "none", "-monitor", "none", "-serial", f"{serial},server=on,wait=off", "-kernel"]
