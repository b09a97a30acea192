"""How the server quantises and merges: what all our integer systems share, so that they differ in the method only."""

from __future__ import annotations

from typing import Any

#: Chosen on validation images held out of the training set (docs/methods.md).
IMPROVED: dict[str, Any] = {
    "scale": "mse",
    "aggregation": "changes",
    "rounding": "nearest",
    "server_momentum_q15": 16384,  # one half
}
#: The paper's: scales of eq. 14, averaging of models (eq. 15).
LITERAL: dict[str, Any] = {"scale": "max", "aggregation": "models", "rounding": "nearest", "server_momentum_q15": 0}
