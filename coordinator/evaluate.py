"""Judging a global model: quantised as a device would get it, on images no device trains on."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from fedmpq.coordinator import planes
from fedmpq.coordinator.config import RunConfig
from fedmpq.coordinator.engine import Engine, loaded
from fedmpq.coordinator.global_model import GlobalModel
from fedmpq.edge_runtime.shard import Images
from fedmpq.edge_runtime.trainer import Layer
from fedmpq.errors import DataError


class TestSet:
    """Evaluates global models on a fixed set of images (`rounds.Evaluator`).

    Args:
        engine: what computes.
        config: activation bits, batch and scale.
        samples: the images.
    """

    __test__ = False  # not a pytest class

    def __init__(self, engine: Engine, config: RunConfig, samples: Images) -> None:
        if samples.count < 1:
            raise DataError("the test set is empty")
        self.engine = engine
        self.config = config
        self.samples = samples

    def __call__(self, model: GlobalModel, targets: Mapping[str, Sequence[int]]) -> dict[str, Any]:
        """Accuracy (percent) and loss (nat) for each label's bits per layer."""
        return {label: {**self.judge(model, bits), "bits": list(bits)} for label, bits in targets.items()}

    def judge(self, model: GlobalModel, bits: Sequence[int]) -> dict[str, Any]:
        """Accuracy and loss at one set of bit-widths, with running statistics."""
        loss, correct, count = self.totals(model, bits)
        return {
            "accuracy": round(100 * correct / count, 4),
            "loss": round(loss / 65536 / count, 6),
            "correct": correct,
            "count": count,
        }

    def totals(self, model: GlobalModel, bits: Sequence[int]) -> tuple[int, int, int]:
        """Sum of losses in 2**-16 nat, correct answers, images: exact."""
        scale: Any = "mse" if self.config.scale == "mse" else "max"
        act_bits = self.config.act_bits
        packed = [planes.pack(model.layer_state(i, n, act_bits, scale=scale)) for i, n in enumerate(bits)]
        layers = [Layer(layer.bits, layer.step, layer.planes, layer.params) for layer in packed]
        session = loaded(self.engine, self.config, layers)
        loss = correct = count = 0
        batch = self.config.batch
        for start in range(0, self.samples.count, batch):
            stop = min(start + batch, self.samples.count)
            stats = session.evaluate(self.samples.images(start, stop), self.samples.labels(start, stop))
            loss, correct, count = loss + stats.loss_q16, correct + stats.correct, count + stats.count
        return loss, correct, count
