"""Builds `fedmpq-edge`, the core as one static program, for a Linux profile."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from fedmpq.errors import ConfigError
from fedmpq.firmware_profiles import Profile
from fedmpq.firmware_profiles.schema import LINUX
from fedmpq.toolchain import sources, tools
from fedmpq.toolchain.compile import compile_all, link
from fedmpq.toolchain.sources import COMMON, WARNINGS, Unit

PORTS = (
    "artifact.c", "boot_linux.c", "edge_main.c", "golden.c", "json.c", "memory_linux.c", "pool_pthread.c",
    "serial_frame.c", "serial_server.c", "serve_linux.c", "sha256.c", "shard.c",
)  # fmt: skip


def build(profile: Profile, out: Path, advance: Callable[[int], None] = lambda _: None) -> Path:
    """Compiles and links the program; returns `out/fedmpq-edge`.

    Args:
        profile: a Linux profile.
        out: folder; objects are kept in `out/objects` for the next build.
        advance: told of each compiled file.

    Raises:
        ConfigError: not a Linux profile, or its compiler is not installed.
        BuildError: the compiler refused.
    """
    if profile.kind != LINUX:
        raise ConfigError(f"profile {profile.name} is a bare-metal board, fedmpq-edge needs Linux")
    return program(profile, "fedmpq-edge", sources.ports(*PORTS), out, advance)


def program(
    profile: Profile, name: str, own: list[Path], out: Path, advance: Callable[[int], None] = lambda _: None
) -> Path:
    """A static program of the core and the files `own`."""
    compiler = tools.compiler(profile, flags=False)
    units, macros = sources.core(profile)
    units += [Unit(path, profile.toolchain.flags) for path in own]
    include = [f"-I{sources.root() / 'include'}", f"-I{sources.root() / 'src'}"]
    flags = [*COMMON, *WARNINGS, "-O3", "-ffunction-sections", "-fdata-sections", *(f"-D{m}" for m in macros), *include]
    objects = compile_all(compiler, units, flags, out / "objects", advance)
    shared = ["-static", "-s", "-Wl,--gc-sections", "-lpthread", "-lm"]
    return link([*compiler, *profile.toolchain.flags], objects, shared, out / name)


def file_count(profile: Profile) -> int:
    """Number of files that `build` compiles."""
    return len(sources.core(profile)[0]) + len(PORTS)
