"""ExecuTorch 1.5.1 training, portable kernels, fp32. It cannot train batch-norm: the model goes without."""

from __future__ import annotations

import json
from typing import Any

from fedmpq.bench.job import Job


def prepare(job: Job) -> None:
    """Exports forward and backward of the model without batch-norms."""
    import torch
    from executorch.exir import EdgeCompileConfig, to_edge
    from torch.export import export
    from torch.export.experimental import _export_forward_backward

    from fedmpq.bench.engines.pytorch import module, tensors

    class WithLoss(torch.nn.Module):
        def __init__(self, net: torch.nn.Module) -> None:
            super().__init__()
            self.net, self.criterion = net, torch.nn.CrossEntropyLoss()

        def forward(self, images: torch.Tensor, labels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
            out = self.net(images)
            return self.criterion(out, labels), out.detach().argmax(dim=1)

    net = module(job)
    without_batch_norm(net)
    joint = _export_forward_backward(export(WithLoss(net), tensors(job), strict=True))
    lowered = to_edge(joint, compile_config=EdgeCompileConfig(_check_ir_validity=False)).to_executorch()
    job.file(".pte").write_bytes(lowered.buffer)
    sizes = lowered.executorch_program.execution_plan[0].non_const_buffer_sizes
    job.file(".json").write_text(json.dumps({"planned_bytes": int(sum(sizes))}))


def without_batch_norm(net: Any) -> None:
    """Replaces every batch-norm by nothing, in place."""
    import torch

    for name, child in list(net.named_children()):
        if isinstance(child, torch.nn.BatchNorm2d):
            setattr(net, name, torch.nn.Identity())
        else:
            without_batch_norm(child)


class ExecutorchEngine:
    """A training module with its SGD."""

    def __init__(self, job: Job) -> None:
        from importlib.metadata import version

        from executorch.extension.training import (
            _load_for_executorch_for_training_from_buffer,
            get_sgd_optimizer,
        )

        from fedmpq.bench.engines.pytorch import tensors

        self.version = version("executorch")
        self.planned = json.loads(job.file(".json").read_text())["planned_bytes"]
        self.batch = tensors(job)
        self.module = _load_for_executorch_for_training_from_buffer(job.file(".pte").read_bytes())
        self.make_optimizer = lambda: get_sgd_optimizer(self.module.named_parameters(), 1e-6, 0.9 if job.momentum else 0)
        self.optimizer: Any = None

    def details(self) -> dict[str, Any]:
        """Version and planned bytes."""
        return {"version": self.version, "planned_bytes": self.planned, "model": "fp32, without batch-norm"}

    def step(self) -> float:
        """Forward, backward, update."""
        outputs = self.module.forward_backward("forward", self.batch)
        if self.optimizer is None:  # parameters exist after the first call
            self.optimizer = self.make_optimizer()
        self.optimizer.step(self.module.named_gradients())
        return float(outputs[0])


def load(job: Job) -> ExecutorchEngine:
    """The module and the batch."""
    return ExecutorchEngine(job)
