"""Resident memory of this process."""

from __future__ import annotations

import contextlib
import gc
import resource
from pathlib import Path


def _status(key: str) -> int | None:
    """A line of /proc/self/status in bytes; None where there is no such file."""
    try:
        text = Path("/proc/self/status").read_text()
    except OSError:
        return None
    for line in text.splitlines():
        if line.startswith(key):
            return int(line.split()[1]) * 1024
    return None


def peak() -> int:
    """Most bytes that were resident at once (since `settle`, where the kernel can reset its mark)."""
    mark = _status("VmHWM:")
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 if mark is None else mark


def settle() -> int:
    """Collects garbage, resets the kernel's high-water mark and returns the bytes resident now."""
    gc.collect()
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")
    now = _status("VmRSS:")
    return peak() if now is None else now
