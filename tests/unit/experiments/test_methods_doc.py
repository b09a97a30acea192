"""docs/methods.md names every system, policy and option there is."""

from __future__ import annotations

from pathlib import Path

import pytest

from fedmpq.coordinator import strategies
from fedmpq.coordinator.policy import POLICIES
from fedmpq.experiments.presets import PRESETS

TEXT = (Path(__file__).resolve().parents[3] / "docs" / "methods.md").read_text()

OPTIONS = (
    "policy", "scale", "aggregation", "rounding", "server_momentum_q15", "weighting", "pooled_variance", "lasso",
    "prune_density", "act_bits", "guard", "momentum", "momentum_q15", "lr", "lr_final", "schedule", "weight_decay",
    "decay_bn", "epochs", "batch", "micro_batch", "recompute",
)  # fmt: skip


@pytest.mark.parametrize("name", [*strategies.STRATEGIES, *strategies.FLOAT_STRATEGIES, *POLICIES, *PRESETS, *OPTIONS])
def test_every_name_is_explained(name: str) -> None:
    assert f"`{name}`" in TEXT


def test_the_defaults_in_the_table_are_those_of_the_code() -> None:
    ours, literal = strategies.choices("fedmpq"), strategies.choices("fedmpq", paper_literal=True)
    assert (ours["policy"], ours["scale"], ours["aggregation"]) == ("walk", "mse", "changes")
    assert ours["server_momentum_q15"] == 16384
    assert (ours["lasso"], ours["prune_density"]) == (literal["lasso"], literal["prune_density"]) == (0.01, 0.03)
    assert literal["policy"] == "literal"
    # AQFL gets the same improvements: the two differ in the method only.
    theirs = strategies.choices("aqfl")
    same = ("scale", "aggregation", "rounding", "server_momentum_q15")
    assert all(ours[key] == theirs[key] for key in same)
