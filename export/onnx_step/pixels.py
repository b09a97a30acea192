"""The image: minus channel mean, cropped and mirrored (section 4)."""

from __future__ import annotations

from fedmpq.export.onnx_step.graph import Value
from fedmpq.export.onnx_step.numbers import words
from fedmpq.models.reference.program import Program


def centred(images: Value, program: Program) -> Value:
    """Pixels minus mean [B, h·w, c], −255…255."""
    height, width, channels = program.in_shape
    mean = images.graph.constant(list(program.mean))
    return images.reshape([-1, height * width, channels]) - mean


def cropped(x: Value, program: Program, key: tuple[Value, Value], batch: Value, *, crop: bool, flip: bool) -> Value:
    """Each sample shifted by −pad…pad and mirrored as its random word says; outside is 0. x [B, h·w, c]."""
    if not crop and not flip:
        return x
    graph = x.graph
    height, width, channels = program.in_shape
    pad, span = program.crop_pad, 2 * program.crop_pad + 1
    r = words(key, batch)
    ys, xs = graph.constant(list(range(height))), graph.constant(list(range(width)))
    column = r.reshape([-1, 1])
    if flip:
        xs = column.logical_right(31).equals(1).where(graph.constant(list(range(width))[::-1]), xs)
    else:
        xs = xs + column * 0
    ys = ys + column * 0
    if crop:
        ys = ys + ((column & 0xFFFF) * span).logical_right(16) - pad
        xs = xs + ((column.logical_right(16) & 0x7FFF) * span).logical_right(15) - pad
    ys, xs = ys.reshape([-1, height, 1]), xs.reshape([-1, 1, width])
    inside = (ys >= 0).both(ys < height).both((xs >= 0).both(xs < width))
    place = inside.where(ys * width + xs, height * width)
    sample = graph.op("Range", [graph.constant(0), batch, graph.constant(1)]).reshape([-1, 1, 1])
    rows = graph.op("Pad", [x, graph.constant([0, 0, 0, 0, 1, 0]), graph.constant(0)]).reshape([-1, channels])
    flat = (place + sample * (height * width + 1)).reshape([-1])
    return rows.take(flat, 0).reshape([-1, height * width, channels])
