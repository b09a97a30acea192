"""Convolution, linear, batch-norm and activations."""

from __future__ import annotations

from typing import Any

import torch
from torch.fx import Node

from fedmpq.export.lower import Context, handles, map_shape, out_shape, unit_layer
from fedmpq.export.problems import op_name
from fedmpq.export.values import Bad, Conv, GlobalMean, Joined, MaxOf, Norm, Padded, Sum, Tensor, Value

_ACTIVATIONS = {"aten.relu", "aten.relu6", "aten.hardtanh", "aten.clamp", "aten.clamp_min", "aten.clip"}


@handles("aten.conv2d")
def conv2d(context: Context, node: Node, args: dict[str, Any]) -> Value:
    """A convolution; waits for its batch-norm or ReLU."""
    source = context.env.get(args["input"])
    weight = _weight(context, node, args)
    if weight is None:
        return _broken(context, node)
    name, kernel, bias = weight
    stride, dilation = _same(args["stride"]), _same(args["dilation"])
    if stride is None:
        context.bad(node, f"its strides {args['stride']} differ", "use one stride for both directions")
        return _broken(context, node)
    if dilation != 1:
        context.bad(node, f"dilation {args['dilation']} has no record", "use a larger kernel or a stride")
        return _broken(context, node)
    pad = _conv_padding(args["padding"], kernel)
    if pad is None:
        context.bad(node, f"padding {args['padding']} differs by side", "use the same padding on all sides")
        return _broken(context, node)
    if isinstance(source, Padded):
        pad += source.pad
        source = source.source
    found = source if isinstance(source, GlobalMean) else context.tensor(source, node)
    if found is None:
        return _broken(context, node)
    return Conv(node, name, found, kernel, bias, kernel.shape[0], stride, pad, int(args["groups"]))


@handles("aten.linear")
def linear(context: Context, node: Node, args: dict[str, Any]) -> Value:
    """A linear layer: a convolution whose kernel is the whole map; the classifier if its output leaves the model."""
    source = context.env.get(args["input"])
    weight = _weight(context, node, args)
    found = source if isinstance(source, GlobalMean) else context.tensor(source, node)
    if weight is None or found is None:
        return _broken(context, node)
    name, matrix, bias = weight
    shape = map_shape(found)
    assert shape is not None
    if matrix.shape[1] != shape.elements:
        context.bad(
            node, f"it mixes {matrix.shape[1]} of the {shape.elements} features", "flatten the map before a Linear"
        )
        return _broken(context, node)
    kernel = matrix.reshape(matrix.shape[0], shape.c, shape.h, shape.w)
    return Conv(node, name, found, kernel, bias, matrix.shape[0], linear=True)


@handles("aten.batch_norm", "aten._native_batch_norm_legit_no_training", "aten.cudnn_batch_norm")
def batch_norm(context: Context, node: Node, args: dict[str, Any]) -> Value:
    """Batch-norm right after a convolution or linear layer; one that stands alone is a depthwise layer of weight 1."""
    source = context.env.get(args["input"])
    if not isinstance(source, Conv) or len(context.graph.readers(args["input"])) > 1:
        tensor = context.tensor(source, node)
        if tensor is None:
            return Bad()
        if tensor.flat and tensor.shape.h * tensor.shape.w > 1:
            return context.bad(node, "batch-norm of a flattened map", "put BatchNorm2d before Flatten")
        source = unit_layer(node, tensor, args["input"])
    found = {key: context.parameter(args[key]) for key in ("weight", "bias", "running_mean", "running_var")}
    for key, entry in found.items():
        if entry is None and args[key] is not None:
            context.bad(node, f"its {key} is computed", "use a plain BatchNorm2d")
        elif entry is not None:
            context.claim(node, entry[0], source.name)
    defaults = {"weight": 1.0, "bias": 0.0, "running_mean": 0.0, "running_var": 1.0}
    values = {
        key: torch.full((source.cout,), defaults[key]) if entry is None else entry[1] for key, entry in found.items()
    }
    gamma, beta, mean, var = (values[key] for key in ("weight", "bias", "running_mean", "running_var"))
    return Norm(node, source, gamma, beta, mean, var, float(args["eps"]))


@handles("aten.relu")
def relu(context: Context, node: Node, args: dict[str, Any]) -> Value:
    """A ReLU: closes the record of the convolution before it."""
    return activate(context, node, args["self"], None)


@handles("aten.relu6")
def relu6(context: Context, node: Node, args: dict[str, Any]) -> Value:
    """A ReLU6: a ReLU whose activation range is the nearest to 0…6."""
    return activate(context, node, args["self"], 6.0)


@handles("aten.hardtanh")
def hardtanh(context: Context, node: Node, args: dict[str, Any]) -> Value:
    """Hardtanh(0, a): a ReLU whose activation range is the nearest to 0…a."""
    return _clipped(context, node, args["self"], args["min_val"], args["max_val"])


@handles("aten.clamp", "aten.clamp_min", "aten.clip")
def clamp(context: Context, node: Node, args: dict[str, Any]) -> Value:
    """A clamp from 0 up, as ReLU or ReLU6."""
    return _clipped(context, node, args["self"], args.get("min"), args.get("max"))


def _clipped(context: Context, node: Node, source: Node, low: object, high: object) -> Value:
    if low != 0 or not (high is None or (isinstance(high, int | float) and high > 0)):
        return context.bad(node, f"it clips to {low}…{high}; tensors are unsigned", "clip to 0…a, for example by ReLU6")
    return activate(context, node, source, None if high is None else float(high))


def activate(context: Context, node: Node, source: Node, top: float | None) -> Value:
    """Ends a record with a ReLU that clips at about `top` σ; one without a top changes nothing on what is unsigned."""
    value = context.env.get(source)
    readers = context.graph.readers(source)
    if isinstance(value, Conv | Norm | Sum | MaxOf | Joined) and not all(map(_activates, readers)):
        value = context.tensor(value, node)  # something else reads it without the ReLU
    if isinstance(value, Tensor) and value.index == 0:
        return context.bad(node, "a ReLU on the image itself", "put a convolution and a batch-norm before it")
    if isinstance(value, GlobalMean) and (top is not None or context.builder.linear[value.source.index]):
        value = context.tensor(value, node)
    if isinstance(value, Tensor) and (top is not None or context.builder.linear[value.index]):
        value = unit_layer(node, value, source)
    if isinstance(value, Tensor | GlobalMean):
        return value
    if isinstance(value, Conv | Norm | Sum | MaxOf | Joined):
        done = context.close(value, top)
        if isinstance(done, Tensor) and context.builder.linear[done.index]:
            done = context.close(unit_layer(node, done, source), top)  # a concatenation of maps that are signed already
        return done
    context.tensor(value, node)
    return Bad()


def _activates(user: Node) -> bool:
    return op_name(user).removesuffix("_") in _ACTIVATIONS


def _weight(context: Context, node: Node, args: dict[str, Any]) -> tuple[str, torch.Tensor, torch.Tensor | None] | None:
    """Layer name, weight and bias of a layer, or None after reporting that they are shared or computed."""
    weight, bias = context.parameter(args["weight"]), context.parameter(args["bias"])
    if weight is None or (bias is None and args["bias"] is not None):
        context.bad(node, "its weights are computed in forward", "use plain parameters (no weight norm)")
        return None
    name = weight[0].removesuffix(".weight")
    if weight[0] in context.owners:
        context.bad(node, f"parameter {weight[0]} is used a second time", "give each layer parameters of its own")
        return None
    if not context.claim(node, weight[0], name) or (bias and not context.claim(node, bias[0], name)):
        return None
    return name, weight[1], None if bias is None else bias[1]


def _broken(context: Context, node: Node) -> Conv:
    """In place of a layer that was reported: what follows it is checked as if it stood there."""
    context.problems.silence(node)
    weight = torch.zeros(out_shape(node)[1], 1, 1, 1)
    return Conv(node, "", Tensor(0, context.builder.shapes[0]), weight, None, weight.shape[0])


def _same(values: object) -> int | None:
    """The one value of a per-direction argument, or None if directions differ."""
    if isinstance(values, int):
        return values
    assert isinstance(values, list | tuple)
    return int(values[0]) if len(set(values)) == 1 else None


def _conv_padding(padding: object, kernel: torch.Tensor) -> int | None:
    """Padding of one side, or None if sides differ. "same" needs an odd, square kernel."""
    if padding == "valid":
        return 0
    if padding == "same":
        kh, kw = kernel.shape[2], kernel.shape[3]
        return int(kh // 2) if kh == kw and kh % 2 == 1 else None
    return _same(padding)
