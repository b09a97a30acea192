"""AQFL: every layer at n = b_k; no Lasso, no pruning, no Alg. 2."""

from __future__ import annotations

from typing import Any

from fedmpq.coordinator.strategies import server

_METHOD: dict[str, Any] = {"policy": "uniform", "lasso": 0.0, "prune_density": 0.0}

PAPER: dict[str, Any] = {**server.LITERAL, **_METHOD}
DEFAULT: dict[str, Any] = {**server.IMPROVED, **_METHOD}
