"""Device classes by name: how much memory training may take there, and the micro-batch to start from.

A profile is a TOML file in this folder, or any other file of the same form:

    description = "STM32H743: Cortex-M7 at 480 MHz, 1 MB of RAM"
    [memory]
    ram = 1048576        # bytes of RAM
    training = 786432    # bytes of it the arena may take
    [training]
    micro_batch = 1
"""

from __future__ import annotations

import tomllib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fedmpq.errors import ConfigError

_FOLDER = Path(__file__).resolve().parent


@dataclass(frozen=True)
class DeviceClass:
    """A profile as read.

    Attributes:
        name: file name without suffix.
        description: one line for people.
        ram: bytes of RAM.
        training: bytes of it that the arena may take.
        micro_batch: samples in memory at once, to start from.
    """

    name: str
    description: str
    ram: int
    training: int
    micro_batch: int


def names() -> list[str]:
    """Names of the profiles that come with the package."""
    return sorted(path.stem for path in _FOLDER.glob("*.toml"))


def load(name: str) -> DeviceClass:
    """The profile of a name, or of a TOML file's path.

    Raises:
        ConfigError: there is none, or a key is missing or absurd; names file and key.
    """
    path = Path(name) if name.endswith(".toml") else _FOLDER / f"{name}.toml"
    if not name.endswith(".toml") and name not in names():
        raise ConfigError(f"there is no profile {name!r}", f"one of {', '.join(names())}, or a path to a .toml file")
    try:
        data = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"profile {path}: {error.strerror}") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"profile {path} is not TOML: {error}") from None
    ram = _positive(data, path, "memory", "ram")
    training = _positive(data, path, "memory", "training")
    if training > ram:
        raise ConfigError(f"profile {path}: memory.training = {training} exceeds memory.ram = {ram}")
    return DeviceClass(
        path.stem, str(data.get("description", "")), ram, training, _positive(data, path, "training", "micro_batch")
    )


def _positive(data: dict[str, Any], path: Path, table: str, key: str) -> int:
    value = data.get(table, {}).get(key) if isinstance(data.get(table, {}), dict) else None
    if type(value) is not int or not 0 < value < 1 << 48:
        raise ConfigError(f"profile {path}: {table}.{key} = {value!r} must be a positive number")
    return value
