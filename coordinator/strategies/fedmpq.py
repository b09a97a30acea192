"""FedMPQ: group Lasso and top-plane pruning on the devices, Alg. 2 at the server.

DEFAULT sums the clients' changes and quantises with MSE-optimal scales; PAPER averages models and uses the maximum.
"""

from __future__ import annotations

from typing import Any

DEFAULT: dict[str, Any] = {
    "policy": "literal",
    "lasso": 0.01,
    "prune_density": 0.03,
    "scale": "mse",
    "aggregation": "changes",
}
PAPER: dict[str, Any] = {**DEFAULT, "scale": "max", "aggregation": "models"}
