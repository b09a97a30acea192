"""The engines that train one step: each module has `prepare(job)` (optional) and `load(job) -> Engine`.

`prepare` runs once in a process of its own and writes files (compiled models), `load` in the process that is timed.
"""

from __future__ import annotations

from typing import Any, Protocol


class Engine(Protocol):
    """A model ready to train on one batch."""

    def details(self) -> dict[str, Any]:
        """Version, instruction set and other facts for the report."""

    def step(self) -> float:
        """One training step on the batch; returns the loss (mean, nat) to show that it trains."""
