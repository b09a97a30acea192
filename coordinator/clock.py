"""A wall clock that does not jump: deadlines must not pass because somebody set the time."""

from __future__ import annotations

import time
from collections.abc import Callable


class SteadyClock:
    """Unix seconds, read from the wall once and then kept by the monotonic clock.

    Args:
        wall: Unix seconds, may jump.
        monotonic: seconds from anywhere, never jumps.
    """

    def __init__(self, wall: Callable[[], float] = time.time, monotonic: Callable[[], float] = time.monotonic) -> None:
        self._monotonic = monotonic
        self._offset = wall() - monotonic()

    def __call__(self) -> float:
        """Now, in Unix seconds."""
        return self._monotonic() + self._offset
