"""Pooling."""

from __future__ import annotations

from typing import Any

from torch.fx import Node

from fedmpq.export.lower import Context, handles, out_shape, pool_name
from fedmpq.export.program import Kind
from fedmpq.export.values import Bad, Conv, GlobalMean, Joined, MaxOf, Norm, Shortcut, Sum, Tensor, Value


@handles("aten.max_pool2d")
def max_pool2d(context: Context, node: Node, args: dict[str, Any]) -> Value:
    """Max pooling; before a ReLU it waits for it, as the two commute."""
    window = _window(context, node, args)
    if window is None:
        return Bad()
    kernel, stride, pad = window
    if _pair(args["dilation"]) != (1, 1):
        return context.bad(node, f"dilation {args['dilation']} has no record", "use a plain MaxPool2d")
    value = context.env.get(args["self"])
    if isinstance(value, Conv | Norm | Sum | Joined):
        return MaxOf(node, value, kernel, stride, pad)
    if isinstance(value, Tensor) and value.index == 0:
        return context.bad(node, "pooling of the image itself", "resize the images, or put a convolution before it")
    tensor = context.tensor(value, node)
    if tensor is None:
        return Bad()
    if kernel == (1, 1) and stride == 2:
        return Shortcut(node, tensor, (2, 2))
    return context.emit_max_pool(MaxOf(node, tensor, kernel, stride, pad), tensor)


@handles("aten.avg_pool2d")
def avg_pool2d(context: Context, node: Node, args: dict[str, Any]) -> Value:
    """Average pooling; over the whole map it is a global pool."""
    window = _window(context, node, args)
    if window is None:
        return Bad()
    kernel, stride, pad = window
    tensor = _activation(context, node, context.env.get(args["self"]))
    if tensor is None:
        return Bad()
    if kernel == (1, 1) and stride == 2:
        return Shortcut(node, tensor, (2, 2))
    if pad or args["divisor_override"] is not None:
        return context.bad(node, "padding or another divisor has no record", "use AvgPool2d(k) without padding")
    if kernel == (tensor.shape.h, tensor.shape.w):
        return GlobalMean(node, tensor)
    if kernel != (stride, stride):
        return context.bad(node, f"its windows {kernel} overlap at stride {stride}", "use AvgPool2d(k) with stride k")
    return _average(context, node, tensor, kernel)


@handles("aten.adaptive_avg_pool2d")
def adaptive_avg_pool2d(context: Context, node: Node, args: dict[str, Any]) -> Value:
    """Adaptive pooling to one pixel, or to a size that divides the map."""
    if isinstance(context.env.get(args["self"]), GlobalMean) and _pair(args["output_size"]) == (1, 1):
        return context.env[args["self"]] or Bad()
    tensor = _activation(context, node, context.env.get(args["self"]))
    if tensor is None:
        return Bad()
    h, w = _pair(args["output_size"])
    shape = tensor.shape
    if (h, w) == (shape.h, shape.w):
        return tensor
    if (h, w) == (1, 1):
        return GlobalMean(node, tensor)
    if shape.h % h or shape.w % w or shape.h // h != shape.w // w:
        return context.bad(node, f"a map of {shape} does not divide into {h}×{w}", "use AdaptiveAvgPool2d(1)")
    return _average(context, node, tensor, (shape.h // h, shape.w // w))


@handles("aten.mean")
def mean(context: Context, node: Node, args: dict[str, Any]) -> Value:
    """The mean over height and width: a global pool."""
    value = context.env.get(args["self"])
    dims = args.get("dim")
    rank = 4
    if dims is None or sorted(d % rank for d in ([dims] if isinstance(dims, int) else dims)) != [2, 3]:
        return context.bad(node, f"a mean over dimensions {dims} has no record", "use mean((2, 3))")
    if isinstance(value, GlobalMean):
        return value
    tensor = _activation(context, node, value)
    return Bad() if tensor is None else GlobalMean(node, tensor)


def _activation(context: Context, node: Node, value: Value | None) -> Tensor | None:
    """The tensor to be averaged; the image itself is signed and cannot be."""
    if isinstance(value, Tensor) and value.index == 0:
        context.bad(node, "pooling of the image itself", "resize the images, or put a convolution before it")
        return None
    return context.tensor(value, node)


def _average(context: Context, node: Node, tensor: Tensor, kernel: tuple[int, int]) -> Tensor | Bad:
    index = context.builder.pool(
        context.unique(pool_name(node)), Kind.AVG_POOL, kernel, stride=kernel[0], input=tensor.index
    )
    return context.pooled(node, index)


def _window(context: Context, node: Node, args: dict[str, Any]) -> tuple[tuple[int, int], int, int] | None:
    kernel = _pair(args["kernel_size"])
    stride = _pair(args["stride"]) if args["stride"] else kernel
    pad = _pair(args["padding"])
    if pad[0] != pad[1]:
        context.bad(node, f"padding {pad} differs by direction", "use the same padding in both directions")
        return None
    if stride[0] != stride[1]:
        shape = out_shape(node)
        if shape[-2:] != (1, 1):
            context.bad(node, f"its strides {stride} differ", "use one stride for both directions")
            return None
    return kernel, stride[0], pad[0]


def _pair(value: object) -> tuple[int, int]:
    if isinstance(value, int):
        return value, value
    assert isinstance(value, list | tuple)
    return (int(value[0]), int(value[0])) if len(value) == 1 else (int(value[0]), int(value[1]))
