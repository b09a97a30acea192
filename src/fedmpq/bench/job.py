"""What one worker process is to run."""

from __future__ import annotations

import random
from array import array
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

#: Engine name on the command line -> (module, name of the figure `ratio_vs.<name>`).
ENGINES: dict[str, tuple[str, str]] = {
    "fedmpq": ("fedmpq.bench.engines.integer", "fedmpq"),
    "torch": ("fedmpq.bench.engines.pytorch", "torch"),
    "ort-training": ("fedmpq.bench.engines.ort", "ort_training"),
    "executorch": ("fedmpq.bench.engines.executorch_training", "executorch"),
    "executorch-delegate": ("fedmpq.bench.engines.delegate", "executorch_delegate"),
    "onnx": ("fedmpq.bench.engines.onnx_graph", "onnx"),
    "peak": ("fedmpq.bench.engines.peak", "peak"),
}

#: What every engine can be compared against.
PEERS = ("torch", "ort-training", "executorch")

#: What `fedmpq export` writes for, the native core first.
TARGETS = ("fedmpq", "executorch-delegate", "onnx", "ort-training")


@dataclass(frozen=True)
class Job:
    """One engine with one setting.

    Attributes:
        engine: a key of `ENGINES`.
        model: a built-in model or module:factory, as for `fedmpq export`.
        shape: channels, height, width of an image.
        classes: outputs.
        batch: samples of a step.
        threads: threads of a step.
        bits: average bit-width (fedmpq only).
        act_bits: bits of an activation (fedmpq only).
        momentum: SGD with momentum (every engine but ort-training, whose SGD has none).
        isa: instruction set that fedmpq and PyTorch are held to; None: the best.
        lasso: the group Lasso, plane densities and pruning of FedMPQ after each step (fedmpq only).
        seed: fixes weights and images.
        folder: where `prepare` leaves the files that `load` reads.
    """

    engine: str
    model: str
    shape: tuple[int, int, int] = (3, 32, 32)
    classes: int = 10
    batch: int = 64
    threads: int = 1
    bits: float = 4
    act_bits: int = 4
    momentum: bool = False
    isa: str | None = None
    lasso: bool = False
    seed: int = 0
    folder: str = ""
    extra: dict[str, Any] = field(default_factory=dict)

    def json(self) -> dict[str, Any]:
        """The job as JSON values."""
        return asdict(self)

    @classmethod
    def parse(cls, values: dict[str, Any]) -> Job:
        """The job of `json`."""
        return cls(**{**values, "shape": tuple(values["shape"])})

    def file(self, suffix: str) -> Path:
        """Where files of this job lie: jobs that differ in anything that matters to the file have their own."""
        settings = f"{self.engine}-b{self.batch}-n{self.bits:g}-a{self.act_bits}-m{int(self.momentum)}"
        return Path(self.folder) / f"{settings}{suffix}"

    def images(self) -> bytes:
        """Random pixels u8 [B, H, W, C]."""
        channels, height, width = self.shape
        return random.Random(self.seed).randbytes(self.batch * channels * height * width)

    def labels(self) -> array[int]:
        """Random labels u16 [B]."""
        generator = random.Random(self.seed + 1)
        return array("H", (generator.randrange(self.classes) for _ in range(self.batch)))
