"""Training on one machine without a network: the loop behind `fedmpq train`."""

from __future__ import annotations

import math
from array import array
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

from fedmpq.edge_runtime import core, sampling
from fedmpq.errors import DataError

if TYPE_CHECKING:
    from fedmpq.data import Dataset, Split


class Trainer(Protocol):
    """What training needs of a session: the core's, the reference's and the ONNX one have it."""

    @property
    def plan(self) -> core.Plan:
        """Batch and options."""

    @property
    def program(self) -> ImageProgram:
        """Image shape and classes."""

    def step(self, images: Any, labels: Any, hyper: core.Hyper, key: tuple[int, int, int, int]) -> core.Stats:
        """One training step."""

    def evaluate(self, images: Any, labels: Any) -> core.Stats:
        """Loss and accuracy with the running statistics."""


class ImageProgram(Protocol):
    """What a program says about its images."""

    @property
    def in_shape(self) -> tuple[int, int, int]:
        """Height, width, channels."""

    @property
    def classes(self) -> int:
        """Number of classes."""


@dataclass(frozen=True)
class Recipe:
    """How to train.

    Attributes:
        epochs: passes over the training images.
        lr: learning rate at the start.
        schedule: "cosine" (to 0 over all steps) or "constant".
        weight_decay: L2 factor.
        momentum: coefficient, 0…1 (used if the plan keeps momentum).
        seed: fixes the order of samples, augmentation and stochastic rounding.
    """

    epochs: int
    lr: float = 0.1
    schedule: str = "cosine"
    weight_decay: float = 5e-4
    momentum: float = 0.9
    seed: int = 0

    def rate(self, step: int, steps: int) -> float:
        """Learning rate of a step."""
        return self.lr if self.schedule == "constant" else self.lr * (1 + math.cos(math.pi * step / steps)) / 2


@dataclass(frozen=True)
class Epoch:
    """Figures of one epoch: mean loss in nats and accuracies in percent."""

    epoch: int
    lr: float
    train_loss: float
    train_accuracy: float
    validation_loss: float | None
    validation_accuracy: float | None


def train(
    session: Trainer, data: Dataset, recipe: Recipe, advance: Callable[[int], None] = lambda _: None
) -> Iterator[Epoch]:
    """Trains epoch by epoch; yields each one's figures. `advance` is told of each sample."""
    check_data(session.program, data)
    plan, count = session.plan, len(data.train)
    per_epoch = sampling.steps_per_epoch(count, plan.batch)
    micro = -(-min(plan.batch, count) // (plan.micro_batch or plan.batch))
    steps = per_epoch * recipe.epochs
    order = sampling.batches(count, plan.batch, recipe.epochs, recipe.seed, 0, 0)
    rate = recipe.lr
    for epoch in range(recipe.epochs):
        loss = correct = seen = 0
        for step in range(epoch * per_epoch, (epoch + 1) * per_epoch):
            indices = next(order)
            rate = recipe.rate(step, steps)
            hyper = core.Hyper(core.fx(rate), core.fx(recipe.weight_decay), round(recipe.momentum * 32768))
            batch = data.train.take(indices)
            stats = session.step(batch.images, batch.labels, hyper, (recipe.seed, 0, 0, step * micro))
            loss, correct, seen = loss + stats.loss_q16, correct + stats.correct, seen + stats.count
            advance(stats.count)
        held = evaluate(session, data.validation) if len(data.validation) else (None, None)
        yield Epoch(epoch + 1, rate, loss / 65536 / seen, 100 * correct / seen, *held)


def evaluate(session: Trainer, split: Split) -> tuple[float, float]:
    """Mean loss in nats and accuracy in percent with the running statistics."""
    size = session.plan.micro_batch or session.plan.batch
    loss = correct = 0
    for start in range(0, len(split), size):
        stats = session.evaluate(split.images[start : start + size].copy(), split.labels[start : start + size].copy())
        loss, correct = loss + stats.loss_q16, correct + stats.correct
    return loss / 65536 / len(split), 100 * correct / len(split)


def check_data(program: ImageProgram, data: Dataset) -> None:
    """Refuses data of another image shape or with more classes than the program has."""
    if data.shape != program.in_shape or len(data.classes) > program.classes:
        raise DataError(
            f"{data.name} has images {_by(data.shape)} of {len(data.classes)} classes, "
            f"the artifact takes {_by(program.in_shape)} and {program.classes} classes",
            "export the model with --data of this data set",
        )


def neutral_states(program: core.Program, plan: core.Plan) -> list[core.LayerState]:
    """Zero weights at a plan's bits: enough to run a step whose memory is to be measured."""
    states = []
    for layer, bits in zip(program.weight_layers, plan.bits, strict=True):
        planes = (bytes((layer.theta + 7) // 8),) * (1 + bits + plan.guard)
        states.append(core.LayerState(bits, plan.guard, core.fx(0.01), planes, bytes(layer.params_bytes)))
    return states


def trial_step(session: core.Session, seed: int = 1) -> core.Stats:
    """One step on a full batch of random pixels and labels."""
    program, batch = session.program, session.plan.batch
    key = sampling.derive(seed, 0, 0, 0, 0)
    size = batch * math.prod(program.in_shape)
    pixels = bytes(sampling.rand(key, i) & 255 for i in range(min(size, 4096)))
    images = (pixels * (size // len(pixels) + 1))[:size]
    labels = array("H", (sampling.rand(key, size + i) % program.classes for i in range(batch)))
    return session.step(images, labels, core.Hyper(core.fx(0.1)), (seed, 0, 0, 0))


def _by(shape: Sequence[Any]) -> str:
    return "×".join(map(str, shape))
