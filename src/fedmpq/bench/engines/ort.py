"""ONNX Runtime training 1.19.2: artifacts generated here from an ONNX export of the model.

Traps: the ONNX version of the export is newer than this runtime reads (the IR version is lowered); the artifact folder
must exist; equal initial values are merged into one parameter; the eval model generated beside a training graph with
batch-norms does not load (it is not used here).
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from fedmpq.bench.job import Job


def prepare(job: Job) -> None:
    """Exports the model to ONNX and generates training artifacts."""
    import onnx
    import torch
    from onnxruntime.training import artifacts

    from fedmpq.bench.engines.pytorch import module, tensors
    from fedmpq.export.ort_training.artifacts import IR_VERSION, OPSET, train_batch_norm

    folder = job.file("")
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "model.onnx"
    images, _ = tensors(job)
    model = module(job).eval()
    with torch.no_grad():  # the exporter merges equal initial values into one parameter: make all of them differ
        for values in (*model.parameters(), *(x for x in model.buffers() if x.is_floating_point())):
            values.add_(torch.rand_like(values), alpha=1e-3)
    torch.onnx.export(
        model, (images,), str(path), dynamo=False, opset_version=OPSET, do_constant_folding=False,
        training=torch.onnx.TrainingMode.PRESERVE, input_names=["images"], output_names=["logits"],
        dynamic_axes={"images": {0: "batch"}, "logits": {0: "batch"}},
    )  # fmt: skip
    graph = onnx.load(str(path))
    graph.ir_version = IR_VERSION
    train_batch_norm(graph)
    trained = [name for name, _ in model.named_parameters()]
    kept = [x.name for x in graph.graph.initializer if x.name not in trained]
    artifacts.generate_artifacts(
        graph, requires_grad=trained, frozen_params=kept, loss=artifacts.LossType.CrossEntropyLoss,
        optimizer=artifacts.OptimType.SGD, artifact_directory=str(folder),
    )  # fmt: skip
    optimizer = onnx.load(str(folder / "optimizer_model.onnx"))
    optimizer.ir_version = IR_VERSION
    onnx.save(optimizer, str(folder / "optimizer_model.onnx"))


class OrtEngine:
    """A training session with its optimiser session."""

    def __init__(self, job: Job) -> None:
        import numpy as np
        import onnxruntime
        from onnxruntime.training.api import CheckpointState, Module, Optimizer

        folder = job.file("")
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = job.threads
        options.inter_op_num_threads = 1
        self.version, self.home, self.folder = onnxruntime.__version__, Path(onnxruntime.__file__).parent, folder
        self.state = CheckpointState.load_checkpoint(str(folder / "checkpoint"))
        self.module = Module(str(folder / "training_model.onnx"), self.state, session_options=options)
        self.optimizer = Optimizer(str(folder / "optimizer_model.onnx"), self.module)
        self.optimizer.set_learning_rate(0.01)
        channels, height, width = job.shape
        pixels = np.frombuffer(job.images(), np.uint8).reshape(job.batch, height, width, channels)
        self.images = np.ascontiguousarray(((pixels.astype(np.float32) - 128) / 64).transpose(0, 3, 1, 2))
        self.labels = np.array(job.labels(), np.int64)

    def details(self) -> dict[str, Any]:
        """Version, files and the runtime's library."""
        library = max((Path(self.home) / "capi").glob("*.so*"), key=lambda file: file.stat().st_size)
        names = ("training_model.onnx", "optimizer_model.onnx", "checkpoint")
        return {
            "version": self.version,
            "files": {name: (self.folder / name).stat().st_size for name in names},
            "runtime": {library.name: library.stat().st_size},
            "model": "fp32",
        }

    def step(self) -> float:
        """Forward, backward, update."""
        self.module.train()
        loss = self.module(self.images, self.labels)
        self.optimizer.step()
        self.module.lazy_reset_grad()
        return float(loss)


def load(job: Job) -> OrtEngine:
    """The sessions and the batch."""
    return OrtEngine(job)
