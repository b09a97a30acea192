"""What a full-precision run trains: a bundle made of a model by name, or read from a file, and its first state."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import numpy as np

from fedmpq.coordinator.layout import LayerShape, Layout
from fedmpq.coordinator.source import DataShape, Source, module_of
from fedmpq.edge_runtime import container
from fedmpq.edge_runtime.ort import augment, bundle, engine
from fedmpq.edge_runtime.ort.engine import Floats
from fedmpq.edge_runtime.shard import Images
from fedmpq.errors import ConfigError, DataError


class FloatState:
    """A first global model; `run_state` asks it for its bytes only."""

    def __init__(self, state: Floats) -> None:
        self._state = state

    def to_bytes(self) -> bytes:
        """Float32, little-endian."""
        return self._state.astype("<f4").tobytes()


def layout_of(data: bytes) -> Layout:
    """A layout of one layer that holds every value of the bundle's state."""
    found = bundle.parse(data)
    size = found.size
    shape = LayerShape(0, "state", is_conv=False, theta=size, channels=1, fan_in=size, reads_pixels=False)
    return Layout(hashlib.sha256(data).hexdigest(), (shape,))


def of_bundle(data: bytes, name: str) -> Source:
    """A bundle's program and the values in its checkpoint."""

    def initial() -> Any:
        return FloatState(engine.Engine(bundle.parse(data, name)).state())

    return Source(data, layout_of(data), initial, name)


def of_file(path: Path) -> Source:
    """A bundle file written by `fedmpq export --target ort-training`."""
    return of_bundle(container.read_bytes(path), path.name)


def of_model(name: str, data: DataShape, mean: bytes, *, crop_pad: int, seed: int) -> Source:
    """A model by name with PyTorch's own initial weights for `seed`, as a bundle.

    Raises:
        ModelError: no such model, or one that cannot be exported; MissingExtraError: ONNX Runtime training is missing.
    """
    from fedmpq.export import ort_training

    module = module_of(name, data, seed)
    made = ort_training.build(module, data.shape, data.classes, mean=tuple(mean), crop_pad=crop_pad, name=name)
    initial: Any = FloatState(ort_training.flatten(module))
    return Source(made, layout_of(made), lambda: initial, name)


def check_fit(data: bytes, images: DataShape, what: str) -> None:
    """Refuses images of another shape or with more classes than the bundle has; DataError says both."""
    found = bundle.parse(data)
    if found.in_shape != tuple(images.shape) or images.classes > found.classes:
        have, want = ("×".join(map(str, shape)) for shape in (images.shape, found.in_shape))
        raise DataError(
            f"{what} holds {have} images of {images.classes} classes, "
            f"the bundle takes {want} and {found.classes} classes"
        )


class FloatTestSet:
    """Judges state vectors on a fixed set of images, with running statistics.

    Args:
        data: the bundle.
        batch: images at a time.
        samples: the images.
    """

    def __init__(self, data: bytes, batch: int, samples: Images) -> None:
        if samples.count < 1:
            raise DataError("the test set is empty")
        self._engine = engine.Engine(bundle.parse(data))
        self._batch, self._samples = batch, samples

    def __call__(self, state: Floats) -> dict[str, Any]:
        """Accuracy (percent) and loss (nat)."""
        if not np.isfinite(state).all():
            raise ConfigError("the global model holds values that are not finite", "use a smaller learning rate")
        self._engine.load(state)
        loss = correct = 0.0
        count = self._samples.count
        for start in range(0, count, self._batch):
            stop = min(start + self._batch, count)
            x = augment.network_input(augment.centred(self._samples.images(start, stop), self._engine.bundle))
            labels = np.frombuffer(self._samples.labels(start, stop), np.uint16).astype(np.int64)
            mean, right = self._engine.evaluate(x, labels)
            loss, correct = loss + mean * len(labels), correct + right
        return {
            "accuracy": round(100 * correct / count, 4),
            "loss": round(loss / count, 6),
            "correct": int(correct),
            "count": count,
            "bits": [],
        }
