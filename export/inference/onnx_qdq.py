"""ONNX with integer weights: QuantizeLinear and DequantizeLinear around float operators (QDQ), opset 13.

Weights are int8 initialisers with one scale a channel, activations u8; runtimes fuse the pairs into integer kernels. At
8 activation bits the weights are u8 around 128: u8 by s8 products saturate on x86 without VNNI.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedmpq.errors import MissingExtraError
from fedmpq.export.inference.folded import NORMAL_STEP, Folded, Grid, Kind, Skip, Step, Weights

OPSET = 13
IR_VERSION = 8
INPUT, OUTPUT = "images", "logits"


def write(net: Folded, name: str) -> bytes:
    """The ONNX file: `images` u8 [N, C, H, W] in pixels to `logits` float [N, classes].

    Raises:
        MissingExtraError: onnx is not installed.
    """
    try:
        import onnx
    except ImportError:
        raise MissingExtraError("onnx", "export") from None
    model = _Writer(onnx, net).model(name)
    onnx.checker.check_model(model, full_check=True)
    data: bytes = model.SerializeToString()
    return data


class _Writer:
    """Builds the graph; values are named after the records."""

    def __init__(self, onnx: Any, net: Folded) -> None:
        self.onnx, self.net = onnx, net
        self.nodes: list[Any] = []
        self.initialisers: list[Any] = []
        self.count = 0
        self.coarse: dict[int, str] = {}

    def model(self, name: str) -> Any:
        """All of it."""
        net, helper, types = self.net, self.onnx.helper, self.onnx.TensorProto
        height, width, channels = net.program.in_shape
        tensors = [self._image()]  # u8 (the image: float) by tensor
        for step in net.steps:
            tensors.append(self._step(step, tensors))
        graph = helper.make_graph(
            self.nodes,
            name,
            [helper.make_tensor_value_info(INPUT, types.UINT8, ["N", channels, height, width])],
            [helper.make_tensor_value_info(OUTPUT, types.FLOAT, ["N", net.program.classes])],
            self.initialisers,
        )
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", OPSET)], producer_name="fedmpq")
        model.ir_version = IR_VERSION
        return model

    # --- records --------------------------------------------------------------------------------------------------

    def _image(self) -> str:
        """Pixels less the channel mean."""
        pixels = self._node("Cast", [INPUT], to=self.onnx.TensorProto.FLOAT)
        mean = np.array(self.net.program.mean, np.float32).reshape(1, -1, 1, 1)
        return self._node("Sub", [pixels, self._constant(mean, "mean")])

    def _step(self, step: Step, tensors: list[str]) -> str:
        r = step.record
        if r.kind is Kind.CLASSIFIER:
            return self._classifier(step, tensors)
        if r.kind is Kind.CONV:
            out = self._convolution(step, tensors)
            if r.skip_kind is not Skip.NONE:
                out = self._node("Add", [out, self._skip(step, tensors)])
        elif r.kind is Kind.MAX_POOL:
            geometry: dict[str, Any] = {"kernel_shape": [r.kh, r.kw], "strides": [r.stride] * 2, "pads": [r.pad] * 4}
            return self._node("MaxPool", [tensors[r.input]], **geometry)
        elif r.kind is Kind.CONCAT:
            parts = [self._real(tensors[t], self.net.grid(t)) for t in (r.input, r.skip)]
            out = self._node("Concat", parts, axis=1)
        else:
            geometry = {"kernel_shape": [r.kh, r.kw], "strides": [r.stride] * 2, "count_include_pad": 1}
            source = self._real(tensors[r.input], self.net.grid(r.input))
            out = self._node("AveragePool", [source], pads=[r.pad] * 4, **geometry)
        return self._quantised(out, step.grid, r.name)

    def _convolution(self, step: Step, tensors: list[str]) -> str:
        r, weights = step.record, step.weights
        assert weights is not None
        source = tensors[0] if step.reads is None else self._real(self._read(r.input, tensors), step.reads)
        if step.flattens:
            source = self._node("Reshape", [self._channels_last(source), self._shape([0, r.cin, 1, 1])])
        kernel = self._weights(weights, r.name, step.reads, matrix=False)
        bias = self._bias(weights, step.reads, r.name)
        geometry: dict[str, Any] = {"kernel_shape": [r.kh, r.kw], "strides": [r.stride] * 2, "pads": [r.pad] * 4}
        normal = self._node("Conv", [source, kernel, bias], group=r.groups, **geometry)
        rounded = [
            self._constant(np.array(NORMAL_STEP, np.float32), f"{r.name}.normal.scale"),
            self._constant(np.array(0, np.int8), f"{r.name}.normal.zero"),
        ]
        normal = self._node("DequantizeLinear", [self._node("QuantizeLinear", [normal, *rounded]), *rounded])
        gamma, beta = (
            self._constant(values.astype(np.float32).reshape(1, -1, 1, 1), f"{r.name}.{what}")
            for values, what in ((weights.gamma, "gamma"), (weights.beta, "beta"))
        )
        return self._node("Add", [self._node("Mul", [normal, gamma]), beta])

    def _classifier(self, step: Step, tensors: list[str]) -> str:
        r, weights = step.record, step.weights
        assert weights is not None
        assert step.reads is not None
        source = self._real(tensors[r.input], step.reads)
        flat = self._node("Reshape", [self._channels_last(source), self._shape([0, r.cin])])
        matrix = self._weights(weights, r.name, step.reads, matrix=True)
        bias = self._constant(weights.bias.astype(np.float32), f"{r.name}.bias")
        return self._node("Gemm", [flat, matrix, bias], output=OUTPUT, transB=1)

    def _skip(self, step: Step, tensors: list[str]) -> str:
        r = step.record
        value = self._real(tensors[r.skip], self.net.grid(r.skip))
        if r.skip_kind is Skip.IDENTITY:
            return value
        ends, axes = [np.iinfo(np.int64).max] * 2, [2, 3]
        slices = [self._constant(np.array(v, np.int64), "slice") for v in ([0, 0], ends, axes, [2, 2])]
        value = self._node("Slice", [value, *slices])
        behind = r.cout - r.skip_pad_c - self.net.shape(r.skip)[2]
        pads = np.array([0, r.skip_pad_c, 0, 0, 0, behind, 0, 0], np.int64)
        return self._node("Pad", [value, self._constant(pads, "pads")])

    # --- grids ----------------------------------------------------------------------------------------------------

    def _read(self, tensor: int, tensors: list[str]) -> str:
        """The top bits of a tensor; the quarter step breaks ties upwards, as the core rounds."""
        if self.net.act_bits == 8:
            return tensors[tensor]
        if tensor not in self.coarse:
            fine = self.net.grid(tensor)
            top = (1 << self.net.act_bits) - 1
            step = fine.step * 2 ** (8 - self.net.act_bits)
            quarter = self._constant(np.array(fine.step / 4, np.float32), "quarter")
            value = self._node("Add", [self._real(tensors[tensor], fine), quarter])
            coarse = Grid(step, fine.zero >> (8 - self.net.act_bits), top)
            rounded = self._quantised(value, coarse, f"read.{tensor}")
            low, high = (self._constant(np.array(v, np.uint8), "limit") for v in (0, top))
            self.coarse[tensor] = self._node("Clip", [rounded, low, high])
        return self.coarse[tensor]

    def _quantised(self, value: str, grid: Grid, name: str) -> str:
        return self._node("QuantizeLinear", [value, *self._scale(grid.step, grid.zero, name)])

    def _real(self, value: str, grid: Grid) -> str:
        return self._node("DequantizeLinear", [value, *self._scale(grid.step, grid.zero, "act")])

    def _scale(self, step: float, zero: int, name: str) -> list[str]:
        return [
            self._constant(np.array(step, np.float32), f"{name}.scale"),
            self._constant(np.array(zero, np.uint8), f"{name}.zero"),
        ]

    def _weights(self, weights: Weights, name: str, reads: Grid | None, *, matrix: bool) -> str:
        q, scale = weights.int8()
        kind: NDArray[Any] = q.reshape(len(q), -1) if matrix else q.transpose(0, 3, 1, 2)
        zeros: NDArray[Any] = np.zeros(len(q), np.int8)
        if reads is not None and reads.top == 255:
            kind, zeros = (kind.astype(np.int16) + 128).astype(np.uint8), np.full(len(q), 128, np.uint8)
        inputs = [
            self._constant(np.ascontiguousarray(kind), f"{name}.weight"),
            self._constant(scale.astype(np.float32), f"{name}.weight.scale"),
            self._constant(zeros, f"{name}.weight.zero"),
        ]
        return self._node("DequantizeLinear", inputs, axis=0)

    def _bias(self, weights: Weights, reads: Grid | None, name: str) -> str:
        """Float for the image's layer; else int32 in units of the products, as integer kernels want it."""
        if reads is None:
            return self._constant(weights.bias.astype(np.float32), f"{name}.bias")
        scale = weights.int8()[1] * reads.step
        q = np.rint(weights.bias / scale)
        if np.abs(q).max() >= 2**31:  # a channel whose scale is next to nothing: its bias is all there is
            return self._constant(weights.bias.astype(np.float32), f"{name}.bias")
        inputs = [
            self._constant(q.astype(np.int32), f"{name}.bias"),
            self._constant(scale.astype(np.float32), f"{name}.bias.scale"),
            self._constant(np.zeros(len(q), np.int32), f"{name}.bias.zero"),
        ]
        return self._node("DequantizeLinear", inputs, axis=0)

    # --- small parts ----------------------------------------------------------------------------------------------

    def _channels_last(self, value: str) -> str:
        return self._node("Transpose", [value], perm=[0, 2, 3, 1])

    def _shape(self, values: list[int]) -> str:
        return self._constant(np.array(values, np.int64), "shape")

    def _node(self, kind: str, inputs: list[str], *, output: str | None = None, **attributes: Any) -> str:
        self.count += 1
        name = output or f"{kind}_{self.count}"
        self.nodes.append(self.onnx.helper.make_node(kind, inputs, [name], name=f"{kind}_{self.count}", **attributes))
        return name

    def _constant(self, value: NDArray[Any], name: str) -> str:
        self.count += 1
        title = f"{name}_{self.count}"
        self.initialisers.append(self.onnx.numpy_helper.from_array(value, title))
        return title
