"""Builds the C++ runner of examples/executorch_runner, and what it is to train."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from fedmpq.edge_runtime import artifact, core, sampling, shard
from fedmpq.export import build
from fedmpq.export.executorch import library, lowering
from tests.helpers import programs

ROOT = Path(__file__).parents[2]
SOURCE = ROOT / "examples" / "executorch_runner"
LR, DECAY, MOMENTUM, SEED, EPOCHS = 0.05, 5e-4, 0.9, 7, 2


def make(folder: Path, executorch: Path | None = None, *options: str) -> Path:
    """The runner, built in `folder`, where objects stay for the next time.

    Args:
        folder: of the build.
        executorch: the package to build against; the installed one by default.
        options: for CMake's configuration.
    """
    cmake = Path(sys.executable).with_name("cmake")
    command = [str(cmake) if cmake.exists() else shutil.which("cmake") or "cmake"]
    setup = [*command, "-S", str(SOURCE), "-B", str(folder), f"-DCMAKE_PREFIX_PATH={executorch or library.runtime()}"]
    for step in ([*setup, *options], [*command, "--build", str(folder), "--parallel", "2"]):
        done = subprocess.run(step, capture_output=True, text=True, check=False)
        assert done.returncode == 0, f"{done.stdout[-3000:]}\n{done.stderr[-3000:]}"
    return folder / "fedmpq_runner"


@dataclass(frozen=True)
class Task:
    """A program, a shard and what training it natively gives."""

    program: Path
    shard: Path
    held: artifact.Artifact
    planned: int
    losses: list[int]
    state: str

    @classmethod
    def make(cls, folder: Path) -> Task:
        """A small residual net with mixed bits and micro-batches on random images."""
        net = programs.resnet(1, size=(12, 12, 3), width=8, crop_pad=1)
        bits = tuple(1 + i % 8 for i in range(len(net.layers)))
        plan = core.Plan(bits=bits, batch=24, micro_batch=10, momentum=True)
        states = [core.LayerState(*state) for state in programs.states(net, bits)]
        held = build.with_states(net.build(), plan, states, {"model": "test net"})
        program, file = folder / "net.pte", folder / "net.shard"
        program.write_bytes(lowering.build(held))
        images, labels = programs.images(net, 100)
        shard.write_shard(file, images.tobytes(), labels.tobytes(), shape=(12, 12, 3), classes=10, mean=b"\x7d\x7b\x72")
        session = build.open_session(core.Program(held.program), plan, states)
        return cls(
            program, file, held, session.planned_bytes, cls._train(session, images, labels), session.state_hash()
        )

    @staticmethod
    def _train(session: core.Session, images: np.ndarray, labels: np.ndarray) -> list[int]:
        """Losses of the epochs, trained as `fedmpq train --schedule constant` does."""
        hyper = core.Hyper(core.fx(LR), core.fx(DECAY), round(MOMENTUM * 32768))
        losses = [0] * EPOCHS
        for step, indices in enumerate(sampling.batches(len(images), 24, EPOCHS, SEED, 0, 0)):
            batch = np.array(indices)
            stats = session.step(images[batch], labels[batch], hyper, (SEED, 0, 0, 3 * step))
            losses[step // (len(images) // 24)] += stats.loss_q16
        return losses

    @property
    def arguments(self) -> list[str]:
        """The runner's command line after its name."""
        rates = ["--lr", str(LR), "--decay", str(DECAY), "--momentum", str(MOMENTUM)]
        return [str(self.program), str(self.shard), "--epochs", str(EPOCHS), "--seed", str(SEED), *rates]

    def check(self, runner: list[str], out: Path) -> dict[str, Any]:
        """Trains with the runner and compares with the native result; returns its last line."""
        done = subprocess.run(
            [*runner, *self.arguments, "--out", str(out)], capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stderr
        *epochs, result = (json.loads(line) for line in done.stdout.splitlines())
        assert [epoch["loss_q16"] for epoch in epochs] == self.losses
        assert result["state"] == self.state
        assert result["arena_bytes"] == self.planned
        trained = artifact.read(out)
        session = build.open_session(core.Program(trained.program), build.plan_of(trained), build.states_of(trained))
        assert session.state_hash() == self.state
        return dict(result)
