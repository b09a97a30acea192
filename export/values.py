"""What a graph node stands for while a graph is lowered.

A record is a convolution with all that may follow it: batch-norm or bias, a sum, a ReLU. So a value is pending as long
as more may follow; what reads it as it is makes it a linear record, whose output is signed.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeAlias

if TYPE_CHECKING:
    from torch import Tensor as TorchTensor
    from torch.fx import Node

    from fedmpq.export.program import Shape


@dataclass(frozen=True)
class Tensor:
    """A tensor of the program (0 is the image). `flat` once the model has flattened it to features."""

    index: int
    shape: Shape
    flat: bool = False


@dataclass
class GlobalMean:
    """The mean over a whole map: a global pool before the classifier, an average pool before anything else."""

    node: Node
    source: Tensor
    tensor: Tensor | None = None  #: set once it has become a record


@dataclass(frozen=True)
class Padded:
    """A tensor with zeros around the map, to be merged into the padding of the convolution that reads it."""

    node: Node
    source: Tensor
    pad: int


@dataclass(frozen=True)
class Shortcut:
    """A subsampled and channel-padded tensor: the pieces of an option-A shortcut."""

    node: Node
    source: Tensor
    step: tuple[int, int]
    front: int = 0
    back: int = 0


@dataclass
class Conv:
    """A convolution or linear layer that waits for its batch-norm or ReLU (or, at the end, is the classifier)."""

    node: Node
    name: str
    source: Tensor | GlobalMean
    weight: TorchTensor  #: OIHW, from a linear layer over a flattened map too
    bias: TorchTensor | None
    cout: int
    stride: int = 1
    pad: int = 0
    groups: int = 1
    linear: bool = False
    measured: Node | None = None  #: the node of its output's size, where that is not its own


@dataclass
class Norm:
    """A convolution with its batch-norm, waiting for a sum or its ReLU."""

    node: Node
    conv: Conv
    gamma: TorchTensor
    beta: TorchTensor
    mean: TorchTensor
    var: TorchTensor
    eps: float


@dataclass
class Sum:
    """A layer's output plus a skip, waiting for its ReLU."""

    node: Node
    layer: Conv | Norm
    skip: Tensor | Shortcut


@dataclass
class MaxOf:
    """Max pooling that stands before the ReLU; the two commute, so the ReLU goes first."""

    node: Node
    inner: Tensor | Conv | Norm | Sum | Joined
    kernel: tuple[int, int]
    stride: int
    pad: int


@dataclass
class Joined:
    """A concatenation whose parts may wait for a ReLU: the two commute, so the ReLU goes first."""

    node: Node
    parts: tuple[Value, ...]


@dataclass(frozen=True)
class Bad:
    """The output of an operation already reported; its readers are not reported again."""


Layer: TypeAlias = Conv | Norm
Value: TypeAlias = Tensor | GlobalMean | Padded | Shortcut | Conv | Norm | Sum | MaxOf | Joined | Bad


def conv_of(layer: Layer) -> Conv:
    """The convolution of a layer."""
    return layer.conv if isinstance(layer, Norm) else layer
