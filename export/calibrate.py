"""How large the outputs of layers without batch-norm are, measured by running the traced graph on samples."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor
from torch.fx import Node
from torch.fx.node import map_arg

from fedmpq.export.problems import op_name
from fedmpq.export.trace import TRACE_BATCH, Graph

#: Passes of two images each.
PASSES = 8
_NORMS = {"aten.batch_norm", "aten.cudnn_batch_norm", "aten._native_batch_norm_legit_no_training"}


def sizes(graph: Graph, shape: tuple[int, int, int], wanted: Collection[Node], *, trained: bool) -> dict[Node, float]:
    """Root mean square of the outputs of some nodes.

    Args:
        graph: a traced module.
        shape: of an image, channels first.
        wanted: nodes to measure.
        trained: whether batch-norms have statistics; those of an untrained module take the batch's.
    """
    squares = dict.fromkeys(wanted, 0.0)
    with torch.no_grad():
        for images in _samples(shape):
            for node, value in _run(graph, images, trained=trained):
                if node in squares:
                    squares[node] += float(value.double().square().mean())
    return {node: (total / PASSES) ** 0.5 for node, total in squares.items()}


def _samples(shape: tuple[int, int, int]) -> Iterator[Tensor]:
    """Smooth noise of mean 0 and deviation 1, the same at every call."""
    channels, height, width = shape
    generator = torch.Generator().manual_seed(0)
    for _ in range(PASSES):
        rough = torch.randn(TRACE_BATCH, channels, -(-height // 4), -(-width // 4), generator=generator)
        smooth = F.interpolate(rough, (height, width), mode="bilinear")
        yield smooth / smooth.std().clamp(min=1e-6) if smooth.numel() > 1 else smooth


def _run(graph: Graph, images: Tensor, *, trained: bool) -> Iterator[tuple[Node, Tensor]]:
    """Executes the graph; gives each tensor as soon as it is there, as later operations may change it in place."""
    known: dict[str, Any] = {name: tensor.clone() for name, (_, tensor) in graph.tensors.items()}
    known[graph.input.name] = images
    for node in graph.nodes:
        if node.op != "call_function":
            continue
        positional: Any = map_arg(node.args, lambda n: known.get(n.name))
        keywords: Any = map_arg(node.kwargs, lambda n: known.get(n.name))
        if not trained and op_name(node) in _NORMS:
            x, weight, bias = positional[:3]
            value = F.batch_norm(x, None, None, weight, bias, training=x[:, 0].numel() > 1)
        else:
            value = node.target(*positional, **keywords)  # type: ignore[operator]
        known[node.name] = value
        if isinstance(value, Tensor):
            yield node, value
