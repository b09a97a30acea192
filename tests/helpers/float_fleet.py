"""A full-precision run on a loopback broker: a tiny model, its bundle, agents and a coordinator in one thread."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from fedmpq.coordinator import float_source
from fedmpq.coordinator.config import RunConfig
from fedmpq.coordinator.float_machine import FloatMachine
from fedmpq.coordinator.run_state import RunState
from fedmpq.coordinator.samples import ArraySamples
from fedmpq.coordinator.server import Server
from fedmpq.edge_runtime.agent import Agent, Options
from fedmpq.edge_runtime.loopback import LoopbackBroker
from fedmpq.edge_runtime.ort.agent import FloatAgent, trial_in_process
from fedmpq.edge_runtime.profile import Limits
from fedmpq.edge_runtime.store import Store
from fedmpq.export import ort_training

SHAPE, CLASSES = (8, 8, 1), 4


class Net(nn.Module):
    """Two convolutions with batch-norm and a classifier."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(1, 4, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(4)
        self.conv2 = nn.Conv2d(4, 8, 3, stride=2, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(8)
        self.fc = nn.Linear(8, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        x = self.bn1(self.conv1(x)).relu()
        x = self.bn2(self.conv2(x)).relu()
        logits: Tensor = self.fc(x.mean((2, 3)))
        return logits


@cache
def bundle() -> bytes:
    torch.manual_seed(5)
    return ort_training.build(Net(), SHAPE, CLASSES, mean=(120,), crop_pad=1, name="net")


def samples(count: int, seed: int) -> ArraySamples:
    """Images whose brightest quarter is the label."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, CLASSES, count)
    images = rng.integers(0, 100, (count, *SHAPE))
    for image, label in zip(images, labels, strict=True):
        row, column = divmod(int(label), 2)
        image[4 * row : 4 * row + 4, 4 * column : 4 * column + 4] += 120
    return ArraySamples(images.astype(np.uint8), labels, CLASSES)


class FloatFleet:
    """One coordinator and its devices, stepped by hand."""

    def __init__(self, folder: Path, names: Sequence[str], loss: float = 0.0, **values: Any) -> None:
        small = {
            "run": "floats", "strategy": "fedavg", "rounds": 2, "min_devices": len(names), "batch": 8, "lr": 0.1,
            "deadline_s": 120.0,
        }  # fmt: skip
        self.folder = folder
        self.now = 0.0
        self.config = RunConfig.from_dict({**small, **values})
        self.broker = LoopbackBroker(1, drop=loss, duplicate=loss)
        self.shards = {name: samples(24, number) for number, name in enumerate(names)}
        self.machine, self.server = self.serve()
        self.agents = {name: self.device(name) for name in names}

    def serve(self) -> tuple[FloatMachine, Server]:
        """The coordinator's first or next life."""
        origin = float_source.of_bundle(bundle(), "net")
        run = RunState.open(
            self.folder / "run", self.config, origin.layout, origin.program, origin.initial, lambda _: 0, _clock
        )
        judge: Any = float_source.FloatTestSet(bundle(), 16, samples(40, 99))
        machine = FloatMachine(run, judge)
        server = Server(machine, self.broker.transport("coordinator"), "fleet")
        server.connect()
        return machine, server

    def device(self, name: str, limit: int | None = None) -> Agent:
        store = Store(self.folder / name, name)
        options = Options("fleet", name, Limits(limit))
        transport = self.broker.transport(name)
        agent = FloatAgent(options, transport, store, self.shards[name], trial=trial_in_process, clock=lambda: self.now)
        agent.start()
        return agent

    def step(self) -> None:
        self.now += 0.05
        self.server.step(0.0)
        for agent in self.agents.values():
            agent.work()
            agent.tick()
            event = agent._transport.poll(0.0)
            while event is not None:
                agent.handle(event)
                event = agent._transport.poll(0.0)

    def play(self, most: int = 20_000) -> None:
        """Until the run is finished."""
        for _ in range(most):
            if self.machine.finished:
                return
            self.step()
        raise AssertionError(f"not finished after {most} steps")

    def state(self) -> bytes:
        run = self.machine.run
        return run.blobs.get(run.journal.meta("model") or "")


def _clock() -> float:
    import time

    return time.time()
