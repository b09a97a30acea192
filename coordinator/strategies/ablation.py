"""Table 4's settings (1) to (5) between AQFL and FedMPQ."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


def settings(aqfl: Mapping[str, Any], fedmpq: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """The five settings.

    Args:
        aqfl: the choices of AQFL.
        fedmpq: those of FedMPQ, of which the settings take the Lasso, the pruning and the policy.
    """
    lasso = {"lasso": fedmpq["lasso"]}
    pruning = {"prune_density": fedmpq["prune_density"]}
    return {
        "ablation-1-lasso": {**aqfl, **lasso},
        "ablation-2-pruning": {**aqfl, **pruning},
        "ablation-3-both": {**aqfl, **lasso, **pruning},
        "ablation-4-policy": {**fedmpq, "lasso": 0.0},
        "ablation-5-all": {**fedmpq},
    }
