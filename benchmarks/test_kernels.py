"""Each layer of ResNet20 on each instruction set of this machine, for pytest-benchmark; nothing here asserts a time.

    make bench-kernels                                              a table
    make bench-kernels ARGS="--benchmark-save=before"               keep it under .benchmarks
    make bench-kernels ARGS="--benchmark-compare -k amx"            beside the last one kept

A small program with the layer is timed, stem, pool and classifier included: for changes of a kernel from one build to
the next. `fedmpq bench kernels` has the layers by themselves, and the fraction of the machine's peak.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache

import pytest
import torch

from fedmpq.bench.kernels import Small, shapes
from fedmpq.edge_runtime import core
from fedmpq.export import from_module, resolve

BATCH = 16
LAYERS = ("16 to 16 on 32", "16 to 32 on 32", "32 to 32 on 16", "32 to 64 on 16", "64 to 64 on 8")


@cache
def layers() -> dict[str, core.Record]:
    """ResNet20's convolutions by what they are called here."""
    torch.manual_seed(0)
    module = resolve("resnet20", num_classes=10, in_channels=3)
    found = shapes(core.Program(from_module(module, (3, 32, 32), mean=[128], name="resnet20").program))
    return {f"{record.cin} to {record.cout} on {record.h_in}": record for record, _ in found}


@pytest.fixture(params=core.isas())
def isa(request: pytest.FixtureRequest) -> Iterator[str]:
    """An instruction set, in use for one test."""
    before = core.isa()
    core.set_isa(request.param)
    yield request.param
    core.set_isa(before)


@pytest.mark.parametrize("layer", LAYERS)
@pytest.mark.parametrize("of", ["forward", "step"])
def test_layer(benchmark, isa, of, layer):
    """Convolution, batch-norm and requantisation; or a step: with both backward convolutions and the update."""
    small = Small(layers()[layer], 4, BATCH, with_layer=True)
    benchmark.group = f"{of}, {layer}"
    benchmark(getattr(small, of))
    assert core.isa() == isa
