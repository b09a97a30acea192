"""From float values to the integer layer states that a training session loads.

The float side counts images in pixels minus channel mean and activations in units of one σ of a batch-norm output, so
running statistics are those of a convolution fed with such values.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import ArrayLike, NDArray
from torch import Tensor, nn

from fedmpq.errors import ModelError
from fedmpq.models import codec
from fedmpq.models.codec import Scale
from fedmpq.models.reference.plan import PlanLike
from fedmpq.models.reference.program import Kind, Program, Record
from fedmpq.models.reference.state import LayerState

#: Accumulator values of γ = 1, β = 1 and a bias of one nat (docs/arithmetic.md, sections 5 and 6).
GAMMA_ONE = 2**31 / 3
BETA_ONE = 2**28 / 3
BIAS_ONE = 2**20
#: Width of one base step in σ.
BASE_STEP = 3 / 256

_INT32_MAX = 2**31 - 1
_GAMMA_MAX = 32767 << 16
_PARAM_MAX = 2**30
_RV_MAX = 2**47 - 1

Floats = NDArray[np.float64]


class FloatLayerLike(Protocol):
    """Float values of one weight layer; also met by the exporter's initial states."""

    @property
    def weight(self) -> ArrayLike:
        """Weights in OHWI."""

    @property
    def gamma(self) -> ArrayLike | None:
        """Batch-norm scale by channel; None for a classifier, as the next three."""

    @property
    def beta(self) -> ArrayLike | None:
        """Batch-norm shift."""

    @property
    def mean(self) -> ArrayLike | None:
        """Running mean."""

    @property
    def var(self) -> ArrayLike | None:
        """Running variance."""

    @property
    def bias(self) -> ArrayLike | None:
        """Bias of a classifier."""


@dataclass(frozen=True)
class FloatLayer:
    """Float values of one weight layer, OHWI."""

    weight: Floats
    gamma: Floats | None = None
    beta: Floats | None = None
    mean: Floats | None = None
    var: Floats | None = None
    bias: Floats | None = None


def float_layers(module: nn.Module, pixel_scale: float = 1.0) -> list[FloatLayer]:
    """Weight layers of a module whose convolutions are each registered right before their batch-norm, as in the zoo.

    Args:
        module: convolutions with batch-norm and one final linear layer over globally pooled features.
        pixel_scale: what the module's input counts for one pixel step (1 / 255 for inputs from 0 to 1).

    Raises:
        ModelError: a layer of another kind has weights.
    """
    layers: list[FloatLayer] = []
    weight: Floats | None = None
    unit = 1.0 / pixel_scale
    for name, part in module.named_modules():
        if isinstance(part, nn.Conv2d):
            weight = _array(part.weight).transpose(0, 2, 3, 1)
        elif isinstance(part, nn.BatchNorm2d) and weight is not None:
            mean, var = _array(part.running_mean), _array(part.running_var)
            layers.append(FloatLayer(weight, _array(part.weight), _array(part.bias), mean * unit, var * unit**2))
            weight, unit = None, 1.0
        elif isinstance(part, nn.Linear):
            layers.append(FloatLayer(_array(part.weight)[:, None, None, :], bias=_array(part.bias)))
        elif any(True for _ in part.parameters(recurse=False)):
            raise ModelError(f"{name} ({type(part).__name__}) is not a convolution, batch-norm or linear layer")
    return layers


def states(
    program: Program, plan: PlanLike, layers: Sequence[FloatLayerLike], scale: Scale = "max"
) -> list[LayerState]:
    """States of all weight layers at the plan's bits."""
    return [
        layer_state(record, values, bits, program=program, plan=plan, scale=scale)
        for record, values, bits in zip(program.weight_layers, layers, plan.bits, strict=True)
    ]


def layer_state(
    record: Record, values: FloatLayerLike, bits: int, *, program: Program, plan: PlanLike, scale: Scale = "max"
) -> LayerState:
    """State of one weight layer: quantised weights, accumulators, running statistics in y units."""
    q, step = codec.quantise(np.asarray(values.weight, np.float64), bits, scale, guard=plan.guard)
    planes = tuple(codec.pack(q, bits + plan.guard))
    if record.kind is Kind.CLASSIFIER:
        params = _integers(_given(values.bias, record) * BIAS_ONE, _PARAM_MAX, "<i4")
        return LayerState(bits, plan.guard, step, planes, params)
    first = record.input == 0
    amax = 255 if first else 2**plan.act_bits - 1
    k = max(0, (math.isqrt(record.fan_in) * amax * (2**bits - 1)).bit_length() - 13)
    read = 1.0 if first else BASE_STEP * 2.0 ** (program.exponents[record.input] + 8 - plan.act_bits)
    y_unit = codec.fx_to_float(step) * 2.0**k * read
    params = (
        _integers(_given(values.gamma, record) * GAMMA_ONE, _GAMMA_MAX, "<i4")
        + _integers(_given(values.beta, record) * BETA_ONE, _PARAM_MAX, "<i4")
        + _integers(_given(values.mean, record) / y_unit * 65536, _INT32_MAX, "<i4")
        + _integers(_given(values.var, record) / y_unit**2 * 65536, _RV_MAX, "<i8")
    )
    return LayerState(bits, plan.guard, step, planes, params)


def _given(values: ArrayLike | None, record: Record) -> Floats:
    array = np.asarray([] if values is None else values, np.float64)
    if array.shape != (record.cout,):
        raise ModelError(
            f"layer {record.name} has values of shape {array.shape}, expected one for {record.cout} channels"
        )
    return array


def _integers(values: Floats, limit: int, kind: str) -> bytes:
    return np.clip(np.rint(values), -limit, limit).astype(kind).tobytes()


def _array(values: Tensor | None) -> Floats:
    assert values is not None, "batch-norm layers have affine parameters and running statistics"
    array: Floats = values.detach().cpu().numpy().astype(np.float64)
    return array
