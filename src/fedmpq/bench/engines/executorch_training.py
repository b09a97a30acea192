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
    crop_by_slices(joint.graph_module)
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


def crop_by_slices(graph: Any) -> None:
    """Writes paddings by negative amounts (the gradient of a padding) as slices: the runtime refuses them."""
    import torch

    pad, cut = torch.ops.aten.constant_pad_nd.default, torch.ops.aten.slice.Tensor
    for node in list(graph.graph.nodes):
        if node.op != "call_function" or node.target is not pad or not any(amount < 0 for amount in node.args[1]):
            continue
        source, amounts = node.args[0], node.args[1]
        value, sizes = source, list(source.meta["val"].shape)
        with graph.graph.inserting_before(node):
            for axis in range(len(amounts) // 2):
                front, back = amounts[2 * axis], amounts[2 * axis + 1]
                dim = len(sizes) - 1 - axis
                if front == back == 0:
                    continue
                if front > 0 or back > 0:
                    raise ValueError(f"{node.name} pads and crops at once: {amounts}")
                before = value.meta["val"]
                value = graph.graph.call_function(cut, (value, dim, -front, sizes[dim] + back))
                value.meta = {**node.meta, "val": before[(slice(None),) * dim + (slice(-front, sizes[dim] + back),)]}
        node.replace_all_uses_with(value)
        graph.graph.erase_node(node)
    graph.recompile()


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
        self.buffer = job.file(".pte").read_bytes()  # the module reads it in place
        self.module = _load_for_executorch_for_training_from_buffer(self.buffer)
        self.momentum = 0.9 if job.momentum else 0
        self.get_optimizer: Any = get_sgd_optimizer
        self.optimizer: Any = None

    def details(self) -> dict[str, Any]:
        """Version and planned bytes."""
        return {"version": self.version, "planned_bytes": self.planned, "model": "fp32, without batch-norm"}

    def step(self) -> float:
        """Forward, backward, update."""
        outputs = self.module.forward_backward("forward", self.batch)
        if self.optimizer is None:  # parameters exist after the first call
            self.optimizer = self.get_optimizer(self.module.named_parameters(), 1e-6, self.momentum)
        self.optimizer.step(self.module.named_gradients())
        return float(outputs[0])


def load(job: Job) -> ExecutorchEngine:
    """The module and the batch."""
    return ExecutorchEngine(job)
