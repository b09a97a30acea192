"""Which files make the core for a processor, and with which flags, as core/CMakeLists.txt does for the library."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from fedmpq.errors import ConfigError
from fedmpq.firmware_profiles import Profile

#: Instruction set of a profile -> (folder of its kernels, macros that put them into the table).
_KERNELS = {
    "x86-64": ("x86", ["FMPQ_X86_KERNELS", "FMPQ_AVXVNNI_KERNELS", "FMPQ_AMX_KERNELS"]),
    "armv8-a": ("neon", ["FMPQ_NEON_KERNELS"]),
    "armv7-a": ("neon", ["FMPQ_NEON_KERNELS"]),
    "armv7e-m": ("dsp", ["FMPQ_DSP_KERNELS"]),
    "armv8.1-m": ("mve", ["FMPQ_MVE_KERNELS"]),
}

_AVX512 = ("-mavx2", "-mavx512f", "-mavx512bw", "-mavx512vl", "-mavx512dq", "-mavx512vnni", "-mprefer-vector-width=512")

#: Suffix of a kernel file -> its processor flags where the profile's own are not enough (`+` extends -mcpu).
_SUFFIX_FLAGS = {
    "avx2": ("-mavx2",),
    "avxvnni": ("-mavx2", "-mavxvnni"),
    "avx512vnni": _AVX512,
    "amx": (*_AVX512, "-mamx-tile", "-mamx-int8"),
    "neondot": ("+dotprod",),
    "neoni8mm": ("+dotprod+i8mm",),
    "mve": ("-fno-forward-propagate",),  # GCC 12 stops with an internal error in vector constants
}

WARNINGS = ("-Wall", "-Wextra", "-Wconversion", "-Wshadow", "-Wstrict-prototypes")
COMMON = ("-std=c11", "-fno-strict-aliasing")


@dataclass(frozen=True)
class Unit:
    """One C file and the processor flags it is compiled with."""

    path: Path
    flags: tuple[str, ...]


def root() -> Path:
    """The folder of the core's C sources.

    Raises:
        ConfigError: this is an installed wheel, which leaves them out.
    """
    from fedmpq import edge_runtime

    folder = Path(edge_runtime.__file__).resolve().parent / "core"
    if not (folder / "include" / "fmpq" / "fmpq.h").is_file():
        raise ConfigError("the C sources are not part of an installed wheel", "run this from a checkout of fedmpq")
    return folder


def core(profile: Profile) -> tuple[list[Unit], list[str]]:
    """The core's files for a profile and the macros they need; no ports."""
    src = root() / "src"
    units = [Unit(path, profile.toolchain.flags) for path in sorted([*src.glob("*.c"), *(src / "ref").glob("*.c")])]
    folder, macros = _KERNELS.get(profile.cpu.isa, ("", []))
    kernels = sorted((src / folder).glob("*.c")) if folder else []
    units += [Unit(path, _flags(profile, path)) for path in kernels]
    return units, macros if kernels else []


def ports(*names: str) -> list[Path]:
    """Files of the ports: what connects the core to a system."""
    return [root() / "port" / name for name in names]


def _flags(profile: Profile, path: Path) -> tuple[str, ...]:
    """A kernel file's flags: the profile's, with the extension that its name ends in."""
    given = profile.toolchain.flags
    extra = _SUFFIX_FLAGS.get(path.stem.rpartition("__")[2], ())
    if extra and extra[0].startswith("+"):
        return tuple(f + extra[0] if f.startswith("-mcpu=") else f for f in given)
    return (*given, *extra)
