"""How much of a model the exporter has records for, counted on the traced graph."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

from torch import nn
from torch.fx import Node

from fedmpq.export.lower import Options, lower, out_shape
from fedmpq.export.problems import Problem, UnsupportedOperations, op_name
from fedmpq.export.program import ProgramBuilder
from fedmpq.export.trace import Graph, trace

_WEIGHTED = {"aten.conv2d", "aten.linear"}


@dataclass(frozen=True)
class Coverage:
    """Operations on activations, and what lies in those that have a record.

    Attributes:
        operations: how often each operation occurs, by name.
        missing: how many of them have no record, by name.
        parameters: number of trained parameters.
        missing_parameters: those of operations without record.
        macs: multiplications of one image's forward pass.
        missing_macs: those of operations without record.
        problems: each operation without record, with its source line and what to use instead.
    """

    operations: dict[str, int]
    missing: dict[str, int]
    parameters: int
    missing_parameters: int
    macs: int
    missing_macs: int
    problems: tuple[Problem, ...]


def coverage(module: nn.Module, input_shape: tuple[int, int, int], name: str = "") -> Coverage:
    """Counts what of a module has records.

    Raises:
        ModelError: it cannot be traced.
    """
    title = name or type(module).__name__
    graph = trace(module, input_shape, title)
    channels, height, width = input_shape
    problems: tuple[Problem, ...] = ()
    try:
        lower(graph, ProgramBuilder((height, width, channels)), Options(), title)
    except UnsupportedOperations as error:
        problems = error.problems
    nodes = _activations(graph)
    lost = {problem.node for problem in problems}
    trained = {name for name, _ in module.named_parameters()}
    counted, missing = Counter(map(op_name, nodes)), Counter(op_name(n) for n in nodes if n.name in lost)
    sizes = {node.name: _parameters(graph, node, trained) for node in nodes}
    macs = {node.name: _macs(graph, node) for node in nodes}
    return Coverage(
        dict(sorted(counted.items())),
        dict(sorted(missing.items())),
        sum(sizes.values()),
        sum(size for node, size in sizes.items() if node in lost),
        sum(macs.values()),
        sum(count for node, count in macs.items() if node in lost),
        problems,
    )


def _activations(graph: Graph) -> list[Node]:
    """The operations that depend on the image and that the output depends on."""
    known = {graph.input}
    found: list[Node] = []
    for node in graph.nodes:
        if node.op == "call_function" and node in graph.live and any(n in known for n in node.all_input_nodes):
            known.add(node)
            found.append(node)
    return found


def _parameters(graph: Graph, node: Node, trained: set[str]) -> int:
    held = (graph.tensors[source.name] for source in node.all_input_nodes if source.name in graph.tensors)
    return sum(tensor.numel() for name, tensor in held if name in trained)


def _macs(graph: Graph, node: Node) -> int:
    if op_name(node) not in _WEIGHTED or not isinstance(node.args[1], Node) or node.args[1].name not in graph.tensors:
        return 0
    positions = 1
    for size in out_shape(node)[2:]:
        positions *= size
    return graph.tensors[node.args[1].name][1].numel() * positions
