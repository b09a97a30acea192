"""Training through onnxruntime with the methods of `core.Session`, so that the two can stand in for each other."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from onnx import ModelProto

from fedmpq.edge_runtime import core
from fedmpq.errors import FormatError, MissingExtraError, UsageError
from fedmpq.export.onnx_step.layers import arrays, slots, tensor_name
from fedmpq.export.onnx_step.step import evaluation, initial_state, training_step
from fedmpq.models.reference.program import Record, parse
from fedmpq.models.reference.state import Layer, pack, unpack

Array: TypeAlias = NDArray[Any]


def models(
    program: bytes, plan: core.Plan, states: Sequence[core.LayerState], *, lasso: bool = False
) -> dict[str, ModelProto]:
    """The models `init`, `train` and `eval` of a program, a plan and weights."""
    parsed = parse(program)
    metadata = {"fedmpq": core.version(), "program": parsed.sha256, "plan": json.dumps(asdict(plan), sort_keys=True)}
    layers = [_layer(record, state) for record, state in zip(parsed.weight_layers, states, strict=True)]
    return {
        "init": initial_state(plan, layers, metadata),
        "train": training_step(parsed, plan, metadata, lasso=lasso),
        "eval": evaluation(parsed, plan, metadata),
    }


class OnnxSession:
    """Trains a program with onnxruntime's CPU kernels, to the same bits as the C core.

    Args:
        program: bytes of a training program.
        plan: bits and options; the batch is taken as a whole, bits do not change.
        threads: of onnxruntime; they do not change results.
        lasso: whether steps may ask for the group Lasso.

    Raises:
        MissingExtraError: onnxruntime is not installed.
        ModelError: the plan or program has no ONNX form.
    """

    def __init__(self, program: bytes, plan: core.Plan, *, threads: int = 1, lasso: bool = False) -> None:
        self.program, self.plan, self._lasso = parse(program), plan, lasso
        metadata = {"program": self.program.sha256}
        self._train = _runtime(training_step(self.program, plan, metadata, lasso=lasso), threads)
        self._evaluate = _runtime(evaluation(self.program, plan, metadata), threads)
        self._outputs = [output.name for output in self._train.get_outputs()]
        self._state: dict[str, Array] = {}

    def load(self, index: int, state: core.LayerState) -> None:
        """Sets a weight layer and clears its momentum."""
        record = self.program.weight_layers[index]
        if (state.bits, state.guard) != (self.plan.bits[index], self.plan.guard):
            raise FormatError(
                f"layer {record.name}: {state.bits}+{state.guard} bits, planned are {self.plan.bits[index]}"
            )
        self._state |= arrays(_layer(record, state), momentum=self.plan.momentum)

    def read(self, index: int) -> core.LayerState:
        """A weight layer as it is now."""
        record = self.program.weight_layers[index]
        given = {name: self._tensor(record, name) for name, _, _ in slots(record, momentum=False)}
        empty = torch.zeros(0, dtype=torch.int64)
        mantissa, exponent = (int(value) for value in given["step"])
        layer = unpack(record, _blank(record, self.plan.bits[index], self.plan.guard, (mantissa, exponent)), _CPU)
        layer.q = torch.from_numpy(given["q"].astype(np.int64)).reshape(record.weight_shape)
        layer.params = {name: torch.from_numpy(given[name].astype(np.int64)) for name in layer.params}
        layer.rm = torch.from_numpy(given["rm"].astype(np.int64)) if "rm" in given else empty
        layer.rv = torch.from_numpy(given["rv"].astype(np.int64)) if "rv" in given else empty
        state = pack(layer)
        return core.LayerState(state.bits, state.guard, (mantissa, exponent), state.planes, state.params)

    def step(self, images: Any, labels: Any, hyper: core.Hyper, key: Sequence[int]) -> core.Stats:
        """One training step; see `core.Session.step`."""
        feeds = self._batch(images, labels) | self._state
        feeds |= {"key": np.array(key, np.int64), "lr": np.array(hyper.lr), "decay": np.array(hyper.weight_decay)}
        if self.plan.momentum:
            feeds["momentum"] = np.array(hyper.momentum_q15)
        if hyper.lasso and not self._lasso:
            raise UsageError("this ONNX session was built without the Lasso", "pass lasso=True")
        if self._lasso:
            feeds["lasso"] = np.array(hyper.lasso or [(0, 0)] * len(self.plan.bits))
        done = dict(zip(self._outputs, self._train.run(None, feeds), strict=True))
        self._state |= {name[4:]: value for name, value in done.items() if name.startswith("new.")}
        return core.Stats(int(done["loss_q16"]), int(done["correct"]), len(feeds["labels"]))

    def evaluate(self, images: Any, labels: Any) -> core.Stats:
        """Loss and accuracy with the running statistics."""
        feeds = self._batch(images, labels)
        loss, correct, _ = self._evaluate.run(None, feeds | self._evaluated())
        return core.Stats(int(loss), int(correct), len(feeds["labels"]))

    def predict(self, images: Any) -> list[list[int]]:
        """Logits of each image, in 1/65536 nat."""
        count = memoryview(images).nbytes // int(np.prod(self.program.in_shape))
        feeds = self._batch(images, np.zeros(count, np.uint16))
        logits: list[list[int]] = self._evaluate.run(["logits"], feeds | self._evaluated())[0].tolist()
        return logits

    def state_hash(self) -> str:
        """SHA-256 over all layers' planes and parameters, in order."""
        digest = hashlib.sha256()
        for index in range(len(self.program.weight_layers)):
            state = self.read(index)
            for part in (*state.planes, state.params):
                digest.update(part)
        return digest.hexdigest()

    def _tensor(self, record: Record, slot: str) -> Array:
        name = tensor_name(record, slot)
        if name not in self._state:
            raise UsageError(f"layer {record.name} has not been loaded")
        return self._state[name]

    def _evaluated(self) -> dict[str, Array]:
        return {value.name: self._state[value.name] for value in self._evaluate.get_inputs() if "." in value.name}

    def _batch(self, images: Any, labels: Any) -> dict[str, Array]:
        height, width, channels = self.program.in_shape
        return {
            "images": np.frombuffer(images, np.uint8).reshape(-1, height, width, channels),
            "labels": np.frombuffer(labels, np.uint16),
        }


_CPU = torch.device("cpu")


def _layer(record: Record, state: core.LayerState) -> Layer:
    return unpack(record, state, _CPU)


def _blank(record: Record, bits: int, guard: int, step: tuple[int, int]) -> core.LayerState:
    """A layer of zeros to be filled in."""
    size = (record.cout * record.fan_in + 7) // 8
    params = record.cout * (20 if len(slots(record, momentum=False)) > 3 else 4)
    return core.LayerState(bits, guard, step, (bytes(size),) * (1 + bits + guard), bytes(params))


def _runtime(model: ModelProto, threads: int) -> Any:
    try:
        import onnxruntime
    except ModuleNotFoundError:
        raise MissingExtraError("onnxruntime", "export") from None
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    return onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
