"""The coordinator's planner refuses at the start what no device could try."""

from __future__ import annotations

from typing import Any

import pytest

from fedmpq.coordinator.admission import planner_of
from fedmpq.edge_runtime.protocol import Settings
from fedmpq.errors import ConfigError
from tests.helpers import programs

FLAGS = ("momentum", "crop", "flip", "decay_bn", "recompute")


def test_a_model_too_wide_for_8_bits_is_refused_before_the_run() -> None:
    net = programs.Builder(8, 8, 1, 2)
    net.conv("flat", net.conv("more", 0, 517, kernel=1), 4, kernel=1, flatten=True)
    net.classifier("fc", 2)
    common: dict[str, Any] = {"batch": 1, "micro_batch": None, "guard": 0, **dict.fromkeys(FLAGS, False)}
    fits = planner_of(net.build(), Settings(act_bits=4, **common))
    assert fits((8, 8, 8)) > fits((2, 2, 2))
    with pytest.raises(ConfigError, match=r"act_bits = 8, guard = 0: plan: a convolution or linear layer is too wide"):
        planner_of(net.build(), Settings(act_bits=8, **common))
