"""Convolution, linear, batch-norm, activations and sums."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch.fx import Node

from fedmpq.export.lower import Context, handles, map_shape, out_shape
from fedmpq.export.ops_pool import emit_max_pool
from fedmpq.export.program import MAX_T
from fedmpq.export.values import Bad, Conv, GlobalMean, MaxOf, Norm, Padded, Shortcut, Sum, Tensor, Value


@handles("aten.conv2d")
def conv2d(context: Context, node: Node, args: dict[str, Any]) -> Value:
    """A convolution; waits for its batch-norm."""
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
    """Batch-norm right after a convolution or linear layer."""
    source = context.env.get(args["input"])
    if not isinstance(source, Conv):
        return context.bad(node, "batch-norm stands alone", "put it right after a convolution or linear layer")
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
    return Norm(node, source, values["weight"], values["bias"], values["running_mean"], values["running_var"])


@handles("aten.relu")
def relu(context: Context, node: Node, args: dict[str, Any]) -> Value:
    """A ReLU: closes the record of the convolution before it."""
    return activate(context, node, context.env.get(args["self"]), None)


@handles("aten.relu6")
def relu6(context: Context, node: Node, args: dict[str, Any]) -> Value:
    """A ReLU6: a ReLU whose activation range is the nearest to 0…6."""
    return activate(context, node, context.env.get(args["self"]), 6.0)


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
    return activate(context, node, context.env.get(source), None if high is None else float(high))


def activate(context: Context, node: Node, value: Value | None, top: float | None) -> Value:
    """Ends a record with a ReLU that clips at about `top` σ; a ReLU on what is unsigned already changes nothing."""
    if isinstance(value, Tensor | GlobalMean):
        if isinstance(value, Tensor) and value.index == 0:
            return context.bad(node, "a ReLU on the image itself", "put a convolution and a batch-norm before it")
        return value
    if isinstance(value, MaxOf):
        inner = activate(context, node, value.inner, top)
        if not isinstance(inner, Tensor):
            return inner
        return emit_max_pool(context, value.node, inner, value.kernel, value.stride, value.pad)
    if isinstance(value, Norm | Sum):
        default = context.options.t_residual if isinstance(value, Sum) else context.options.t_out
        t_out = default if top is None else exponent_of(top)
        if isinstance(value, Sum):
            return context.emit_conv(value.norm, t_out, value.skip)
        return context.emit_conv(value, t_out)
    context.tensor(value, node)
    return Bad()


def exponent_of(top: float) -> int:
    """The activation exponent t whose range 0…3·2^t σ is nearest to 0…top (ReLU6: t = 1)."""
    return min(MAX_T, max(0, round(math.log2(top / 3))))


@handles("aten.add")
def add(context: Context, node: Node, args: dict[str, Any]) -> Value:
    """A residual sum: batch-norm output plus an earlier tensor or an option-A shortcut."""
    if args.get("alpha", 1) != 1:
        return context.bad(node, f"alpha = {args['alpha']} has no record", "leave the factor to the batch-norm")
    if not all(isinstance(args[key], Node) for key in ("self", "other")):
        return context.bad(node, "it adds a constant", "leave constants to the batch-norm's bias")
    sides = [context.env.get(args["self"]), context.env.get(args["other"])]
    norms = [value for value in sides if isinstance(value, Norm)]
    if len(norms) == 2:
        return context.bad(
            node,
            "a projection shortcut adds two batch-norm outputs before the ReLU",
            "put a ReLU after the shortcut's batch-norm, or use F.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, p, p))",
        )
    if not norms:
        for value in sides:
            if isinstance(value, Conv | Sum | MaxOf):
                context.tensor(value, node)
                return Bad()
        return context.bad(
            node,
            "neither side is the output of a batch-norm",
            "add the skip between a convolution's batch-norm and its ReLU",
        )
    skip = sides[0] if norms[0] is sides[1] else sides[1]
    if isinstance(skip, Shortcut):
        if skip.step != (2, 2):
            return context.bad(skip.node, f"a shortcut with steps {skip.step} has no record", "use ::2 in both")
        return _sum(context, node, norms[0], skip)
    tensor = context.tensor(skip, node)
    if tensor is None:
        return Bad()
    if tensor.index == 0:
        return context.bad(node, "the image itself cannot be a skip", "start the branch after the first ReLU")
    return _sum(context, node, norms[0], tensor)


def _sum(context: Context, node: Node, norm: Norm, skip: Tensor | Shortcut) -> Value:
    source = skip if isinstance(skip, Tensor) else skip.source
    if norm.conv.source == source:
        return context.bad(
            node,
            "the branch is a single convolution, which reads what is added",
            "let the branch hold two convolutions",
        )
    return Sum(node, norm, skip)


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
