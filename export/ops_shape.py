"""Operations that only rename, reshape, subsample or pad; and those that do nothing outside of training."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from torch.fx import Node

from fedmpq.export.lower import Context, handles, map_shape, out_shape
from fedmpq.export.values import Bad, Conv, GlobalMean, Joined, MaxOf, Norm, Padded, Shortcut, Sum, Tensor, Value


@handles(
    "aten.dropout", "aten.feature_dropout", "aten.alpha_dropout", "aten.native_dropout", "aten.clone",
    "aten.contiguous", "aten.alias", "aten.detach", "aten.to", "aten._to_copy", "aten.lift_fresh_copy", "aten.type_as",
)  # fmt: skip
def identity(context: Context, _node: Node, args: dict[str, Any]) -> Value | None:
    """Dropout and copies: the program leaves them out."""
    source = args.get("input", args.get("self"))
    return context.env.get(source) if isinstance(source, Node) else None


@handles("aten.log_softmax", "aten.softmax", "aten._log_softmax", "aten._softmax")
def softmax(context: Context, node: Node, args: dict[str, Any]) -> Value | None:
    """A softmax at the end: the classifier record has its own."""
    value = context.env.get(args["self"])
    if not isinstance(value, Conv | Norm) or any(user.op != "output" for user in context.graph.readers(node)):
        return context.bad(node, "softmax inside the model has no record", "use it only as the last operation")
    return value


@handles("aten.flatten", "aten.view", "aten.reshape", "aten._unsafe_view", "aten.squeeze", "aten.unsqueeze")
def reshape(context: Context, node: Node, args: dict[str, Any]) -> Value | None:
    """Reshaping between a map and its features."""
    value = context.env.get(args["self"])
    shape = out_shape(node)
    before = out_shape(args["self"])
    if shape == before:
        return value
    if isinstance(value, Conv | Norm | Sum | MaxOf | Joined) and any(size != 1 for size in before[2:]):
        value = context.tensor(value, node)
    if isinstance(value, Tensor):
        features = value.shape.elements
        if shape[1:] == (features,):
            return replace(value, flat=True)
        if shape[1:] == (value.shape.c, value.shape.h, value.shape.w):
            return replace(value, flat=False)
    pixel = isinstance(value, GlobalMean) or (
        isinstance(value, Conv | Norm | Sum) and all(size == 1 for size in before[2:])
    )
    if pixel and shape[:2] == before[:2] and all(size == 1 for size in shape[2:]):
        return value
    map_ = map_shape(value) if value is not None else None
    return context.bad(
        node, f"it makes {shape[1:]} of {map_ or before[1:]}", "only a map may be flattened to its features"
    )


@handles("aten.slice")
def slice_(context: Context, node: Node, args: dict[str, Any]) -> Value | None:
    """x[:, :, ::2, ::2], the subsampling of an option-A shortcut; a full slice is nothing."""
    value = context.env.get(args["self"])
    size = out_shape(args["self"])[args["dim"]]
    start, end, step = args["start"] or 0, args["end"], args["step"]
    if start == 0 and step == 1 and (end is None or end >= size):
        return value
    value = _whole(context, value, node)
    subsampling = step == 2 and start == 0 and (end is None or end >= size) and args["dim"] in {2, 3}
    if subsampling and isinstance(value, Tensor | Shortcut) and not _is_image(value):
        shortcut = value if isinstance(value, Shortcut) else Shortcut(node, value, (1, 1))
        h, w = shortcut.step
        return replace(shortcut, step=(h * 2, w) if args["dim"] == 2 else (h, w * 2))
    if isinstance(value, Tensor | Shortcut):
        return context.bad(
            node, "this slice has no record", "x[:, :, ::2, ::2] works as a shortcut; crop images outside of the model"
        )
    context.tensor(value, node)
    return Bad()


@handles("aten.pad", "aten.constant_pad_nd")
def pad(context: Context, node: Node, args: dict[str, Any]) -> Value | None:
    """Zeros around the map (merged into the next convolution) or around the channels (option-A shortcut)."""
    value = context.env.get(args["self"])
    sides = [int(side) for side in args["pad"]]
    sides += [0] * (8 - len(sides))
    if args.get("mode", "constant") != "constant" or args.get("value") not in {None, 0}:
        return context.bad(node, f"padding with {args.get('mode', args.get('value'))}", "pad with zeros")
    if not any(sides):
        return value
    value = _whole(context, value, node)
    left, right, top, bottom, front, back, *batch = sides
    spatial = {left, right, top, bottom}
    if spatial == {0} and not any(batch) and min(front, back) >= 0 and isinstance(value, Tensor | Shortcut):
        shortcut = value if isinstance(value, Shortcut) else Shortcut(node, value, (1, 1))
        return replace(shortcut, front=shortcut.front + front, back=shortcut.back + back)
    if len(spatial) == 1 and left > 0 and not any([front, back, *batch]) and isinstance(value, Tensor | Padded):
        source = value.source if isinstance(value, Padded) else value
        return Padded(node, source, left + (value.pad if isinstance(value, Padded) else 0))
    if isinstance(value, Tensor | Shortcut | Padded):
        return context.bad(node, f"padding {args['pad']} has no record", "pad all four sides alike")
    context.tensor(value, node)
    return Bad()


def _whole(context: Context, value: Value | None, node: Node) -> Value | None:
    """A layer that waits, as the tensor it is without a ReLU."""
    pending = isinstance(value, Conv | Norm | Sum | MaxOf | Joined)
    return context.tensor(value, node) if pending else value


def _is_image(value: Tensor | Shortcut) -> bool:
    return (value if isinstance(value, Tensor) else value.source).index == 0
