"""The methods of a training program: name, number in the delegate's blob, operator, inputs and output.

Each method is one custom operator without an eager implementation: only the backend computes it. Shapes: B samples of
H×W×C pixels, L weight layers, S bytes of the largest layer's weights section.

| method | inputs | output |
|---|---|---|
| train_step | images u8 [B, H, W, C], labels i64 [B], key i64 [4], rates i64 [5], lasso i64 [L, 2] | i64 [3] |
| evaluate | images, labels | i64 [3] |
| predict | images | logits i32 [B, classes], 1/65536 nat |
| load_planes | layer i64 [1], weights section of one layer u8 [≤ S] | i64 [1]: bytes read |
| read_planes | layer i64 [1] | u8 [S]: weights section, zeros behind it |
| prune | ε in 1/65536, i64 [1] | i64 [L]: bits |
| plan | fields i64 [10 + L], zeros to ask only | i64 [4]: arena, other bytes, limit, batch |

The three sums of train_step and evaluate are loss in 1/65536 nat, correct answers, samples. rates are learning rate
(m, e), weight decay (m, e) and momentum in 1/32768; key is seed, round, client, step (docs/arithmetic.md).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final

import torch

from fedmpq.edge_runtime.core import Program

NAMESPACE: Final = "fedmpq"
#: Plan fields before the bits, in the delegate's order.
PLAN_ORDER: Final = (
    "batch", "micro_batch", "act_bits", "guard", "momentum", "threads", "crop", "flip", "decay_bn", "recompute",
)  # fmt: skip
MAX_BITS: Final = 8
#: Samples that a call of any program takes at least: nothing is planned for them, so it costs nothing.
LEAST_BATCH: Final = 1024
_SECTION_HEAD = 40

_SCHEMAS = {
    "train_step": "(Tensor images, Tensor labels, Tensor key, Tensor rates, Tensor lasso) -> Tensor",
    "evaluate": "(Tensor images, Tensor labels) -> Tensor",
    "predict": "(Tensor images, int classes) -> Tensor",
    "load_planes": "(Tensor layer, Tensor weights) -> Tensor",
    "read_planes": "(Tensor layer, int size) -> Tensor",
    "prune": "(Tensor eps, int layers) -> Tensor",
    "plan": "(Tensor fields) -> Tensor",
}
#: The method's number in a delegate's blob; native/backend.cpp has the same.
NUMBERS: Final = {name: index + 1 for index, name in enumerate(_SCHEMAS)}

_FAKES: dict[str, Callable[..., torch.Tensor]] = {
    "train_step": lambda _images, labels, *_rest: labels.new_empty([3]),
    "evaluate": lambda _images, labels: labels.new_empty([3]),
    "predict": lambda images, classes: images.new_empty([images.shape[0], classes], dtype=torch.int32),
    "load_planes": lambda layer, _weights: layer.new_empty([1]),
    "read_planes": lambda layer, size: layer.new_empty([size], dtype=torch.uint8),
    "prune": lambda eps, layers: eps.new_empty([layers]),
    "plan": lambda fields: fields.new_empty([4]),
}
for _name, _schema in _SCHEMAS.items():
    torch.library.define(f"{NAMESPACE}::{_name}", _schema)
    torch.library.register_fake(f"{NAMESPACE}::{_name}", _FAKES[_name])


class _Call(torch.nn.Module):
    """One operator as a module; `constants` are the arguments that the program fixes."""

    def __init__(self, name: str, constants: tuple[int, ...] = ()) -> None:
        super().__init__()
        self._operator = getattr(getattr(torch.ops, NAMESPACE), name)
        self._constants = constants

    def forward(self, *inputs: torch.Tensor) -> torch.Tensor:
        """The operator on the inputs."""
        result: torch.Tensor = self._operator(*inputs, *self._constants)
        return result


@dataclass(frozen=True)
class Method:
    """A method ready for `torch.export`: module, example inputs and, per input, the dynamic sizes."""

    module: torch.nn.Module
    inputs: tuple[torch.Tensor, ...]
    dynamic: tuple[dict[int, Any] | None, ...]


def section_bytes(program: Program, guard: int) -> int:
    """S: bytes of the largest layer's weights section at 8 bits."""
    planes = 1 + MAX_BITS + guard
    return max(_SECTION_HEAD + (x.theta + 7) // 8 * planes + x.params_bytes for x in program.weight_layers)


def methods(program: Program, guard: int, batch: int) -> dict[str, Method]:
    """All methods of a program.

    Args:
        program: what is trained.
        guard: guard planes that a layer may have.
        batch: the largest number of samples of a call.
    """
    layers, size = len(program.weight_layers), section_bytes(program, guard)
    samples = torch.export.Dim("samples", min=1, max=batch)
    length = torch.export.Dim("length", min=_SECTION_HEAD, max=size)
    pixels = {0: samples}

    def images() -> torch.Tensor:
        return torch.zeros((2, *program.in_shape), dtype=torch.uint8)

    def words(*shape: int) -> torch.Tensor:
        return torch.zeros(shape, dtype=torch.int64)

    blob = torch.zeros(size, dtype=torch.uint8)
    return {
        "train_step": Method(
            _Call("train_step"),
            (images(), words(2), words(4), words(5), words(layers, 2)),
            (pixels, {0: samples}, None, None, None),
        ),
        "evaluate": Method(_Call("evaluate"), (images(), words(2)), (pixels, {0: samples})),
        "predict": Method(_Call("predict", (program.classes,)), (images(),), (pixels,)),
        "load_planes": Method(_Call("load_planes"), (words(1), blob), (None, {0: length})),
        "read_planes": Method(_Call("read_planes", (size,)), (words(1),), (None,)),
        "prune": Method(_Call("prune", (layers,)), (words(1),), (None,)),
        "plan": Method(_Call("plan"), (words(len(PLAN_ORDER) + layers),), (None,)),
    }
