"""A small program, small private data sets and virtual devices for the coordinator's tests; trained by the C core."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from fedmpq.coordinator import evaluate, layout, planes, virtual
from fedmpq.coordinator.config import RunConfig
from fedmpq.coordinator.engine import Engine
from fedmpq.coordinator.global_model import GlobalModel
from fedmpq.coordinator.machine import Machine, Outgoing
from fedmpq.coordinator.run_state import RunState
from fedmpq.coordinator.samples import ArraySamples
from tests.helpers import programs

NET = programs.resnet(1, size=(8, 8, 1), width=4, classes=4, crop_pad=0, mean=(120,))
PROGRAM = NET.build()
LAYOUT = layout.of_program(PROGRAM)


def plan_bytes(bits: Sequence[int]) -> int:
    """A planner that is easy to reason about: stored bits and a constant."""
    return 1000 + sum((n + 1) * theta for n, theta in zip(bits, LAYOUT.thetas, strict=True))


def first_model(seed: int = 0) -> GlobalModel:
    states = programs.states(NET, 8, seed=seed)
    layers = [
        planes.unpack(shape, s.bits, s.step, s.planes, s.params) for shape, s in zip(LAYOUT.layers, states, strict=True)
    ]
    return GlobalModel.of_device_layers(LAYOUT, layers, 4)


def samples(count: int, seed: int) -> ArraySamples:
    images, labels = programs.images(NET, count, seed)
    return ArraySamples(images, labels, NET.classes)


class Clock:
    """Unix seconds that move when told."""

    def __init__(self) -> None:
        self.now = 1_700_000_000.0

    def __call__(self) -> float:
        return self.now


def config(**values: Any) -> RunConfig:
    small = {
        "run": "test", "rounds": 2, "min_devices": 3, "batch": 16, "lr": 0.05, "flip": False, "crop": False,
        "deadline_s": 60.0, "eval_budgets": False,
    }  # fmt: skip
    return RunConfig.from_dict({**small, **values})


@dataclass
class Fleet:
    """A machine and its virtual devices, driven by hand."""

    directory: Path
    config: RunConfig
    limits: dict[str, int]
    clock: Clock = field(default_factory=Clock)
    judge: bool = False

    def __post_init__(self) -> None:
        self.engine = Engine("core", PROGRAM)
        self.machine = self.open()
        sizes = [plan_bytes((n,) * len(LAYOUT.layers)) for n in range(1, 9)]
        self.devices = {}
        for number, (name, limit) in enumerate(self.limits.items()):
            device = virtual.VirtualDevice(name, "test", LAYOUT.program, samples(48, number), limit, sizes)
            device.sizes = [(layer.plane_bytes, layer.params_bytes) for layer in LAYOUT.layers]
            self.devices[name] = device

    def open(self) -> Machine:
        """A coordinator on the directory: the first one, or the next life."""
        run = RunState.open(self.directory, self.config, LAYOUT, PROGRAM, first_model, plan_bytes, self.clock)
        test = evaluate.TestSet(self.engine, self.config, samples(64, 99)) if self.judge else None
        return Machine(run, test)

    def restart(self) -> None:
        """As after a kill: nothing but the directory survives."""
        self.machine.run.close()
        self.machine = self.open()
        self.announce()

    def announce(self, names: Sequence[str] | None = None) -> None:
        """Births and profiles of devices."""
        self.route(self.machine.birth())
        for name in names or self.devices:
            for kind, payload in self.devices[name].birth():
                self.route(self.machine.handle(kind, name, payload))

    def route(self, messages: Sequence[Outgoing]) -> None:
        virtual.route(self.machine, self.devices, messages)

    def tick(self) -> None:
        self.route(self.machine.tick())

    def train(self, name: str) -> list[virtual.Up]:
        """Local training of a device whose plan is complete; returns its update, not sent yet."""
        device = self.devices[name]
        plan = device.work
        assert plan is not None, f"{name} has nothing to train"
        trained = virtual.train(self.engine, plan, device.start_blobs(), device.samples)
        device.work = None
        return device.finish(plan, trained)

    def send(self, name: str, messages: Sequence[virtual.Up]) -> None:
        for kind, payload in messages:
            self.route(self.machine.handle(kind, name, payload))

    def play(self, *, order: Sequence[str] | None = None) -> None:
        """Rounds to the end, devices answering in the given order."""
        while not self.machine.finished:
            self.tick()
            for name in order or list(self.devices):
                if self.devices[name].work is not None:
                    self.send(name, self.train(name))
        self.tick()

    @property
    def run(self) -> RunState:
        return self.machine.run

    def model(self) -> bytes:
        """The run's present global model."""
        return self.run.blobs.get(self.run.journal.meta("model") or "")


def limits(**bits: float) -> dict[str, int]:
    """Memory limits in bytes that hold so many average bits."""
    total = sum(LAYOUT.thetas)
    return {name: 1000 + int((value + 1) * total) for name, value in bits.items()}


def noise(theta: int, seed: int, size: float = 0.1) -> np.ndarray:
    return np.rint(np.random.default_rng(seed).normal(0, size, theta) * 2.0**32).astype(np.int64)
