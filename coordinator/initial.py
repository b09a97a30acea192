"""The first global model of a run: from the floats of a PyTorch module or from an artifact's weights."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from fedmpq.coordinator import bn_units, planes, quantise
from fedmpq.coordinator.global_model import (
    BETA_ONE,
    GAMMA_LIMIT,
    GAMMA_ONE,
    INT_LIMIT,
    DeviceLayer,
    GlobalLayer,
    GlobalModel,
    read_layer,
)
from fedmpq.coordinator.layout import LayerShape, Layout
from fedmpq.edge_runtime.artifact import Artifact

#: One sigma of a batch-norm output in activation base steps (docs/arithmetic.md section 4).
STEPS_PER_SIGMA = 256 / 3


class FloatLayer(Protocol):
    """Float values of a weight layer (`export.state.LayerInit`): OHWI weights, statistics in sigma or pixels."""

    @property
    def weight(self) -> NDArray[np.float32]:
        """Weights."""

    @property
    def gamma(self) -> NDArray[np.float32] | None:
        """Batch-norm scale."""

    @property
    def beta(self) -> NDArray[np.float32] | None:
        """Batch-norm shift."""

    @property
    def mean(self) -> NDArray[np.float32] | None:
        """Running mean of the convolution's output."""

    @property
    def var(self) -> NDArray[np.float32] | None:
        """Running variance of the convolution's output."""

    @property
    def bias(self) -> NDArray[np.float32] | None:
        """Bias of the classifier."""


def of_floats(layout: Layout, layers: Sequence[FloatLayer]) -> GlobalModel:
    """The global model nearest to a module's float values; elementwise rounding, so equal floats give equal bytes."""
    found = [_layer(shape, layer) for shape, layer in zip(layout.layers, layers, strict=True)]
    return GlobalModel(layout, found)


def of_artifact(layout: Layout, artifact: Artifact) -> GlobalModel:
    """The global model that an artifact's planes stand for, guard planes included."""
    found = []
    for shape, layer in zip(layout.layers, artifact.layers, strict=True):
        rounded = planes.unpack(shape, layer.bits + layer.guard, layer.step, layer.planes, layer.params)
        finer = (layer.step[0], layer.step[1] - layer.guard)
        whole = read_layer(
            shape, DeviceLayer(layer.bits, layer.step, rounded.q, layer.params), artifact.plan["act_bits"]
        )
        whole.weights = quantise.dequantise(rounded.q, finer)
        found.append(whole)
    return GlobalModel(layout, found)


def _layer(shape: LayerShape, layer: FloatLayer) -> GlobalLayer:
    weights = _rounded(layer.weight, 1 << quantise.WEIGHT_BITS, quantise.WEIGHT_LIMIT)
    empty = np.zeros(0, np.int64)
    if not shape.is_conv:
        return GlobalLayer(weights, empty, empty, [], [], _rounded(layer.bias, 1 << 20, INT_LIMIT))
    unit = 1.0 if shape.reads_pixels else STEPS_PER_SIGMA
    return GlobalLayer(
        weights=weights,
        gamma=_rounded(layer.gamma, GAMMA_ONE, GAMMA_LIMIT),
        beta=_rounded(layer.beta, BETA_ONE, INT_LIMIT),
        mean=_wide(layer.mean, unit, bn_units.MEAN_BITS),
        var=_wide(layer.var, unit * unit, bn_units.VAR_BITS),
        bias=empty,
    )


def _rounded(values: Any, unit: int, limit: int) -> NDArray[np.int64]:
    scaled = np.rint(np.asarray(values, np.float64).reshape(-1) * unit)
    return np.clip(scaled, -limit, limit).astype(np.int64)


def _wide(values: Any, unit: float, bits: int) -> list[int]:
    return [int(float(value) * unit * (1 << bits)) for value in np.asarray(values, np.float64)]
