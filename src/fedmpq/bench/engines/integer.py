"""The integer core."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from fedmpq.bench.job import Job
from fedmpq.edge_runtime import artifact, core, native

#: λ of the group Lasso, shared out over layers by their weights.
_LASSO = 1e-3


def prepare(job: Job) -> None:
    """Compiles the model and writes an artifact."""
    import torch

    from fedmpq.export import budget, build, from_module, resolve

    torch.manual_seed(job.seed)
    module = resolve(job.model, num_classes=job.classes, in_channels=job.shape[0])
    crop = min(16, min(job.shape[1:]) // 8)
    model = from_module(module, job.shape, mean=[128], crop_pad=crop, name=job.model)
    thetas = [layer.theta for layer in core.Program(model.program).weight_layers]
    bits = budget.bits_for(job.bits, thetas)
    plan = core.Plan(bits, job.batch, act_bits=job.act_bits, momentum=job.momentum, flip=job.shape[0] >= 3)
    artifact.write(job.file(".fmpq"), build.build_artifact(model, plan))


class IntegerEngine:
    """A session of the core, or one that stands in for it."""

    def __init__(self, job: Job, opened: Callable[[core.Program, core.Plan], Any] = core.Session) -> None:
        held = artifact.read(job.file(".fmpq"))
        settings = {**held.plan, "bits": tuple(held.plan["bits"]), "threads": job.threads, **job.extra}
        self.job, self.program = job, core.Program(held.program)
        self.session = opened(self.program, core.Plan(**settings))
        for index, layer in enumerate(held.layers):
            state = core.LayerState(layer.bits, layer.guard, layer.step, layer.planes, layer.params)
            self.session.load(index, state)
        del held
        self.images, self.labels = job.images(), job.labels()
        total = sum(layer.theta for layer in self.program.weight_layers)
        shares = tuple(core.fx(_LASSO * layer.theta / total) for layer in self.program.weight_layers)
        lasso = shares if job.lasso else ()
        self.hyper = core.Hyper(core.fx(0.01), core.fx(5e-4), lasso=lasso)
        self.steps = 0

    def details(self) -> dict[str, Any]:
        """What the core says of itself."""
        return {
            "version": core.version(),
            "isa": core.isa(),
            "planned_bytes": self.session.planned_bytes,
            "measured_bytes": self.session.measured_bytes,
            "files": sizes(self.job.file(".fmpq")),
            "runtime": sizes(Path(native.library()._name)),
            "model": f"{self.job.bits:g} bits, {self.job.act_bits}-bit activations, crop and flip in the step",
        }

    def step(self) -> float:
        """Forward, backward, update; with Lasso also the densities, which a device needs only once in a round."""
        stats = self.session.step(self.images, self.labels, self.hyper, (self.job.seed, 1, 0, self.steps))
        self.steps += 1
        if self.job.lasso:
            for index in range(len(self.program.weight_layers)):
                self.session.set_count(index)
        return float(stats.loss_q16 / 65536 / stats.count)


def sizes(*files: Path) -> dict[str, int]:
    """Bytes of files, by name."""
    return {file.name: file.stat().st_size for file in files}


def load(job: Job) -> IntegerEngine:
    """A session with the artifact's weights."""
    return IntegerEngine(job)
