"""The systems of the paper (Chen & Vikalo, CVPR 2024), one small module each.

A strategy of integer training is a set of choices of `RunConfig`; the round machine is the same for all of them.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from fedmpq.coordinator.strategies import ablation, aqfl, fedmpq, fpq8
from fedmpq.errors import ConfigError

#: As the paper prints them.
PAPER_LITERAL: dict[str, Mapping[str, Any]] = {
    "fedmpq": fedmpq.PAPER,
    "aqfl": aqfl.PAPER,
    "fpq8": fpq8.PAPER,
    **ablation.settings(aqfl.PAPER, fedmpq.PAPER),
}
#: Strategies that train in integers on the devices, with the choices that define them.
STRATEGIES: dict[str, Mapping[str, Any]] = {
    "fedmpq": fedmpq.DEFAULT,
    "fedmpq-paper": fedmpq.PAPER,
    "aqfl": aqfl.DEFAULT,
    "aqfl-paper": aqfl.PAPER,
    "fpq8": fpq8.DEFAULT,
    **ablation.settings(aqfl.DEFAULT, fedmpq.DEFAULT),
}
#: Full-precision strategies: float training on the clients (ONNX Runtime on devices), updates sent as the name says.
FLOAT_STRATEGIES = ("fedavg", "fedpaq", "fedpaq8", "uveqfed", "uveqfed4")


def choices(name: str, *, paper_literal: bool = False) -> Mapping[str, Any]:
    """The configuration keys a strategy sets.

    Args:
        name: of the strategy.
        paper_literal: as the paper prints it; changes nothing about the full-precision ones.

    Raises:
        ConfigError: unknown strategy; lists the names there are.
    """
    if name in FLOAT_STRATEGIES:
        return {"weighting": "samples", "strategy": name}
    if name not in STRATEGIES:
        known = ", ".join([*STRATEGIES, *FLOAT_STRATEGIES])
        raise ConfigError(f"unknown strategy {name!r}", f"one of {known}")
    table = {**STRATEGIES, **PAPER_LITERAL} if paper_literal else STRATEGIES
    return {**table[name], "strategy": name}
