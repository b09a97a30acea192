"""Multiply-accumulates of a program."""

from __future__ import annotations

from fedmpq.edge_runtime import core


def forward(program: core.Program) -> int:
    """Multiply-accumulates of convolutions and classifier for one sample, forward."""
    return sum(layer.theta * _positions(program, layer) for layer in program.weight_layers)


def step(program: core.Program) -> int:
    """Those of a training step for one sample: forward, error to the input and weight gradient are of one size.

    The first layer's error to the input, which no one reads, is counted too, as is usual: three times forward.
    """
    return 3 * forward(program)


def _positions(program: core.Program, layer: core.WeightLayer) -> int:
    record = program.records[layer.record]
    return record.h_out * record.w_out
