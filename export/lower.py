"""From a traced graph to a program: one walk over the nodes, each ATen operation in its own small function.

A handler takes the context, the node and its bound arguments, and returns the value the node stands for
(`values.py`). To support another operation, register a handler in one of the `ops_*` modules; to give advice for one
that stays unsupported, add a line to `advice.py`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, TypeAlias

import torch
from torch.fx import Node

from fedmpq.errors import ModelError
from fedmpq.export.advice import advice
from fedmpq.export.problems import Problems, module_path, op_name
from fedmpq.export.program import (
    MAX_KERNEL,
    MAX_T,
    NO_FLAGS,
    Flag,
    Kind,
    ProgramBuilder,
    Record,
    Shape,
    fit_name,
)
from fedmpq.export.trace import Graph
from fedmpq.export.units import Closed
from fedmpq.export.values import (
    Bad,
    Conv,
    GlobalMean,
    Joined,
    Layer,
    MaxOf,
    Norm,
    Padded,
    Shortcut,
    Sum,
    Tensor,
    Value,
    conv_of,
)

Handler: TypeAlias = "Callable[[Context, Node, dict[str, Any]], Value | None]"

HANDLERS: dict[str, Handler] = {}


def handles(*operations: str) -> Callable[[Handler], Handler]:
    """Registers a handler for ATen operations, for example "aten.relu"; an in-place twin ("aten.relu_") comes along."""

    def register(handler: Handler) -> Handler:
        for operation in operations:
            HANDLERS[operation] = handler
            HANDLERS[operation + "_"] = handler
        return handler

    return register


@dataclass(frozen=True)
class Options:
    """Choices that the graph does not make.

    Attributes:
        t_out: activation exponent of plain ReLU outputs: 0 covers 0…3σ in u8.
        t_residual: activation exponent of residual sums, whose values are larger. Linear outputs, whose range is half
            as wide on either side, have one more.
    """

    t_out: int = 0
    t_residual: int = 1


@dataclass
class Context:
    """State of one walk over a graph."""

    graph: Graph
    builder: ProgramBuilder
    options: Options
    problems: Problems = field(default_factory=Problems)
    closed: list[Closed] = field(default_factory=list)
    env: dict[Node, Value | None] = field(default_factory=dict)
    owners: dict[str, str] = field(default_factory=dict)  # parameter name -> layer that uses it
    emitted: dict[Node, tuple[object, Tensor]] = field(default_factory=dict)  # layer -> how it was closed, its output
    whole: dict[Node, Tensor] = field(default_factory=dict)  # what was read as it is
    pairs: dict[tuple[int, int], Tensor] = field(default_factory=dict)  # concatenations

    def bad(self, node: Node, reason: str, instead: str) -> Bad:
        """Reports `node`; `stand_in` then replaces its value."""
        self.problems.add(node, reason, instead)
        return Bad()

    def stand_in(self, node: Node) -> Tensor | Bad:
        """A tensor of the traced shape in place of what could not be lowered, so that all that follows is checked too.

        It is backed by a record that computes nothing; no program is built once something was reported.
        """
        shape = out_shape(node)
        if len(shape) not in {2, 4}:
            return Bad()
        full = Shape(1, 1, shape[1]) if len(shape) == 2 else Shape(shape[2], shape[3], shape[1])
        self.builder.records.append(Record(Kind.CONV, "", 1, 1, 1, 0, 1, full, full, 0))
        self.builder.shapes.append(full)
        self.builder.exponents.append(0)
        self.builder.linear.append(False)
        return Tensor(self.builder.last, full, flat=len(shape) == 2)

    def parameter(self, argument: object) -> tuple[str, torch.Tensor] | None:
        """Name and value of a parameter, buffer or constant; None if the argument is computed."""
        return self.graph.tensors.get(argument.name) if isinstance(argument, Node) else None

    def claim(self, node: Node, name: str, layer: str) -> bool:
        """Takes a parameter for a layer; reports one that a second layer shares."""
        owner = self.owners.setdefault(name, layer)
        if owner != layer:
            self.bad(node, f"parameter {name} already belongs to {owner}", "give each layer parameters of its own")
        return owner == layer

    def unique(self, name: str) -> str:
        """A record name that fits the format."""
        return fit_name(name, [record.name for record in self.builder.records])

    def tensor(self, value: Value | None, node: Node) -> Tensor | None:
        """The tensor behind a value that `node` reads, or None after reporting why there is none.

        A layer that nothing closes ends here, without a ReLU.
        """
        if isinstance(value, Tensor):
            return value
        if isinstance(value, Conv | Norm | Sum | MaxOf | Joined):
            if value.node not in self.whole:
                made = self.close(value, None, linear=True)
                if not isinstance(made, Tensor):
                    return None
                self.whole[value.node] = made
            return self.whole[value.node]
        if isinstance(value, GlobalMean):
            if value.tensor is None:
                shape = value.source.shape
                name = self.unique(pool_name(value.node))
                index = self.builder.pool(
                    name, Kind.AVG_POOL, (shape.h, shape.w), stride=max(shape.h, shape.w), input=value.source.index
                )
                value.tensor = Tensor(index, self.builder.shapes[index], value.source.flat)
            return value.tensor
        self._explain(value, node)
        return None

    def close(self, value: Value, top: float | None, *, linear: bool = False) -> Value:
        """Ends pending layers with a ReLU that clips at about `top` σ, or as they are."""
        if isinstance(value, MaxOf):
            inner = self.close(value.inner, top, linear=linear)
            if not isinstance(inner, Tensor):
                return inner
            return self.emit_max_pool(value, inner)
        if isinstance(value, Joined):
            return self.emit_concat(value, [self.close(part, top, linear=linear) for part in value.parts])
        if isinstance(value, Sum):
            return self.emit_conv(value.layer, top, value.skip, linear=linear)
        if isinstance(value, Conv | Norm):
            return self.emit_conv(value, top, linear=linear)
        return value

    def emit_conv(
        self, layer: Layer, top: float | None, skip: Tensor | Shortcut | None = None, *, linear: bool = False
    ) -> Tensor | Bad:
        """Writes the record of a convolution with its batch-norm, skip and ReLU, as far as it has them."""
        conv = conv_of(layer)
        if self.problems.reported(conv.node) or self.problems.reported(layer.node):
            return self.stand_in(layer.node)
        t_out = self.options.t_out if skip is None else self.options.t_residual
        t_out = min(MAX_T, t_out + 1) if linear else t_out if top is None else exponent_of(top)
        closing = (layer.node, t_out, skip, linear)
        if conv.node in self.emitted:
            closed, output = self.emitted[conv.node]
            if closed != closing:
                self.bad(layer.node, "its output is used in two ways", "let one ReLU read it and use that one's output")
            return output
        source = self.tensor(conv.source, conv.node)
        if source is None:
            return Bad()
        name = self.unique(conv.name)
        kernel = (conv.weight.shape[2], conv.weight.shape[3])
        # A linear layer over a small map is a convolution as large as the map; over a larger one it flattens.
        flatten = conv.linear and (max(kernel) > MAX_KERNEL or source.index == 0)
        biased = isinstance(layer, Conv)
        added = None if skip is None else (skip.index if isinstance(skip, Tensor) else skip.source.index)
        try:
            index = self.builder.conv(
                name,
                conv.cout,
                1 if flatten else kernel,
                stride=conv.stride,
                pad=conv.pad,
                groups=conv.groups,
                input=source.index,
                skip=added,
                option_a_pad=skip.front if isinstance(skip, Shortcut) else None,
                t_out=t_out,
                flatten=flatten,
                flags=(Flag.LINEAR if linear else NO_FLAGS) | (Flag.BIASED if biased else NO_FLAGS),
            )
        except ModelError as error:
            self.bad(conv.node, error.message, "change the layer's sizes")
            return self.stand_in(layer.node)
        self.closed.append(Closed(name, layer, index, source.index, flatten, top))
        self.emitted[conv.node] = closing, Tensor(index, self.builder.shapes[index])
        return self.emitted[conv.node][1]

    def emit_max_pool(self, pool: MaxOf, tensor: Tensor) -> Tensor | Bad:
        """Writes the record of a max pooling."""
        index = self.builder.pool(
            self.unique(pool_name(pool.node)), Kind.MAX_POOL, pool.kernel, stride=pool.stride, pad=pool.pad,
            input=tensor.index,
        )  # fmt: skip
        return self.pooled(pool.node, index)

    def pooled(self, node: Node, index: int) -> Tensor | Bad:
        """The new tensor, after comparing its size with what torch computed (ceil_mode may differ)."""
        shape = self.builder.shapes[index]
        traced = out_shape(node)
        if traced and traced[-2:] != (shape.h, shape.w):
            return self.bad(node, "its last windows reach past the map", "leave out ceil_mode")
        return Tensor(index, shape)

    def emit_concat(self, joined: Joined, parts: Sequence[Value]) -> Value:
        """Writes the records of a concatenation, one for each tensor after the first; equal beginnings are shared."""
        if any(isinstance(part, Bad) for part in parts):
            return Bad()
        tensors = [self.tensor(part, joined.node) for part in parts]
        if None in tensors:
            return Bad()
        whole = [part for part in tensors if part is not None]
        first = whole[0]
        for part in whole[1:]:
            pair = (first.index, part.index)
            if pair not in self.pairs:
                name = module_path(joined.node)
                try:
                    index = self.builder.concat(self.unique(f"{name}.cat" if name else "cat"), *pair)
                except ModelError as error:
                    return self.bad(joined.node, error.message, "concatenate activations of one map size")
                self.pairs[pair] = Tensor(index, self.builder.shapes[index])
            first = self.pairs[pair]
        return first

    def emit_classifier(self, conv: Conv) -> None:
        """Writes the last record: a linear layer (or 1×1 convolution on one pixel) whose output leaves the model."""
        source = conv.source
        if self.problems.reported(conv.node):
            return
        if conv.node in self.emitted:
            self.bad(conv.node, "its output is used in two ways", "let a Linear of its own give the class scores")
            return
        if isinstance(source, GlobalMean) and source.tensor is None:
            index = self.builder.global_pool(self.unique(pool_name(source.node)), input=source.source.index)
            found: Tensor | None = Tensor(index, self.builder.shapes[index], flat=True)
        else:
            found = self.tensor(source, conv.node)
        if found is None:
            return
        if found.index == 0:
            self.bad(conv.node, "the classifier reads the image itself", "put a hidden layer before it")
            return
        if (
            conv.groups != 1
            or conv.pad
            or tuple(conv.weight.shape[1:]) != (found.shape.c, found.shape.h, found.shape.w)
        ):
            self.bad(
                conv.node,
                f"as the last layer it does not score one pixel of {found.shape}",
                "end in AdaptiveAvgPool2d(1), Flatten and nn.Linear",
            )
            return
        name = self.unique(conv.name)
        try:
            self.builder.classifier(name, conv.cout, input=found.index)
        except ModelError as error:
            self.bad(conv.node, error.message, "change the layer's sizes")
            return
        self.closed.append(Closed(name, conv, self.builder.last, found.index, flatten=True))

    def _explain(self, value: Value | None, reader: Node) -> None:
        """Reports a value that has no tensor."""
        if isinstance(value, Shortcut | Padded):
            self.bad(
                value.node,
                "subsampling and padding work only as an option-A shortcut or as a convolution's padding",
                "use F.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, p, p)) in a sum, or a strided convolution",
            )
        elif not isinstance(value, Bad):
            self.bad(reader, "it reads something that is no activation", "read the output of a layer")


def lower(graph: Graph, builder: ProgramBuilder, options: Options, model: str) -> list[Closed]:
    """Fills `builder` from `graph` and returns each weight layer with where its values come from, in record order.

    Raises:
        UnsupportedOpError: lists every operation that has no place in a program, with source line and advice.
    """
    from fedmpq.export import ops_join, ops_layers, ops_pool, ops_shape  # noqa: F401 - they register the handlers

    context = Context(graph, builder, options)
    context.env[graph.input] = Tensor(0, builder.shapes[0])
    for node in graph.nodes:
        if node.op == "output":
            _finish(context, node)
        elif node in graph.live:
            _visit(context, node)
    _check_in_place(context)
    context.problems.raise_if_any(model)
    return context.closed


def _visit(context: Context, node: Node) -> None:
    inputs = [context.env.get(n) for n in node.all_input_nodes]
    operation = op_name(node)
    handler = HANDLERS.get(operation)
    if node.op != "call_function" or handler is None:
        if _carries_activation(context, node):
            context.bad(node, "no record computes this", advice(operation))
            context.env[node] = context.stand_in(node)
        return
    if any(isinstance(source, Bad) for source in inputs):
        context.env[node] = Bad()
        return
    arguments = bind(node)
    try:
        value = handler(context, node, arguments)
    except ModelError as error:
        value = context.bad(node, error.message, "change its sizes")
    if isinstance(value, Bad):
        value = context.stand_in(node)
    context.env[node] = value


def _carries_activation(context: Context, node: Node) -> bool:
    """Whether a node without handler touches an activation."""
    return any(n in context.env for n in node.all_input_nodes) or not node.all_input_nodes


def _check_in_place(context: Context) -> None:
    """Reports operations in place after which an older name of the tensor is read: the graph does not join the two.

    The result's own readers are fine, as tracing lets the Python variable stand for the result; a view of it stays.
    """
    memory: dict[Node, Node] = {}  # what a view is a view of
    place = {node: position for position, node in enumerate(context.graph.nodes)}
    changed: dict[Node, Node] = {}  # the last operation in place
    for node in context.graph.nodes:
        for source in node.all_input_nodes if node in context.graph.live else ():
            last = changed.get(memory.get(source, source))
            if last is not None and place.get(source, -1) < place[last]:
                context.bad(last, "its result is read through another view", "use the returned tensor")
        schema = getattr(node.target, "_schema", None)
        alias = schema.arguments[0].alias_info if schema is not None and schema.arguments else None
        first = node.args[0] if node.args else None
        if alias is not None and isinstance(first, Node):
            memory[node] = memory.get(first, first)
            if alias.is_write:
                changed[memory[node]] = node


def _finish(context: Context, node: Node) -> None:
    outputs = list(node.all_input_nodes)
    if len(outputs) != 1:
        context.bad(node, f"the model returns {len(outputs)} tensors", "return the class scores only")
        return
    value = context.env.get(outputs[0])
    if isinstance(value, Norm):
        value = folded(value)
    if isinstance(value, Conv):
        context.emit_classifier(value)
    elif not isinstance(value, Bad) and not context.problems.reported(outputs[0]):
        context.bad(
            outputs[0],
            "the model does not end in a linear layer",
            "let forward return the scores of a final nn.Linear(features, classes)",
        )


def bind(node: Node) -> dict[str, Any]:
    """A node's arguments by the names of the operation's schema, defaults filled in."""
    schema = getattr(node.target, "_schema", None)
    if schema is None:
        return dict(enumerate(node.args))  # type: ignore[arg-type]
    bound: dict[str, Any] = {}
    for position, argument in enumerate(schema.arguments):
        if position < len(node.args):
            bound[argument.name] = node.args[position]
        elif argument.name in node.kwargs:
            bound[argument.name] = node.kwargs[argument.name]
        else:
            bound[argument.name] = argument.default_value if argument.has_default_value() else None
    return bound


def out_shape(node: Node) -> tuple[int, ...]:
    """Shape of a node's output as traced, batch first."""
    found = node.meta.get("val")
    return tuple(int(size) for size in found.shape) if isinstance(found, torch.Tensor) else ()


def folded(norm: Norm) -> Conv:
    """A layer with the batch-norm after it multiplied in."""
    factor = norm.gamma / (norm.var + norm.eps).sqrt()
    bias = 0 if norm.conv.bias is None else norm.conv.bias
    weight = norm.conv.weight * factor[:, None, None, None]
    return replace(norm.conv, weight=weight, bias=(bias - norm.mean) * factor + norm.beta)


def unit_layer(node: Node, tensor: Tensor, measured: Node) -> Conv:
    """A depthwise 1×1 convolution of weight 1, for what needs a record and has no convolution of its own.

    `measured` is the node that gave the tensor, `node` the operation that stands alone.
    """
    name = module_path(node)
    weight = torch.ones(tensor.shape.c, 1, 1, 1)
    channels = tensor.shape.c
    return Conv(node, name or node.name, tensor, weight, None, channels, groups=channels, measured=measured)


def exponent_of(top: float) -> int:
    """The activation exponent t whose range 0…3·2^t σ is nearest to 0…top (ReLU6: t = 1)."""
    return min(MAX_T, max(0, round(math.log2(top / 3))))


def map_shape(value: Value) -> Shape | None:
    """Shape of the map a value stands for, pending or not; None for pieces of a shortcut."""
    if isinstance(value, Tensor):
        return value.shape
    if isinstance(value, GlobalMean):
        return Shape(1, 1, value.source.shape.c)
    return None


def pool_name(node: Node) -> str:
    """A pooling record's name: the module's path, or the function's name within its module."""
    path = module_path(node)
    if path and "pool" in path.rsplit(".", 1)[-1]:
        return path
    return f"{path}.{node.name}" if path else node.name
