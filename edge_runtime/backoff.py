"""When to try again: exponential delays with a per-device jitter, bounded below and above."""

from __future__ import annotations

import random


class Backoff:
    """The next moment for a repeated attempt.

    Args:
        first, most: bounds of the delay in seconds; it doubles from one to the other.
        rng: source of the jitter (a factor 0.75..1.25), so that a fleet does not answer in step.
    """

    def __init__(self, first: float, most: float, rng: random.Random) -> None:
        self._first, self._most, self._rng = first, most, rng
        self.reset()

    def reset(self) -> None:
        """The next attempt is due at once."""
        self.attempts = 0
        self._at = float("-inf")

    def due(self, now: float) -> bool:
        """Whether an attempt is due; if so, counts it and schedules the next."""
        if now < self._at:
            return False
        delay = min(self._most, self._first * 2.0**self.attempts) * self._rng.uniform(0.75, 1.25)
        self._at = now + delay
        self.attempts = min(self.attempts + 1, 30)
        return True

    def relax(self) -> None:
        """The peer answers: the next delay is the first again."""
        self.attempts = min(self.attempts, 1)

    def hold(self, now: float, seconds: float) -> None:
        """Not before `seconds` from now."""
        self._at = max(self._at, now + seconds)

    def left(self, now: float) -> float:
        """Seconds until the next attempt is due."""
        return max(0.0, self._at - now)
