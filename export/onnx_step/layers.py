"""The weight layers of a program as graph inputs and outputs, and what a step keeps of each until its backward pass."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray
from onnx import TensorProto

from fedmpq.export.onnx_step.graph import Graph, Value
from fedmpq.export.onnx_step.normal import Normaliser
from fedmpq.export.onnx_step.numbers import Fx
from fedmpq.export.onnx_step.update import Weights
from fedmpq.models.reference.program import Kind, Record
from fedmpq.models.reference.state import Layer

I8, I16, I32, I64 = TensorProto.INT8, TensorProto.INT16, TensorProto.INT32, TensorProto.INT64

Array: TypeAlias = NDArray[Any]
#: Name within a layer, ONNX type, shape.
Slot: TypeAlias = tuple[str, int, tuple[int, ...]]

_TYPES: dict[int, Any] = {I8: np.int8, I16: np.int16, I32: np.int32, I64: np.int64}


@dataclass
class GraphLayer:
    """One weight layer inside a graph.

    Attributes:
        record: its record.
        bits: magnitude planes.
        guard: guard planes.
        weights: stored q and momentum.
        step: Δ.
        params: gamma and beta, or bias.
        velocity: their momentum; empty for a plan without.
        rm: running mean; None for the classifier.
        rv: running variance; None for the classifier.
        a: what the forward pass multiplied.
        xhat: its normalised output.
        normaliser: how it was normalised.
    """

    record: Record
    bits: int
    guard: int
    weights: Weights
    step: Fx
    params: dict[str, Value]
    velocity: dict[str, Value] = field(default_factory=dict)
    rm: Value | None = None
    rv: Value | None = None
    a: Value | None = None
    xhat: Value | None = None
    normaliser: Normaliser | None = None

    @property
    def top(self) -> int:
        """Largest magnitude of a multiplied weight."""
        return int(2**self.bits - 1)

    @property
    def multiplied(self) -> Value:
        """The weights a convolution multiplies by: without guard planes, rounded."""
        q = self.weights.q
        if not self.guard:
            return q
        magnitude = (q.abs() + (1 << (self.guard - 1))).logical_right(self.guard)
        return q.sign() * magnitude.min(self.top)


def slots(record: Record, *, momentum: bool) -> list[Slot]:
    """The state tensors of a layer, by name within it."""
    rows, channels = (record.cout, record.fan_in), (record.cout,)
    names = ["gamma", "beta"] if record.kind is Kind.CONV else ["bias"]
    found: list[Slot] = [("q", I16, rows), ("step", I64, (2,)), *((name, I32, channels) for name in names)]
    if record.kind is Kind.CONV:
        found += [("rm", I32, channels), ("rv", I64, channels)]
    if momentum:
        found += [("v8", I8, rows), ("ev", I64, (record.cout, 1)), *((f"v_{name}", I32, channels) for name in names)]
    return found


def tensor_name(record: Record, slot: str) -> str:
    """Name of a state tensor in a graph, for example r3.gamma."""
    return f"r{record.index}.{slot}"


def arrays(layer: Layer, *, momentum: bool) -> dict[str, Array]:
    """The state tensors of a layer at the start, by graph name; momentum is zero."""
    given: dict[str, Any] = {"q": layer.q.numpy(), "step": layer.step, "rm": layer.rm.numpy(), "rv": layer.rv.numpy()}
    given |= {name: value.numpy() for name, value in layer.params.items()}
    return {
        tensor_name(layer.record, name): np.array(given.get(name, np.zeros(shape)), _TYPES[kind]).reshape(shape)
        for name, kind, shape in slots(layer.record, momentum=momentum)
    }


def layer_input(graph: Graph, record: Record, bits: int, guard: int, *, momentum: bool) -> GraphLayer:
    """Graph inputs of a layer."""
    made = {
        name: graph.input(tensor_name(record, name), kind, shape)
        for name, kind, shape in slots(record, momentum=momentum)
    }
    limit = int(2**bits - 1) << guard
    weights = Weights(made["q"], made.get("v8"), made.get("ev"), bits + guard, limit, record.cout, record.fan_in)
    step = Fx(made["step"].take(graph.constant(0), 0), made["step"].take(graph.constant(1), 0))
    params: dict[str, Value] = {name: made[name] for name in ("gamma", "beta", "bias") if name in made}
    velocity = {name: made[f"v_{name}"] for name in params if momentum}
    return GraphLayer(record, bits, guard, weights, step, params, velocity, made.get("rm"), made.get("rv"))


def layer_output(graph: Graph, layer: GraphLayer, made: dict[str, Value | None]) -> None:
    """Graph outputs of a layer after a step: the inputs' names with "new." in front."""
    for name, kind, shape in slots(layer.record, momentum=bool(layer.velocity)):
        value = made.get(name)
        if value is not None:
            graph.output(f"new.{tensor_name(layer.record, name)}", value, kind, shape)


def initial(graph: Graph, layers: Sequence[Layer], *, momentum: bool) -> None:
    """Makes `graph` one without inputs whose outputs are the state tensors."""
    for layer in layers:
        known = arrays(layer, momentum=momentum)
        for name, kind, shape in slots(layer.record, momentum=momentum):
            full = tensor_name(layer.record, name)
            graph.output(full, graph.constant(known[full], _TYPES[kind]), kind, shape, typed=True)
