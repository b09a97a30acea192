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
from fedmpq.export.values import Conv, Norm

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


def conv_state(norm: Norm, std: Sequence[float] | None, *, flatten: bool = False) -> LayerInit:
    """Values of a convolution with batch-norm.

    A convolution's own bias moves into the running mean, where batch-norm cancels it. Where the layer reads the image
    and the module was trained on (pixel/255 − mean)/std, one common factor 255·s̄ (s̄ the geometric mean of std) goes
    into the running statistics and the ratios s̄/std into the weights: the output of batch-norm stays the same, and so
    does the size of the weights, on which the effective learning rate depends.
    """
    conv = norm.conv
    weight, mean, var = conv.weight.double(), norm.mean.double(), norm.var.double()
    if conv.bias is not None:
        mean = mean - conv.bias.double()
    if std is not None:
        common = math.exp(sum(math.log(value) for value in std) / len(std))
        ratio = torch.tensor([common / value for value in std], dtype=torch.float64)
        per_group = weight.shape[1]
        channel = torch.arange(weight.shape[0]) // (weight.shape[0] // conv.groups)
        index = channel[:, None] * per_group + torch.arange(per_group)[None, :]
        weight = weight * ratio[index][:, :, None, None]
        mean, var = mean * (255 * common), var * (255 * common) ** 2
    weight = weight.permute(0, 2, 3, 1)
    return LayerInit(
        weight=_array(weight.reshape(weight.shape[0], 1, 1, -1) if flatten else weight),
        gamma=_array(norm.gamma),
        beta=_array(norm.beta),
        mean=_array(mean),
        var=_array(var),
    )


def classifier_state(conv: Conv, shape: Shape) -> LayerInit:
    """Values of the classifier; its columns are reordered from the module's c, h, w to the program's h, w, c."""
    weight = conv.weight.reshape(conv.cout, shape.c, shape.h, shape.w).permute(0, 2, 3, 1)
    bias = torch.zeros(conv.cout) if conv.bias is None else conv.bias
    return LayerInit(weight=_array(weight.reshape(conv.cout, shape.elements)), bias=_array(bias))


def _array(value: torch.Tensor) -> FloatArray:
    return np.ascontiguousarray(value.detach().cpu().float().numpy())
