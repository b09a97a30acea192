"""Sums and concatenations of branches."""

from __future__ import annotations

from typing import Any

from torch.fx import Node

from fedmpq.export.lower import Context, handles, unit_layer
from fedmpq.export.values import (
    Bad,
    Conv,
    GlobalMean,
    Joined,
    Layer,
    Norm,
    Padded,
    Shortcut,
    Sum,
    Tensor,
    Value,
    conv_of,
)


@handles("aten.add")
def add(context: Context, node: Node, args: dict[str, Any]) -> Value:
    """A residual sum: one side becomes the skip of the other's record."""
    if args.get("alpha", 1) != 1:
        return context.bad(node, f"alpha = {args['alpha']} has no record", "leave the factor to the batch-norm")
    if not all(isinstance(args[key], Node) for key in ("self", "other")):
        return context.bad(node, "it adds a constant", "leave constants to the batch-norm's bias")
    if args["self"] is args["other"]:
        return context.bad(node, "it adds a tensor to itself", "leave factors to the batch-norm")
    sides = [(args[key], context.env.get(args[key])) for key in ("self", "other")]
    layers = [(n, value) for n, value in sides if isinstance(value, Conv | Norm) and len(context.graph.readers(n)) == 1]
    # of two branches the deeper one, whose convolution reads the later tensor, carries the sum
    layers.sort(key=lambda side: _reads(side[1]))
    if layers:
        main, layer = layers[-1]
        skip = _skip(context, node, next(value for n, value in sides if n is not main))
        if skip is None:
            return Bad()
        source = skip.source if isinstance(skip, Shortcut) else skip
        if conv_of(layer).source != source:
            return Sum(node, layer, skip)
        tensor = context.tensor(layer, node)  # one convolution beside what it reads: the sum needs a record of its own
    else:
        first, second = sides if not isinstance(sides[0][1], Shortcut) else reversed(sides)
        main, tensor = first[0], context.tensor(first[1], node)
        skip = _skip(context, node, second[1])
    if tensor is None or skip is None:
        return Bad()
    if tensor == skip or tensor.index == 0:
        return context.bad(node, "it adds a tensor to itself or to the image", "add the outputs of two layers")
    return Sum(node, unit_layer(node, tensor, main), skip)


def _reads(layer: Layer) -> int:
    source = conv_of(layer).source
    return source.index if isinstance(source, Tensor) else source.source.index


def _skip(context: Context, node: Node, value: Value | None) -> Tensor | Shortcut | None:
    if isinstance(value, Shortcut):
        if value.step != (2, 2):
            context.bad(value.node, f"a shortcut with steps {value.step} has no record", "use ::2 in both")
            return None
        return value
    tensor = context.tensor(value, node)
    if tensor is not None and tensor.index == 0:
        context.bad(node, "the image itself cannot be a skip", "start the branch after the first layer")
        return None
    return tensor


@handles("aten.cat", "aten.concat", "aten.concatenate")
def cat(context: Context, node: Node, args: dict[str, Any]) -> Value:
    """Channels of several maps, one behind the other."""
    parts = [context.env.get(part) for part in args["tensors"]]
    if args["dim"] not in {1, -3} or any(isinstance(part, Tensor) and part.flat for part in parts):
        return context.bad(
            node, f"it joins along dimension {args['dim']}", "concatenate the channels of maps: torch.cat([a, b], 1)"
        )
    if any(isinstance(part, Shortcut | Padded) for part in parts):
        return context.bad(node, "it joins a subsampled or padded map", "concatenate the outputs of layers")
    ready = [context.tensor(part, node) if isinstance(part, GlobalMean) else part for part in parts]
    if any(part is None or isinstance(part, Bad) for part in ready):
        return Bad()
    return Joined(node, tuple(part for part in ready if part is not None))
