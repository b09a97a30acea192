"""Table 4's settings (1) to (4) between AQFL and FedMPQ; (5) is FedMPQ itself."""

from __future__ import annotations

from typing import Any

from fedmpq.coordinator.strategies import aqfl, fedmpq

_LASSO = {"lasso": fedmpq.DEFAULT["lasso"]}
_PRUNING = {"prune_density": fedmpq.DEFAULT["prune_density"]}

SETTINGS: dict[str, dict[str, Any]] = {
    "ablation-1-lasso": {**aqfl.DEFAULT, **_LASSO},
    "ablation-2-pruning": {**aqfl.DEFAULT, **_PRUNING},
    "ablation-3-both": {**aqfl.DEFAULT, **_LASSO, **_PRUNING},
    "ablation-4-policy": {**fedmpq.DEFAULT, "lasso": 0.0},
}
