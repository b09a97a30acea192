"""What a profile holds, key by key, and the range of each value (docs/arm.md).

Each table of the TOML file is a dataclass here; a field's metadata is its check. So the schema, the errors and the
documentation of a key have one place.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import MISSING, Field, dataclass, field, fields
from typing import Any, TypeVar

from fedmpq.errors import ConfigError

T = TypeVar("T")
Check = Callable[[Any], str]

LINUX, BARE_METAL = "linux", "bare-metal"


def _number(low: int, high: int, default: Any = MISSING) -> Any:
    def check(value: Any) -> str:
        good = type(value) is int and low <= value <= high
        return "" if good else f"must be a whole number in {low}…{high}"

    return field(default=default, metadata={"check": check})


def _text(pattern: str, wanted: str, default: Any = MISSING) -> Any:
    def check(value: Any) -> str:
        good = isinstance(value, str) and re.fullmatch(pattern, value) is not None
        return "" if good else f"must be {wanted}"

    return field(default=default, metadata={"check": check})


def _choice(*allowed: str) -> Any:
    def check(value: Any) -> str:
        return "" if value in allowed else f"must be one of {', '.join(allowed)}"

    return field(metadata={"check": check})


def _list(default: Any = MISSING) -> Any:
    def check(value: Any) -> str:
        good = isinstance(value, list | tuple) and all(isinstance(v, str) and v and v.isprintable() for v in value)
        return "" if good else "must be a list of non-empty strings"

    return field(default=default, metadata={"check": check})


_SIZE = 1 << 48


@dataclass(frozen=True)
class Cpu:
    """The processor.

    Attributes:
        core: name of the core.
        isa: base instruction set.
        features: extensions that kernels may use.
        kernels: the fastest kernel table of the core that it runs.
        cores: number of cores.
        l1d, l2: bytes of data cache a core and of the second level; 0 without.
    """

    core: str = _text(r"[ -~]{1,40}", "the core's name, up to 40 characters")
    isa: str = _choice("x86-64", "armv8-a", "armv7-a", "armv6", "armv7e-m", "armv8.1-m")
    kernels: str = _choice(
        "scalar", "avx2", "avxvnni", "avx512vnni", "amx", "neon", "neondot", "neoni8mm", "dsp", "mve"
    )
    cores: int = _number(1, 1024)
    features: tuple[str, ...] = _list(())
    l1d: int = _number(0, 1 << 30, 0)
    l2: int = _number(0, 1 << 30, 0)


@dataclass(frozen=True)
class Memory:
    """Where its bytes go.

    Attributes:
        ram: bytes of RAM.
        system: bytes that the operating system, or the rest of an application, takes.
        training: bytes that the arena of a training session may take.
        flash: bytes for code and constants of a bare-metal board; 0 where programs come from a file system.
    """

    ram: int = _number(1 << 14, _SIZE)
    system: int = _number(0, _SIZE)
    training: int = _number(1 << 13, _SIZE)
    flash: int = _number(0, _SIZE, 0)


@dataclass(frozen=True)
class Toolchain:
    """How programs for it are built on one x86 machine.

    Attributes:
        compiler: `zig` (the ziglang package), `gcc` (this machine's own) or `arm-none-eabi`.
        target: target triple; empty for this machine.
        flags: compiler flags that name the processor.
        wheel: platform tag of the device package's wheel; empty where Python does not run.
    """

    compiler: str = _choice("zig", "gcc", "arm-none-eabi")
    target: str = _text(r"[a-z0-9_.-]{0,60}", "a target triple")
    flags: tuple[str, ...] = _list()
    wheel: str = _text(r"[a-z0-9_.]{0,80}", "a wheel's platform tag", "")


@dataclass(frozen=True)
class Emulator:
    """What runs its programs where there is no such device: command and options; both empty to run them directly."""

    command: str = _text(r"[A-Za-z0-9_./-]{0,200}", "a command")
    options: tuple[str, ...] = _list()


@dataclass(frozen=True)
class Training:
    """Defaults of a plan: micro-batch, activation bits, threads."""

    micro_batch: int = _number(1, 4096)
    act_bits: int = _number(4, 8, 4)
    threads: int = _number(1, 64, 1)


@dataclass(frozen=True)
class Board:
    """A bare-metal board: what its linker script and start-up are made from.

    Attributes:
        code_origin: address of the vector table and code; `memory.flash` bytes lie there.
        ram_origin: address of the RAM; `memory.ram - memory.system` bytes of it are used.
        stack: bytes kept for the stack.
        uart: address of the first UART, through which a gateway talks to the board.
        clock: how often a second SysTick counts in the emulator.
    """

    code_origin: int = _number(0, (1 << 32) - 1)
    ram_origin: int = _number(0, (1 << 32) - 1)
    stack: int = _number(1 << 10, 1 << 20)
    uart: int = _number(0, (1 << 32) - 1)
    clock: int = _number(1, 10**10)


@dataclass(frozen=True)
class Profile:
    """A device class.

    Attributes:
        name: the file's name without suffix.
        description: one line for people.
        kind: `linux` or `bare-metal`.
        board: only of bare-metal profiles.
    """

    name: str
    description: str
    kind: str
    cpu: Cpu
    memory: Memory
    toolchain: Toolchain
    emulator: Emulator
    training_defaults: Training
    board: Board | None

    @property
    def training(self) -> int:
        """Bytes that the arena may take."""
        return self.memory.training

    @property
    def available(self) -> int:
        """Bytes of RAM for everything of ours: arena, stack and data."""
        return self.memory.ram - self.memory.system


def parse(name: str, data: Mapping[str, Any], source: str) -> Profile:
    """A checked profile from a parsed TOML document.

    Raises:
        ConfigError: a key is missing, unknown or absurd; names the file and the key.
    """
    known = {"description", "kind", "cpu", "memory", "toolchain", "emulator", "training", "board"}
    if unknown := sorted(set(data) - known):
        raise ConfigError(f"{source}: {unknown[0]} is not a key of a profile", f"keys are {', '.join(sorted(known))}")
    description = data.get("description")
    if not isinstance(description, str) or not 0 < len(description) <= 120 or not description.isprintable():
        raise ConfigError(f"{source}: description must be one line of up to 120 characters, is {_shown(description)}")
    kind = data.get("kind")
    if kind not in (LINUX, BARE_METAL):
        raise ConfigError(f"{source}: kind must be {LINUX} or {BARE_METAL}, is {_shown(kind)}")
    if ("board" in data) != (kind == BARE_METAL):
        raise ConfigError(f"{source}: board must be given for a {BARE_METAL} profile and for no other")
    profile = Profile(
        name,
        description,
        kind,
        _table(Cpu, data, "cpu", source),
        _table(Memory, data, "memory", source),
        _table(Toolchain, data, "toolchain", source),
        _table(Emulator, data, "emulator", source),
        _table(Training, data, "training", source),
        _table(Board, data, "board", source) if kind == BARE_METAL else None,
    )
    _check_together(profile, source)
    return profile


def _table(kind: type[T], data: Mapping[str, Any], table: str, source: str) -> T:
    values = data.get(table)
    if not isinstance(values, dict):
        raise ConfigError(f"{source}: the table [{table}] is missing")
    known: dict[str, Field[Any]] = {f.name: f for f in fields(kind)}  # type: ignore[arg-type]
    if unknown := sorted(set(values) - set(known)):
        raise ConfigError(f"{source}: {table}.{unknown[0]} is not a key", f"keys are {', '.join(known)}")
    for key, spec in known.items():
        if key not in values:
            if spec.default is MISSING:
                raise ConfigError(f"{source}: {table}.{key} is missing")
            continue
        if problem := spec.metadata["check"](values[key]):
            raise ConfigError(f"{source}: {table}.{key} {problem}, is {_shown(values[key])}")
    return kind(**{k: tuple(v) if isinstance(v, list) else v for k, v in values.items()})


def _check_together(profile: Profile, source: str) -> None:
    memory, stack = profile.memory, profile.board.stack if profile.board else 0
    if memory.system >= memory.ram:
        raise ConfigError(f"{source}: memory.system = {memory.system} leaves nothing of memory.ram = {memory.ram}")
    room = memory.ram - memory.system - stack
    if memory.training > room:
        what = "memory.system and board.stack leave" if stack else "memory.system leaves"
        raise ConfigError(
            f"{source}: memory.training = {memory.training} exceeds the {room} bytes that {what} of memory.ram"
        )
    if profile.kind == BARE_METAL and not memory.flash:
        raise ConfigError(f"{source}: memory.flash is missing, code of a {BARE_METAL} board has to lie somewhere")
    if profile.training_defaults.act_bits not in {4, 8}:
        raise ConfigError(f"{source}: training.act_bits must be 4 or 8, is {profile.training_defaults.act_bits}")
    if profile.training_defaults.threads > profile.cpu.cores:
        raise ConfigError(
            f"{source}: training.threads = {profile.training_defaults.threads} exceeds cpu.cores = {profile.cpu.cores}"
        )


def _shown(value: Any) -> str:
    return "missing" if value is None else repr(value)[:60]
