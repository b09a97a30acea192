"""FedMPQ: group Lasso and top-plane pruning on the devices, Alg. 2 at the server.

Our default allots bits by the noise that training makes (`policy.walk`) within Alg. 2's frame of budgets.
"""

from __future__ import annotations

from typing import Any

from fedmpq.coordinator.strategies import server

#: lambda = 0.01 with epsilon = 0.03 is the paper's default (67.1 in its Table 3).
_DEVICES: dict[str, Any] = {"lasso": 0.01, "prune_density": 0.03}

PAPER: dict[str, Any] = {**server.LITERAL, "policy": "literal", **_DEVICES}
DEFAULT: dict[str, Any] = {**server.IMPROVED, "policy": "walk", **_DEVICES}
