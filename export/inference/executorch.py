"""A quantised ExecuTorch program for XNNPACK: int8 convolutions with the trained integers, no calibration.

The graph is written with the quantisation operators that PyTorch's own quantiser inserts, with our scales in place of
observed ones, so that the partitioner takes it as it takes any quantised model.
"""

from __future__ import annotations

import contextlib
import importlib
import io
import logging
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn

from fedmpq.errors import MissingExtraError, ModelError
from fedmpq.export.inference.folded import NORMAL_STEP, Folded, Grid, Kind, Skip, Step

_LOW, _HIGH = -128, 127


class QuantisedNet(nn.Module):
    """The network with quantise and dequantise operators; images uint8 or float [N, C, H, W] in pixels to logits."""

    def __init__(self, net: Folded) -> None:
        super().__init__()
        self.net = net
        self.register_buffer("mean", torch.tensor(net.program.mean, dtype=torch.float32)[:, None, None])
        for step in net.steps:
            if step.weights is not None:
                self._register(step)

    def _register(self, step: Step) -> None:
        weights, prefix = step.weights, f"r{step.record.index}_"
        assert weights is not None
        classifier = step.record.kind is Kind.CLASSIFIER
        q, scale = weights.int8()
        if step.reads is None or classifier:  # pixels less their mean and logits are no int8: these layers stay float
            real = torch.from_numpy(weights.real).float()
            real = real.flatten(1) if classifier else real.permute(0, 3, 1, 2).contiguous()
            self.register_buffer(prefix + "weight", real)
        else:
            self.register_buffer(prefix + "weight", torch.from_numpy(q).permute(0, 3, 1, 2).contiguous())
            self.register_buffer(prefix + "scale", torch.from_numpy(scale).float())
            self.register_buffer(prefix + "zero", torch.zeros(len(q), dtype=torch.int64))
        self.register_buffer(prefix + "bias", torch.from_numpy(weights.bias).float())
        if not classifier:
            self.register_buffer(prefix + "gamma", torch.from_numpy(weights.gamma).float()[:, None, None])
            self.register_buffer(prefix + "beta", torch.from_numpy(weights.beta).float()[:, None, None])

    def forward(self, images: Tensor) -> Tensor:
        """Logits of images."""
        values = [images.float() - self.get_buffer("mean")]
        for step in self.net.steps:
            values.append(self._step(step, values))
        return values[-1]

    def _step(self, step: Step, values: list[Tensor]) -> Tensor:
        r = step.record
        x = values[r.input]
        if r.kind is Kind.CLASSIFIER:
            return F.linear(x.permute(0, 2, 3, 1).flatten(1), self._weight(step), self._buffer(step, "bias"))
        if r.kind is Kind.MAX_POOL:
            return F.max_pool2d(x, (r.kh, r.kw), r.stride, r.pad)
        if r.kind is Kind.CONCAT:
            return _grid(torch.cat([x, values[r.skip]], 1), step.grid)
        if r.kind is not Kind.CONV:
            return _grid(F.avg_pool2d(x, (r.kh, r.kw), r.stride, r.pad), step.grid)
        out = self._convolution(step, x)
        if r.skip_kind is Skip.IDENTITY:
            out = out + values[r.skip]
        elif r.skip_kind is Skip.OPTION_A:
            behind = r.cout - r.skip_pad_c - self.net.shape(r.skip)[2]
            half = F.max_pool2d(values[r.skip], 1, 2)  # the runtime has no slices by 2 of maps in channels-last order
            out = out + F.pad(half, (0, 0, 0, 0, r.skip_pad_c, behind))
        return _grid(out, step.grid)

    def _convolution(self, step: Step, x: Tensor) -> Tensor:
        r = step.record
        if step.reads is not None and self.net.act_bits < 8:
            x = _grid(x + self.net.grid(r.input).step / 4, step.reads)
        if step.flattens:
            reads = step.reads or Grid(1.0, 0)
            x = _quantised(x.permute(0, 2, 3, 1).flatten(1)[:, :, None, None], reads.step, reads.zero - 128)
        weight = self._weight(step)
        normal = F.conv2d(x, weight, self._buffer(step, "bias"), r.stride, r.pad, 1, r.groups)
        normal = _quantised(normal, NORMAL_STEP, 0)
        return normal * self._buffer(step, "gamma") + self._buffer(step, "beta")

    def _weight(self, step: Step) -> Tensor:
        weight = self._buffer(step, "weight")
        if weight.dtype != torch.int8:
            return weight
        scale, zero = self._buffer(step, "scale"), self._buffer(step, "zero")
        real: Tensor = torch.ops.quantized_decomposed.dequantize_per_channel.default(
            weight, scale, zero, 0, -127, 127, torch.int8
        )
        return real

    def _buffer(self, step: Step, name: str) -> Tensor:
        return self.get_buffer(f"r{step.record.index}_{name}")


def _grid(x: Tensor, grid: Grid) -> Tensor:
    """Rounds to a grid of u8 values, kept as int8 (128 lower)."""
    if grid.top < 255:
        x = F.hardtanh(x, grid.low, grid.high)
    return _quantised(x, grid.step, grid.zero - 128)


def _quantised(x: Tensor, step: float, zero: int) -> Tensor:
    q = torch.ops.quantized_decomposed.quantize_per_tensor.default(x, step, zero, _LOW, _HIGH, torch.int8)
    real: Tensor = torch.ops.quantized_decomposed.dequantize_per_tensor.default(q, step, zero, _LOW, _HIGH, torch.int8)
    return real


def write(net: Folded, batch: int = 1) -> bytes:
    """The `.pte`: method `forward`, images float [batch, C, H, W] in pixels to logits.

    Raises:
        MissingExtraError: executorch is not installed; ModelError: it could not lower the network.
    """
    try:
        importlib.import_module("executorch.kernels.quantized")  # forms of what XNNPACK leaves to portable kernels
        from executorch.backends.xnnpack.partition.xnnpack_partitioner import XnnpackPartitioner
        from executorch.exir import EdgeCompileConfig, to_edge_transform_and_lower
    except ImportError:
        raise MissingExtraError("executorch", "export") from None
    height, width, channels = net.program.in_shape
    images = (torch.zeros(batch, channels, height, width),)
    try:
        with _quiet(), torch.no_grad():
            exported = torch.export.export(QuantisedNet(net).eval(), images)
            lowered = to_edge_transform_and_lower(
                exported, partitioner=[XnnpackPartitioner()], compile_config=EdgeCompileConfig(_check_ir_validity=False)
            )
            data: bytes = lowered.to_executorch().buffer
    except Exception as error:
        raise ModelError(f"executorch cannot lower the network: {type(error).__name__}: {error}") from error
    return data


def runner(data: bytes) -> Callable[[Tensor], Tensor]:
    """The program in ExecuTorch's own runtime, image batch by image batch."""
    from executorch.extension.pybindings.portable_lib import _load_for_executorch_from_buffer

    importlib.import_module("executorch.kernels.quantized")
    module: Any = _load_for_executorch_from_buffer(data)

    def run(images: Tensor) -> Tensor:
        assert data, "the runtime reads the program's bytes in place: they live as long as this function"
        logits: Tensor = module.forward((images,))[0]
        return logits

    return run


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keeps the compiler's notes out of our output."""
    before = logging.root.manager.disable
    logging.disable(logging.ERROR)
    sink = io.StringIO()
    try:
        with warnings.catch_warnings(), contextlib.redirect_stderr(sink), contextlib.redirect_stdout(sink):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)
