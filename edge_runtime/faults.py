"""Named places where a test may end the process: before, inside and after every write, and at every transition.

`point(name)` does nothing unless a test has put a callable into `hook`; no option or environment variable of a
production process reaches it. The kill matrix (tests/faults) kills at each of these names in turn.
"""

from __future__ import annotations

from collections.abc import Callable

#: Called with the name of every point that is passed; None in every process but a test's.
hook: Callable[[str], None] | None = None


def point(name: str) -> None:
    """Marks a place where the process may end without harm."""
    if hook is not None:
        hook(name)


def split(data: bytes) -> tuple[bytes, ...]:
    """The parts to write `data` in: whole, or where a test watches in halves, so that a kill can fall between."""
    return (data,) if hook is None else (data[: len(data) // 2], data[len(data) // 2 :])
