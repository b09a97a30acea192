"""Compiles and links programs from C files, a file at a time, again only where something it reads has changed."""

from __future__ import annotations

import hashlib
import json
import os
import re
import subprocess
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from fedmpq.errors import ConfigError, FedmpqError
from fedmpq.toolchain.sources import Unit


class BuildError(FedmpqError):
    """A compiler or linker refused; carries the end of what it printed."""


def compile_all(
    compiler: Sequence[str],
    units: Sequence[Unit],
    flags: Sequence[str],
    out: Path,
    advance: Callable[[int], None] = lambda _: None,
    jobs: int | None = None,
) -> list[Path]:
    """Object files of all units, in `out`.

    Args:
        compiler: command without processor flags.
        units: files and their processor flags.
        flags: flags for all of them.
        out: folder for objects; what is up to date there is kept.
        advance: told of each file that is done.
        jobs: compilers at once (default: FEDMPQ_JOBS or the number of processors).

    Raises:
        BuildError: with the compiler's message.
        ConfigError: FEDMPQ_JOBS is no number above 0.
    """
    workers = jobs or _jobs()
    out.mkdir(parents=True, exist_ok=True)

    def one(unit: Unit) -> Path:
        target = out / f"{unit.path.parent.name}-{unit.path.stem}.o"
        _compile(compiler, unit, flags, target)
        advance(1)
        return target

    with ThreadPoolExecutor(workers) as pool:
        return list(pool.map(one, units))


def link(linker: Sequence[str], objects: Sequence[Path], flags: Sequence[str], target: Path) -> Path:
    """Links a program.

    Raises:
        BuildError: with the linker's message.
    """
    run([*linker, *map(str, objects), "-o", str(target), *flags], f"linking {target.name}")
    return target


def run(command: Sequence[str], what: str) -> str:
    """Runs a tool and returns its output.

    Raises:
        BuildError: it cannot be run or fails.
    """
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    except OSError as error:
        raise BuildError(f"{what}: cannot run {command[0]}: {error.strerror}") from None
    if done.returncode:
        lines = [line for line in done.stderr.splitlines() if line.strip()]
        errors = [line for line in lines if "error" in line or "overflow" in line] or lines
        raise BuildError(f"{what} failed: {' / '.join(errors[:3]) or f'exit code {done.returncode}'}")
    return done.stdout


def _compile(compiler: Sequence[str], unit: Unit, flags: Sequence[str], target: Path) -> None:
    command = [*compiler, *unit.flags, *flags, "-c", str(unit.path), "-o", str(target)]
    stamp, depends = target.with_suffix(".json"), target.with_suffix(".d")
    if _fresh(target, stamp, command, unit):
        return
    run([*command, "-MMD", "-MF", str(depends)], f"compiling {unit.path.name}")
    read = {str(unit.path), *(name for name in _names(depends.read_text()) if Path(name).is_file())}
    state = {"command": command, "read": {name: _digest(Path(name)) for name in sorted(read)}}
    stamp.write_text(json.dumps(state))


def _names(rule: str) -> list[str]:
    """The files that a rule for make names behind its target; gcc writes a space in a name as backslash and space."""
    words = re.split(r"(?<!\\)\s+", rule.replace("\\\n", " ").strip())
    return [re.sub(r"\\([ #])", r"\1", word).replace("$$", "$") for word in words[1:]]


def _jobs() -> int:
    asked = os.environ.get("FEDMPQ_JOBS", "")
    if asked and not (asked.isdecimal() and int(asked)):
        raise ConfigError(f"FEDMPQ_JOBS = {asked[:40]!r} is no number of compilers", "1 or more")
    return int(asked or os.cpu_count() or 1)


def _fresh(target: Path, stamp: Path, command: list[str], unit: Unit) -> bool:
    try:
        state = json.loads(stamp.read_text())
        same = state["command"] == command and target.is_file() and str(unit.path) in state["read"]
        return same and all(_digest(Path(name)) == digest for name, digest in state["read"].items())
    except (OSError, ValueError, KeyError):
        return False


def _digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()
