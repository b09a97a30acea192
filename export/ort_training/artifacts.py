"""A PyTorch module to a bundle (`edge_runtime.ort.bundle`), by way of one ONNX export.

Traps of ONNX Runtime training 1.19.2: it reads ONNX of IR version up to 10, so the version is lowered; the eval model
generated beside a training graph with batch-norms does not load, so it is generated from the graph in evaluation mode;
the exporter merges equal initial values into one parameter, so the module is exported with values that all differ and
the true ones are put into the checkpoint afterwards.
"""

from __future__ import annotations

import contextlib
import copy
import os
import sys
import tempfile
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from fedmpq.edge_runtime.ort import bundle, engine
from fedmpq.errors import MissingExtraError, ModelError
from fedmpq.export.trace import check_scores, check_signature

IR_VERSION = 9
OPSET = 15
_LOGITS = "logits"


def build(
    module: nn.Module,
    in_shape: tuple[int, int, int],
    classes: int,
    *,
    mean: Sequence[int] = (128,),
    crop_pad: int = 0,
    name: str = "",
) -> bytes:
    """The bundle of a module; the module is not changed.

    Args:
        module: a classifier of one image input.
        in_shape: height, width, channels.
        classes: how many the module has to tell apart at least.
        mean: channel mean in pixels, one value or one a channel.
        crop_pad: padding of the random crop in training.
        name: of the model, for people.

    Raises:
        MissingExtraError: ONNX or ONNX Runtime training is not installed.
        ModelError: the module takes several inputs, gives fewer scores than classes, cannot be exported or cannot be
            differentiated.
    """
    height, width, channels = in_shape
    title = name or type(module).__name__
    check_signature(module, title)
    onnx, runtime = _onnx(), engine.runtime()
    graph = _exported(onnx, module, (channels, height, width), title)
    scores = graph.graph.output[0].type.tensor_type.shape.dim[-1].dim_value or classes  # 0: the exporter cannot tell
    check_scores(title, scores, classes)
    trained = [key for key, parameter in module.named_parameters() if parameter.requires_grad]
    known = {x.name for x in graph.graph.initializer}
    missing = [key for key in trained if key not in known]
    if missing:
        raise ModelError(
            f"{title}: the parameter {missing[0]} is not in the exported graph",
            "every parameter must be used in forward, and by one layer only",
        )
    training = copy.deepcopy(graph)
    positions = _positions(module, (channels, height, width))
    statistics = [(output, key, positions.get(key, 0)) for output, key in train_batch_norm(training)]
    with tempfile.TemporaryDirectory(prefix="fedmpq-export-") as folder:
        files = Path(folder)
        _generate(training, trained, files / "train", [_LOGITS, *(output for output, _, _ in statistics)], title)
        _generate(graph, trained, files / "eval", [_LOGITS], title)
        parts = {
            "training": (files / "train" / "training_model.onnx").read_bytes(),
            "eval": (files / "eval" / "eval_model.onnx").read_bytes(),
            "optim": _lowered(onnx, files / "train" / "optimizer_model.onnx"),
            "state": _checkpoint(module, files / "train"),
        }
    means = list(mean) * (channels if len(mean) == 1 else 1)
    manifest = {
        "model": title,
        "engine": runtime.__version__,
        "opset": OPSET,
        "image": [height, width, channels],
        "classes": scores,
        "mean": means,
        "crop_pad": crop_pad,
        "values": [[key, list(value.shape) or [1], key in trained] for key, value in _floats(module)],
        "statistics": [list(entry) for entry in statistics],
    }
    return bundle.pack(manifest, parts)


def flatten(module: nn.Module) -> NDArray[np.float32]:
    """Parameters and running statistics in one vector, in the order of a bundle's manifest."""
    return torch.cat([value.reshape(-1).float() for _, value in _floats(module)]).numpy().copy()


def _floats(module: nn.Module) -> list[tuple[str, torch.Tensor]]:
    return [(key, value.detach()) for key, value in module.state_dict().items() if value.is_floating_point()]


def _onnx() -> Any:
    try:
        import onnx
    except ImportError:
        raise MissingExtraError("onnx", "export") from None
    return onnx


def _exported(onnx: Any, module: nn.Module, image: tuple[int, int, int], name: str) -> Any:
    """The graph in evaluation mode, every parameter an initialiser of its own name."""
    distinct = copy.deepcopy(module).eval()
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for _, value in _floats(distinct):
            value.add_(torch.rand(value.shape, generator=generator), alpha=1e-3)
    images = torch.rand((2, *image), generator=generator)
    try:
        with _quiet(), torch.no_grad(), tempfile.NamedTemporaryFile(suffix=".onnx") as written:
            torch.onnx.export(
                distinct, (images,), written.name, dynamo=False, opset_version=OPSET, do_constant_folding=False,
                training=torch.onnx.TrainingMode.PRESERVE, input_names=["images"], output_names=[_LOGITS],
                dynamic_axes={"images": {0: "batch"}, _LOGITS: {0: "batch"}},
            )  # fmt: skip
            graph = onnx.load(written.name)
    except Exception as error:
        raise ModelError(f"{name} cannot be exported at ONNX opset {OPSET}: {_first_line(error)}") from error
    graph.ir_version = IR_VERSION
    return graph


def train_batch_norm(graph: Any) -> list[tuple[str, str]]:
    """Switches every BatchNormalization of an ONNX model to training: batch statistics, running ones as outputs.

    Returns:
        (output, input) of each running mean and variance: the output is the input's value after the step.
    """
    import onnx

    statistics = []
    for node in graph.graph.node:
        if node.op_type == "BatchNormalization":
            kept = [x for x in node.attribute if x.name != "training_mode"]
            del node.attribute[:]
            node.attribute.extend([*kept, onnx.helper.make_attribute("training_mode", 1)])
            del node.output[1:]
            outputs = [f"{node.output[0]}_mean", f"{node.output[0]}_var"]
            node.output.extend(outputs)
            statistics += list(zip(outputs, node.input[3:5], strict=True))
    return statistics


def _positions(module: nn.Module, image: tuple[int, int, int]) -> dict[str, int]:
    """Values that one image gives to each running variance, by its name."""
    found: dict[str, int] = {}
    probe = copy.deepcopy(module).eval()

    def note(name: str) -> Any:
        def hook(_module: nn.Module, _inputs: Any, output: torch.Tensor) -> None:
            found[f"{name}.running_var"] = output[0, 0].numel()

        return hook

    for name, part in probe.named_modules():
        if isinstance(part, nn.BatchNorm1d | nn.BatchNorm2d):
            part.register_forward_hook(note(name))
    with torch.no_grad():
        probe(torch.zeros(1, *image))
    return found


def _generate(graph: Any, trained: list[str], folder: Path, outputs: list[str], name: str) -> None:
    from onnxruntime.training import artifacts

    folder.mkdir()
    frozen = [x.name for x in graph.graph.initializer if x.name not in trained]
    try:
        with _quiet():
            artifacts.generate_artifacts(
                graph, requires_grad=trained, frozen_params=frozen, loss=artifacts.LossType.CrossEntropyLoss,
                optimizer=artifacts.OptimType.SGD, artifact_directory=str(folder), additional_output_names=outputs,
            )  # fmt: skip
    except Exception as error:
        raise ModelError(
            f"{name}: onnxruntime-training {engine.VERSION} cannot differentiate the model: {_first_line(error)}"
        ) from error


def _lowered(onnx: Any, path: Path) -> bytes:
    """A generated model at an IR version that its own runtime reads."""
    model = onnx.load(str(path))
    model.ir_version = IR_VERSION
    data: bytes = model.SerializeToString()
    return data


def _checkpoint(module: nn.Module, folder: Path) -> bytes:
    """The checkpoint with the module's own values."""
    from onnxruntime.training.api import CheckpointState, Module

    path = folder / "checkpoint"
    state = CheckpointState.load_checkpoint(str(path))
    session = Module(str(folder / "training_model.onnx"), state)  # values are taken by a session, not by a bare state
    for key, value in _floats(module):
        state.parameters[key].data = value.float().reshape(state.parameters[key].data.shape).numpy()
    CheckpointState.save_checkpoint(state, str(path))
    del session
    return path.read_bytes()


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keeps the exporter's warnings and the runtime's log, which goes to file descriptor 2, out of our output."""
    sys.stderr.flush()
    kept = os.dup(2)
    sink = os.open(os.devnull, os.O_WRONLY)
    try:
        os.dup2(sink, 2)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)
        os.close(sink)


def _first_line(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return f"{type(error).__name__}: {lines[0][:200]}" if lines else type(error).__name__
