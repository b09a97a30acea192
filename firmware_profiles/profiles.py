"""Finds and reads profiles: by name in this folder, or any TOML file by its path."""

from __future__ import annotations

import tomllib
from difflib import get_close_matches
from pathlib import Path

from fedmpq.errors import ConfigError
from fedmpq.firmware_profiles.schema import Profile, parse

_FOLDER = Path(__file__).resolve().parent
_LARGEST = 1 << 16


def names() -> list[str]:
    """Names of the profiles that come with the package."""
    return sorted(path.stem for path in _FOLDER.glob("*.toml"))


def load(name: str) -> Profile:
    """The profile of a name, or of a TOML file's path.

    Raises:
        ConfigError: there is none, or a key is missing or absurd; names file and key.
    """
    path = Path(name) if name.endswith(".toml") else _FOLDER / f"{name}.toml"
    if not name.endswith(".toml") and name not in names():
        close = get_close_matches(name, names(), 1)
        hint = f"did you mean {close[0]}?" if close else f"one of {', '.join(names())}, or a path to a .toml file"
        raise ConfigError(f"there is no profile {name[:60]!r}", hint)
    source = f"profile {path.name if path.parent == _FOLDER else path}"
    try:
        if path.stat().st_size > _LARGEST:
            raise ConfigError(f"{source} has {path.stat().st_size} bytes, a profile has at most {_LARGEST}")
        data = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"{source}: {(error.strerror or 'cannot be read').lower()}") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"{source} is not TOML: {error}") from None
    return parse(path.stem, data, source)
