"""PyTorch, fp32, eager, as `model.train(); loss.backward(); optimizer.step()`."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812

from fedmpq.bench.job import Job


def tensors(job: Job) -> tuple[torch.Tensor, torch.Tensor]:
    """The job's batch as float images [B, C, H, W] about 0 and int64 labels [B]."""
    channels, height, width = job.shape
    pixels = torch.frombuffer(bytearray(job.images()), dtype=torch.uint8).view(job.batch, height, width, channels)
    images = ((pixels.float() - 128) / 64).permute(0, 3, 1, 2).contiguous()
    return images, torch.tensor(list(job.labels()), dtype=torch.int64)


def module(job: Job) -> torch.nn.Module:
    """The model with its initial weights."""
    from fedmpq.export.model import resolve

    torch.manual_seed(job.seed)
    return resolve(job.model, num_classes=job.classes, in_channels=job.shape[0])


class TorchEngine:
    """One eager model with SGD."""

    def __init__(self, job: Job) -> None:
        torch.set_num_threads(job.threads)
        self.model = module(job).train()
        momentum = 0.9 if job.momentum else 0.0
        self.optimizer = torch.optim.SGD(self.model.parameters(), lr=0.01, momentum=momentum, weight_decay=5e-4)
        self.images, self.labels = tensors(job)

    def details(self) -> dict[str, Any]:
        """Version and the instruction set that ATen uses."""
        return {"version": torch.__version__, "isa": torch.backends.cpu.get_cpu_capability(), "model": "fp32, eager"}

    def step(self) -> float:
        """Forward, backward, update."""
        self.optimizer.zero_grad(set_to_none=True)
        loss = F.cross_entropy(self.model(self.images), self.labels)
        loss.backward()  # type: ignore[no-untyped-call]
        self.optimizer.step()
        return loss.item()


def load(job: Job) -> TorchEngine:
    """The model, its optimiser and the batch."""
    return TorchEngine(job)
