"""FPQ8: every layer at 8 bits on every device, 8-bit activations; devices without the memory are left out.

Everyone has the same bits, so clients count by their images alone.
"""

from __future__ import annotations

from typing import Any

from fedmpq.coordinator.strategies import server

PAPER: dict[str, Any] = {
    **server.LITERAL,
    "policy": "eight",
    "act_bits": 8,
    "lasso": 0.0,
    "prune_density": 0.0,
    "weighting": "samples",
}
DEFAULT = PAPER
