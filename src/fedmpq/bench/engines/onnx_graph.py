"""The integer training step as a graph of standard operators, in onnxruntime."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from fedmpq.bench.engines import integer
from fedmpq.bench.job import Job
from fedmpq.edge_runtime import artifact

_GRAPHS = ("train", "eval", "init")


def prepare(job: Job) -> None:
    """Compiles the model and writes its graphs."""
    from fedmpq.export.build import plan_of, states_of
    from fedmpq.export.onnx_step.session import models

    integer.prepare(job)
    held = artifact.read(job.file(".fmpq"))
    for name, graph in models(held.program, plan_of(held), states_of(held)).items():
        job.file(f".{name}.onnx").write_bytes(graph.SerializeToString())


class OnnxEngine(integer.IntegerEngine):
    """A session of onnxruntime."""

    def __init__(self, job: Job) -> None:
        from fedmpq.export.onnx_step.engine import OnnxDeviceSession

        super().__init__(job, OnnxDeviceSession)

    def details(self) -> dict[str, Any]:
        """Version, files and the runtime's library."""
        import onnxruntime

        library = max((Path(onnxruntime.__file__).parent / "capi").glob("*.so*"), key=lambda file: file.stat().st_size)
        return {
            "version": onnxruntime.__version__,
            "files": integer.sizes(*(self.job.file(f".{name}.onnx") for name in _GRAPHS)),
            "runtime": integer.sizes(library),
            "model": "the same step as a graph of standard integer operators",
        }


def load(job: Job) -> OnnxEngine:
    """A session with the artifact's weights."""
    return OnnxEngine(job)
