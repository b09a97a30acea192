"""Writes a trained artifact for inference and judges every form, and the core, on the same images."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedmpq.edge_runtime import container, core
from fedmpq.edge_runtime.artifact import Artifact
from fedmpq.edge_runtime.shard import Images
from fedmpq.errors import DataError
from fedmpq.export.build import open_session, plan_of, states_of
from fedmpq.export.inference.folded import Folded, fold

#: Forms in the order in which they are written and printed.
FORMS = ("onnx", "pytorch", "executorch")

Pictures = NDArray[np.uint8]
#: Images u8 [N, C, H, W] to logits [N, classes].
Predict = Callable[[Pictures], NDArray[Any]]


@dataclass(frozen=True)
class Written:
    """One form: its files, and its correct answers on the test images (None: not judged)."""

    form: str
    files: list[Path]
    correct: int | None = None


def deploy(model: Artifact, forms: Sequence[str], stem: Path, title: str, test: Images | None) -> list[Written]:
    """Writes the forms of a model beside each other.

    Args:
        model: the trained artifact.
        forms: of `FORMS`.
        stem: path of the files without suffix: STEM.onnx, STEM.pt and STEM.py, STEM.pte.
        title: of the model, for people.
        test: images to judge them on.

    Raises:
        DataError: the images are not of the model's shape; MissingExtraError; ModelError: see each form.
    """
    if test is not None:
        _check(model, test)
    net = fold(model.program, states_of(model), int(model.plan["act_bits"]))
    return [_FORMS[form](net, stem, title, test) for form in forms]


def core_correct(model: Artifact, test: Images) -> int:
    """Correct answers of the core, with running statistics."""
    _check(model, test)
    plan = plan_of(model)
    session = open_session(core.Program(model.program), plan, states_of(model))
    correct = 0
    for start in range(0, test.count, plan.batch):
        stop = min(start + plan.batch, test.count)
        correct += session.evaluate(test.images(start, stop), test.labels(start, stop)).correct
    return int(correct)


# --- forms --------------------------------------------------------------------------------------------------------


def _onnx(net: Folded, stem: Path, title: str, test: Images | None) -> Written:
    from fedmpq.edge_runtime.ort import engine
    from fedmpq.export.inference import onnx_qdq

    data, file = onnx_qdq.write(net, title), stem.with_name(f"{stem.name}.onnx")
    container.write_atomic(file, data)
    if test is None:
        return Written("onnx", [file])
    session = engine.runtime().InferenceSession(data, providers=["CPUExecutionProvider"])

    def predict(images: Pictures) -> NDArray[Any]:
        logits: NDArray[Any] = session.run(None, {onnx_qdq.INPUT: images})[0]
        return logits

    return Written("onnx", [file], _correct(predict, test, 256))


def _pytorch(net: Folded, stem: Path, title: str, test: Images | None) -> Written:
    import torch

    from fedmpq.export.inference import pytorch

    code = pytorch.source(net, title, stem.name)
    files = [stem.with_name(f"{stem.name}.pt"), stem.with_name(f"{stem.name}.py")]
    container.write_atomic(files[0], pytorch.saved(net))
    container.write_atomic(files[1], code.encode())
    if test is None:
        return Written("pytorch", files)
    module = pytorch.load(code, torch.load(files[0], weights_only=True))

    @torch.no_grad()
    def predict(images: Pictures) -> NDArray[Any]:
        logits: NDArray[Any] = module(torch.from_numpy(images)).numpy()
        return logits

    return Written("pytorch", files, _correct(predict, test, 256))


def _executorch(net: Folded, stem: Path, _title: str, test: Images | None) -> Written:
    import torch

    from fedmpq.export.inference import executorch

    data, file = executorch.write(net), stem.with_name(f"{stem.name}.pte")
    container.write_atomic(file, data)
    if test is None:
        return Written("executorch", [file])
    run = executorch.runner(data)

    def predict(images: Pictures) -> NDArray[Any]:
        logits: NDArray[Any] = run(torch.from_numpy(images).float()).numpy().copy()
        return logits

    return Written("executorch", [file], _correct(predict, test, 1))


_FORMS: dict[str, Callable[[Folded, Path, str, Images | None], Written]] = {
    "onnx": _onnx,
    "pytorch": _pytorch,
    "executorch": _executorch,
}


def _correct(predict: Predict, test: Images, batch: int) -> int:
    height, width, channels = test.shape
    correct = 0
    for start in range(0, test.count, batch):
        stop = min(start + batch, test.count)
        pixels = np.frombuffer(test.images(start, stop), np.uint8).reshape(-1, height, width, channels)
        labels = np.frombuffer(test.labels(start, stop), np.uint16)
        logits = predict(pixels.transpose(0, 3, 1, 2).copy(order="C"))
        correct += int((logits.argmax(axis=1) == labels).sum())
    return correct


def _check(model: Artifact, test: Images) -> None:
    program = core.Program(model.program)
    if tuple(test.shape) != tuple(program.in_shape) or test.classes > program.classes:
        have, want = ("×".join(map(str, shape)) for shape in (test.shape, program.in_shape))
        raise DataError(
            f"the test images are {have} of {test.classes} classes, "
            f"the model takes {want} and {program.classes} classes"
        )
