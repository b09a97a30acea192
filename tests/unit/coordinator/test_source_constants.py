"""A run that starts from a model gives devices the constants that an export of it would."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from fedmpq.coordinator import source
from fedmpq.edge_runtime import core
from fedmpq.export import build, from_module, resolve
from fedmpq.models.reference.program import parse


@dataclass(frozen=True)
class Shape:
    shape: tuple[int, int, int]
    classes: int


def test_layers_without_batch_norm_keep_their_statistics() -> None:
    """Whatever tensor they read: the second linear layer's input is signed and has an exponent of its own."""
    name = "tests.unit.export.nets:plain_mlp"
    origin = source.of_model(name, Shape((8, 8, 3), 10), bytes([120, 120, 120]), crop_pad=0, seed=3)
    torch.manual_seed(3)
    model = from_module(resolve(name), (3, 8, 8), mean=(120,), name=name)
    assert origin.program == model.program
    records = parse(model.program).weight_layers
    assert {parse(model.program).exponents[r.input] for r in records} == {0, 1}
    for bits in (2, 8):
        plan = core.Plan(bits=(bits,) * len(records), batch=4)
        exported = build.initial_states(model, plan, "max")
        for i, record in enumerate(records[:-1]):
            sent = origin.initial().layer_state(i, bits, plan.act_bits)
            for dtype, count, start in (("<i4", 3 * record.cout, 0), ("<i8", record.cout, 12 * record.cout)):
                ours, theirs = (np.frombuffer(s.params, dtype, count, start) for s in (sent, exported[i]))
                np.testing.assert_allclose(ours, theirs, rtol=1e-3, atol=2**14)
