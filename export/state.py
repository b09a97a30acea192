"""Initial float values of the weight layers, in the layouts of the integer program (OHWI weights, NHWC maps)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray

from fedmpq.export.program import Shape
from fedmpq.export.values import Conv, Layer, Norm, conv_of

FloatArray: TypeAlias = NDArray[np.float32]


@dataclass(frozen=True)
class LayerInit:
    """Float values of one weight layer.

    Attributes:
        weight: convolution [cout, kh, kw, cin of one group], classifier [classes, features in h, w, c order].
        gamma, beta: batch-norm scale and shift by output channel; None for the classifier.
        mean, var: running statistics of the convolution's output, the image counted in pixels minus channel mean and
            activations in units of one σ of a batch-norm output; None for the classifier.
        bias: the classifier's bias; None for a convolution.
    """

    weight: FloatArray
    gamma: FloatArray | None = None
    beta: FloatArray | None = None
    mean: FloatArray | None = None
    var: FloatArray | None = None
    bias: FloatArray | None = None


#: A layer without batch-norm keeps ±4·RANGE times its measured size in x̂, as far as γ reaches.
RANGE = 2.0
_GAMMA_MAX = 2.99
#: What an untrained module without batch-norm in front is taken to divide its pixels (0…1) by.
_STD = 0.25


def conv_state(
    layer: Layer,
    std: Sequence[float] | None,
    *,
    units: tuple[float, float] = (1.0, 1.0),
    size: float | None = None,
    flatten: bool = False,
    image: bool = False,
    trained: bool = False,
) -> LayerInit:
    """Values of a convolution with batch-norm or bias.

    With batch-norm, a convolution's own bias moves into the running mean, where batch-norm cancels it. Without, the
    statistics are constants: mean 0, and a deviation that gives x̂ its range; γ takes the deviation back.

    Where the layer reads the image and the module was trained on (pixel/255 − mean)/std, one common factor 255·s̄ (s̄ the
    geometric mean of std) goes into the running statistics and the ratios s̄/std into the weights: the output stays the
    same, and so does the size of the weights, on which the effective learning rate depends.

    Args:
        layer: the convolution, with or without its batch-norm.
        std: pixel deviation by channel; None for an untrained module and for layers that do not read the image.
        units: the module's value of one unit of input and output.
        size: root mean square of the convolution's output, for a layer without batch-norm.
        flatten: whether it reads a map as one pixel.
        image: whether it reads the image.
        trained: whether a batch-norm's statistics are those of a trained module, whose ε then counts: beside a small
            variance it is part of the function. An untrained one's are forgotten within a few steps.
    """
    conv, (read, made) = conv_of(layer), units
    weight = conv.weight.double()
    if isinstance(layer, Norm):
        gamma, beta, mean, var = (v.double() for v in (layer.gamma, layer.beta, layer.mean, layer.var))
        if conv.bias is not None:
            mean = mean - conv.bias.double()
        if trained:
            var = var + layer.eps
    else:
        spread = min(RANGE * (size or 1.0), _GAMMA_MAX * made) or 1.0
        gamma = torch.full((conv.cout,), spread, dtype=torch.float64)
        beta = torch.zeros_like(gamma) if conv.bias is None else conv.bias.double()
        mean, var = torch.zeros_like(gamma), gamma * gamma
        std = (_STD,) if image and std is None else std
    if std is not None:
        common = math.exp(sum(math.log(value) for value in std) / len(std))
        per_group = weight.shape[1]
        if len(std) > 1:
            ratio = torch.tensor([common / value for value in std], dtype=torch.float64)
            channel = torch.arange(weight.shape[0]) // (weight.shape[0] // conv.groups)
            index = channel[:, None] * per_group + torch.arange(per_group)[None, :]
            weight = weight * ratio[index][:, :, None, None]
        mean, var = mean * (255 * common), var * (255 * common) ** 2
    weight = weight.permute(0, 2, 3, 1)
    return LayerInit(
        weight=_array(weight.reshape(weight.shape[0], 1, 1, -1) if flatten else weight),
        gamma=_array(gamma / made),
        beta=_array(beta / made),
        mean=_array(mean / read),
        var=_array(var / read**2),
    )


def classifier_state(conv: Conv, shape: Shape, unit: float = 1.0) -> LayerInit:
    """Values of the classifier, which reads a tensor of that shape and unit (the module's value of 1).

    Its columns are reordered from the module's c, h, w to the program's h, w, c.
    """
    weight = (conv.weight * unit).reshape(conv.cout, shape.c, shape.h, shape.w).permute(0, 2, 3, 1)
    bias = torch.zeros(conv.cout) if conv.bias is None else conv.bias
    return LayerInit(weight=_array(weight.reshape(conv.cout, shape.elements)), bias=_array(bias))


def _array(value: torch.Tensor) -> FloatArray:
    return np.ascontiguousarray(value.detach().cpu().float().numpy())
