"""AQFL: every layer at n = b_k; no Lasso, no pruning, no Alg. 2.

DEFAULT has the same improvements as our FedMPQ, so that the two differ in the method only; PAPER has none.
"""

from __future__ import annotations

from typing import Any

DEFAULT: dict[str, Any] = {
    "policy": "uniform",
    "lasso": 0.0,
    "prune_density": 0.0,
    "scale": "mse",
    "aggregation": "changes",
}
PAPER: dict[str, Any] = {**DEFAULT, "scale": "max", "aggregation": "models"}
