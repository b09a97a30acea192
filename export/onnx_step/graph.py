"""A small language for integer ONNX graphs: values with Python's operators, each one node."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, TypeAlias, cast

import numpy as np
from numpy.typing import NDArray
from onnx import ModelProto, NodeProto, TensorProto, ValueInfoProto, helper, numpy_helper

from fedmpq.export.onnx_step import IR_VERSION, OPSET

INT64, UINT64, UINT8, INT32 = TensorProto.INT64, TensorProto.UINT64, TensorProto.UINT8, TensorProto.INT32
_SIGN = 1 << 63

Operand: TypeAlias = "Value | int"


@dataclass
class Graph:
    """Nodes, constants, inputs and outputs of one model; every value is int64 unless its maker says otherwise."""

    nodes: list[NodeProto] = field(default_factory=list)
    initializers: list[TensorProto] = field(default_factory=list)
    inputs: list[ValueInfoProto] = field(default_factory=list)
    outputs: list[ValueInfoProto] = field(default_factory=list)
    _made: dict[tuple[str, ...], Value] = field(default_factory=dict)
    _known: dict[tuple[str, tuple[int, ...], bytes], Value] = field(default_factory=dict)

    def op(self, kind: str, inputs: Sequence[Value | None], **attributes: Any) -> Value:
        """One node with one output; the same operation on the same inputs is made once."""
        names = [value.name if value is not None else "" for value in inputs]
        key = (kind, *names, repr(sorted(attributes.items())))
        if key not in self._made:
            name = f"{kind.lower()}_{len(self.nodes)}"
            self.nodes.append(helper.make_node(kind, names, [name], name, **attributes))
            self._made[key] = Value(self, name)
        return self._made[key]

    def constant(self, value: Any, dtype: Any = np.int64) -> Value:
        """A constant tensor; equal ones are stored once."""
        array: NDArray[Any] = np.ascontiguousarray(np.asarray(value, dtype=dtype)).reshape(np.shape(value))
        key = (array.dtype.str, array.shape, array.tobytes())
        if key not in self._known:
            name = f"c{len(self._known)}"
            self.initializers.append(numpy_helper.from_array(array, name))
            self._known[key] = Value(self, name)
        return self._known[key]

    def input(self, name: str, dtype: int, shape: Sequence[int | str]) -> Value:
        """A graph input, as int64."""
        self.inputs.append(helper.make_tensor_value_info(name, dtype, list(shape)))
        raw = Value(self, name)
        return raw if dtype == INT64 else raw.cast(INT64)

    def output(self, name: str, value: Value, dtype: int, shape: Sequence[int | str], *, typed: bool = False) -> None:
        """A graph output; an int64 value becomes `dtype`, one that is `typed` has it already."""
        final = value if dtype == INT64 or typed else value.cast(dtype)
        self.nodes.append(helper.make_node("Identity", [final.name], [name], f"out_{name}"))
        self.outputs.append(helper.make_tensor_value_info(name, dtype, list(shape)))

    def model(self, name: str, metadata: dict[str, str]) -> ModelProto:
        """The finished model."""
        graph = helper.make_graph(self.nodes, name, self.inputs, self.outputs, self.initializers)
        model = helper.make_model(
            graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=IR_VERSION, producer_name="fedmpq"
        )
        helper.set_model_props(model, metadata)
        return cast("ModelProto", model)


@dataclass(frozen=True, eq=False)
class Value:
    """The output of a node, or a constant or input."""

    graph: Graph
    name: str

    def _other(self, other: Operand) -> Value:
        return other if isinstance(other, Value) else self.graph.constant(other)

    def _binary(self, kind: str, other: Operand) -> Value:
        return self.graph.op(kind, [self, self._other(other)])

    def __add__(self, other: Operand) -> Value:
        return self if isinstance(other, int) and other == 0 else self._binary("Add", other)

    def __sub__(self, other: Operand) -> Value:
        return self._binary("Sub", other)

    def __rsub__(self, other: int) -> Value:
        return self.graph.op("Sub", [self._other(other), self])

    def __mul__(self, other: Operand) -> Value:
        return self if isinstance(other, int) and other == 1 else self._binary("Mul", other)

    def __neg__(self) -> Value:
        return self.graph.op("Neg", [self])

    def __and__(self, other: Operand) -> Value:
        return self._binary("BitwiseAnd", other)

    def __xor__(self, other: Operand) -> Value:
        return self._binary("BitwiseXor", other)

    def __gt__(self, other: Operand) -> Value:
        return self._binary("Greater", other)

    def __ge__(self, other: Operand) -> Value:
        return self._binary("GreaterOrEqual", other)

    def __lt__(self, other: Operand) -> Value:
        return self._binary("Less", other)

    def __le__(self, other: Operand) -> Value:
        return self._binary("LessOrEqual", other)

    def equals(self, other: Operand) -> Value:
        """Elementwise equality (bool)."""
        return self._binary("Equal", other)

    def both(self, other: Value) -> Value:
        """Logical and of two bool values."""
        return self._binary("And", other)

    def divided(self, other: Operand) -> Value:
        """Quotient of non-negative values, truncated."""
        return self._binary("Div", other)

    def floordiv(self, divisor: Operand) -> Value:
        """Quotient rounded down, for a positive divisor (Div truncates, Mod takes the divisor's sign)."""
        d = self._other(divisor)
        return (self - self._binary("Mod", d)).divided(d)

    def abs(self) -> Value:
        """Magnitude."""
        return self.graph.op("Abs", [self])

    def sign(self) -> Value:
        """−1, 0 or 1."""
        return self.graph.op("Sign", [self])

    def max(self, other: Operand) -> Value:
        """Elementwise maximum."""
        return self._binary("Max", other)

    def min(self, other: Operand) -> Value:
        """Elementwise minimum."""
        return self._binary("Min", other)

    def clamp(self, low: int, high: int) -> Value:
        """Limits to low…high."""
        return self.graph.op("Clip", [self, self._other(low), self._other(high)])

    def where(self, yes: Operand, no: Operand) -> Value:
        """`yes` where this bool value holds, else `no`."""
        return self.graph.op("Where", [self, self._other(yes), self._other(no)])

    def cast(self, dtype: int) -> Value:
        """Another type; integers wrap."""
        return self.graph.op("Cast", [self], to=dtype)

    def count(self) -> Value:
        """A bool value as 0 and 1."""
        return self.cast(INT64)

    def __rshift__(self, amount: int) -> Value:
        """Arithmetic shift right by a constant (floor), for any int64."""
        if amount == 0:
            return self
        graph = self.graph
        lifted = graph.op("BitwiseXor", [self.cast(UINT64), graph.constant(_SIGN, np.uint64)])
        return lifted.unsigned_right(graph.constant(amount, np.uint64)).cast(INT64) - (1 << (63 - amount))

    def logical_right(self, amount: int) -> Value:
        """Shift right of a non-negative value by a constant: two nodes fewer."""
        return self.cast(UINT64).unsigned_right(self.graph.constant(amount, np.uint64)).cast(INT64)

    def unsigned_right(self, amount: Value) -> Value:
        """BitShift of uint64 values."""
        return self.graph.op("BitShift", [self, amount], direction="RIGHT")

    def sar(self, amount: Value) -> Value:
        """Arithmetic shift right by a computed amount of 0…62."""
        graph = self.graph
        shift = amount.max(1).cast(UINT64)
        sign = graph.constant(_SIGN, np.uint64)
        lifted = graph.op("BitwiseXor", [self.cast(UINT64), sign]).unsigned_right(shift).cast(INT64)
        return amount.equals(0).where(self, lifted - sign.unsigned_right(shift).cast(INT64))

    def sum(self, axes: Sequence[int], keep: bool = False) -> Value:
        """Sum over axes."""
        return self.graph.op("ReduceSum", [self, self.graph.constant(list(axes))], keepdims=int(keep))

    def largest(self, axes: Sequence[int] | None = None, keep: bool = False) -> Value:
        """Maximum over axes, or over all of them."""
        chosen = None if axes is None else self.graph.constant(list(axes))
        return self.graph.op("ReduceMax", [self, chosen], keepdims=int(keep))

    def reshape(self, shape: Sequence[int]) -> Value:
        """Another shape; 0 keeps a size, −1 takes what is left."""
        return self.graph.op("Reshape", [self, self.graph.constant(list(shape))])

    def transpose(self, order: Sequence[int]) -> Value:
        """Another order of axes."""
        return self.graph.op("Transpose", [self], perm=list(order))

    def take(self, indices: Value, axis: int) -> Value:
        """Gather along an axis."""
        return self.graph.op("Gather", [self, indices], axis=axis)

    def part(self, start: int, stop: int, axis: int, step: int = 1) -> Value:
        """A slice along an axis."""
        constants = [self.graph.constant([number]) for number in (start, stop, axis, step)]
        return self.graph.op("Slice", [self, *constants])

    def matmul(self, other: Value) -> Value:
        """Matrix product in the operands' type."""
        return self._binary("MatMul", other)
