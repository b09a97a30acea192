"""The integer core as the delegate of a `.pte`, driven by ExecuTorch's Python runtime."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from fedmpq.bench.engines import integer
from fedmpq.bench.job import Job
from fedmpq.edge_runtime import artifact, core


def prepare(job: Job) -> None:
    """Compiles the model, lowers it and builds the backend."""
    from fedmpq.export.executorch import library, lowering

    integer.prepare(job)
    job.file(".pte").write_bytes(lowering.build(artifact.read(job.file(".fmpq"))))
    library.library()


class DelegateEngine(integer.IntegerEngine):
    """A session of the delegate."""

    def __init__(self, job: Job) -> None:
        from fedmpq.export.executorch.session import ExecutorchSession

        data = job.file(".pte").read_bytes()

        def opened(_: core.Program, plan: core.Plan) -> ExecutorchSession:
            return ExecutorchSession(data, plan)

        super().__init__(job, opened)

    def details(self) -> dict[str, Any]:
        """What the delegate says of itself."""
        from importlib.metadata import version

        from fedmpq.export.executorch import library

        runtime = library.runtime() / "lib" / "libexecutorch.so"
        return {
            **super().details(),
            "version": version("executorch"),
            "files": integer.sizes(self.job.file(".pte")),
            "runtime": {"backend": library.build().stat().st_size, **integer.sizes(Path(runtime))},
            "delegate": self.session.figures(),
            "model": "the same step as an ExecuTorch delegate",
        }


def load(job: Job) -> DelegateEngine:
    """A session with the artifact's weights."""
    return DelegateEngine(job)
