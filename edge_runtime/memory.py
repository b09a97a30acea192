"""How much memory this process may use, in bytes: cgroup limits, free memory, address space, its own peak.

Linux only, by reading /proc and the cgroup file systems; the readers take the root folder so that tests can plant one.
"""

from __future__ import annotations

import resource
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Final, Literal, TypeAlias

Source: TypeAlias = Literal["option", "cgroup-v2", "cgroup-v1", "available", "address-space"]

#: Limits at or above this are how cgroup v1 spells "none".
_UNLIMITED: Final = 1 << 60
_ROOT: Final = Path("/")


@dataclass(frozen=True, slots=True)
class Memory:
    """What the system says, in bytes; None where there is no such limit.

    `budget` is what a training arena may take and `source` names the limit it comes from.
    """

    ram: int
    available: int
    cgroup: int | None
    resident: int
    budget: int
    source: Source


def measure(limit: int | None = None, root: Path = _ROOT) -> Memory:
    """The memory of this process now.

    Args:
        limit: bytes given by the user for the arena; then that is the budget.
        root: where /proc and /sys are mounted.

    Without a user's limit the budget is the smallest of: the cgroup's limit less what this process holds already, the
    memory the kernel calls available, and the address space left; each less a reserve of 1/16 (at least 4 MiB) for
    the batch, received planes and the allocator.
    """
    info = _table(root / "proc/meminfo", 1024)
    resident = status("VmRSS", root)
    available = info.get("MemAvailable", info.get("MemFree", 0))
    cgroup, kind = cgroup_limit(root)
    candidates: list[tuple[int, Source]] = [(available - reserve(available), "available")]
    if cgroup is not None:
        candidates.append((cgroup - resident - reserve(cgroup), kind))
    soft = resource.getrlimit(resource.RLIMIT_AS)[0]
    if soft != resource.RLIM_INFINITY:
        candidates.append((soft - status("VmSize", root) - reserve(soft), "address-space"))
    budget, source = min(candidates)
    if limit is not None:
        budget, source = limit, "option"
    return Memory(info.get("MemTotal", 0), available, cgroup, resident, max(0, budget), source)


def reserve(limit: int) -> int:
    """Bytes of a limit that are not offered to the arena."""
    return max(4 * 1024 * 1024, limit // 16)


def status(field: str, root: Path = _ROOT) -> int:
    """A field of /proc/self/status in bytes (VmRSS: resident now, VmHWM: its peak, VmSize); 0 if absent."""
    return _table(root / "proc/self/status", 1024).get(field, 0)


def cgroup_limit(root: Path = _ROOT) -> tuple[int | None, Source]:
    """The tightest memory limit on the way from this process's cgroup to the root, and the cgroup version."""
    try:
        lines = (root / "proc/self/cgroup").read_text().splitlines()
    except OSError:
        return None, "cgroup-v2"
    v1: int | None = None
    v2: int | None = None
    for line in lines:
        _, controllers, path = [*line.split(":", 2), "", ""][:3]
        if controllers == "":
            v2 = _tightest(root / "sys/fs/cgroup", path, "memory.max")
        elif "memory" in controllers.split(","):
            v1 = _tightest(root / "sys/fs/cgroup/memory", path, "memory.limit_in_bytes")
    if v1 is not None and (v2 is None or v1 < v2):
        return v1, "cgroup-v1"
    return v2, "cgroup-v2"


def _tightest(mount: Path, path: str, name: str) -> int | None:
    """The smallest limit in the folders from `path` up to the mount; a path outside our view counts as the mount."""
    parts = [part for part in PurePosixPath(path).parts if part not in ("/", "..")]
    limits = []
    for depth in range(len(parts) + 1):
        try:
            text = mount.joinpath(*parts[:depth], name).read_text().strip()
        except OSError:
            continue
        if text.isdigit() and int(text) < _UNLIMITED:
            limits.append(int(text))
    return min(limits, default=None)


def _table(path: Path, unit: int) -> dict[str, int]:
    """Fields of a file of ``Name:  123 kB`` lines, times `unit`."""
    found: dict[str, int] = {}
    try:
        text = path.read_text()
    except OSError:
        return found
    for line in text.splitlines():
        name, _, rest = line.partition(":")
        words = rest.split()
        if len(words) == 2 and words[1] == "kB" and words[0].isdigit():
            found[name] = int(words[0]) * unit
    return found
