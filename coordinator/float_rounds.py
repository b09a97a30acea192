"""The full-precision systems (FedAvg, FedPAQ, UVeQFed): PyTorch on every client, one process, no protocol.

They see the same clients, batches, crops and flips as the integer systems (the same counter hashes choose them) and
report the bytes they would send and the memory a device would need, so that the tables compare like with like.
"""

from __future__ import annotations

import io
import json
import zipfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from fedmpq.coordinator.config import RunConfig
from fedmpq.coordinator.kinds import check_float
from fedmpq.coordinator.rounds import client_number
from fedmpq.coordinator.strategies.compression import by_name
from fedmpq.edge_runtime import container, sampling
from fedmpq.edge_runtime.trainer import Samples
from fedmpq.errors import ConfigError, StateError
from fedmpq.models.reference import activation
from fedmpq.models.reference.program import Kind, parse
from fedmpq.models.reference.rng import StepKey

#: Pixels are divided by this after the mean is taken off: about one standard deviation of natural images.
PIXEL_UNIT = 64.0


@dataclass
class FloatRun:
    """One full-precision run.

    Attributes:
        config: strategy, rounds, rates, seed.
        module: the model with its first weights; it becomes the global model.
        program: the same model's integer program, for its input, mean, crop padding and memory.
        clients: private data by name.
        judge: images the global model is judged on.
        directory: where the state after each round is kept; a run goes on from there.
        progress: called with a number of finished local trainings.
    """

    config: RunConfig
    module: nn.Module
    program: bytes
    clients: Mapping[str, Samples]
    judge: Any
    directory: Path
    progress: Callable[[int], object] = int

    def __post_init__(self) -> None:
        check_float(self.config, simulated=True)
        self._send = by_name(self.config.strategy)
        self._parsed = parse(self.program)
        self._mean = torch.tensor(self._parsed.mean, dtype=torch.float32)
        self.module = self.module.to(memory_format=torch.channels_last)  # type: ignore[call-overload]

    def play(self, say: Callable[[str], object] = str) -> list[dict[str, Any]]:
        """Runs to the end; one entry a round as `status.round_result` has it. `say` is told a line a round."""
        # One thread: these convolutions are small, and threads that wait for each other cost more than they save.
        threads = torch.get_num_threads()
        torch.set_num_threads(1)
        try:
            return self._play(say)
        finally:
            torch.set_num_threads(threads)

    def _play(self, say: Callable[[str], object]) -> list[dict[str, Any]]:
        rounds = self._restored()
        global_state = flatten(self.module)
        total = sum(samples.count for samples in self.clients.values())
        for number in range(len(rounds) + 1, self.config.rounds + 1):
            change = np.zeros(global_state.size, np.float64)
            devices = []
            for name, samples in self.clients.items():
                load(self.module, global_state)
                loss = self._train(number, client_number(name), samples)
                rng = np.random.default_rng((self.config.seed, number, client_number(name)))
                decoded, sent = self._send(flatten(self.module) - global_state, rng)
                change += decoded.astype(np.float64) * (samples.count / total)
                devices.append({"device": name, "samples": samples.count, "bytes_up": sent, "loss": loss})
                self.progress(1)
            global_state = (global_state + change).astype(np.float32)
            load(self.module, global_state)
            rounds.append(self._result(number, global_state, devices))
            self._keep(rounds, global_state)
            say(f"{self.config.strategy}, round {number}: {rounds[-1]['accuracy']:.2f} %")
        return rounds

    def training_bytes(self) -> int:
        """Memory of a training step in fp32, a lower bound.

        Weights, gradients and momentum; the images; each record's output and, of a convolution, what batch-norm
        normalises. No workspace.
        """
        parameters = sum(p.numel() for p in self.module.parameters())
        kept = sum(
            (2 if record.kind is Kind.CONV else 1) * record.h_out * record.w_out * record.cout
            for record in self._parsed.records
        )
        pixels = int(np.prod(self._parsed.in_shape))
        return 4 * (3 * parameters + self.config.batch * (kept + pixels))

    def _train(self, number: int, client: int, samples: Samples) -> float:
        config, module = self.config, self.module
        module.train()
        optimiser = torch.optim.SGD(
            module.parameters(),
            lr=config.rate(number),
            momentum=config.momentum_q15 / 32768 if config.momentum else 0.0,
            weight_decay=config.weight_decay,
        )
        loss_sum = count = 0.0
        batches = sampling.batches(samples.count, config.batch, config.epochs, config.seed, number, client)
        for step, indices in enumerate(batches):
            images, labels = samples.batch(indices)
            key = StepKey(config.seed, number, client, step)
            loss = nn.functional.cross_entropy(module(self._input(images, key)), _labels(labels))
            optimiser.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            optimiser.step()
            loss_sum, count = loss_sum + float(loss.detach()) * len(indices), count + len(indices)
        return loss_sum / count

    def _input(self, images: memoryview, key: StepKey | None) -> Tensor:
        """Images as the integer program centres and augments them, NCHW floats."""
        pixels = torch.frombuffer(bytearray(images), dtype=torch.uint8).reshape(-1, *self._parsed.in_shape)
        x = pixels.float() - self._mean
        if key is not None:
            config = self.config
            x = activation.crop_and_flip(x, self._parsed.crop_pad, key, crop=config.crop, flip=config.flip)
        # Channels last, as the images come: the CPU's convolutions are fastest so.
        return (x / PIXEL_UNIT).permute(0, 3, 1, 2).contiguous(memory_format=torch.channels_last)

    @torch.no_grad()
    def _result(self, number: int, state: NDArray[np.float32], devices: list[dict[str, Any]]) -> dict[str, Any]:
        self.module.eval()
        correct = loss = 0.0
        count = self.judge.count
        for start in range(0, count, 256):
            stop = min(start + 256, count)
            logits = self.module(self._input(self.judge.images(start, stop), None))
            labels = _labels(self.judge.labels(start, stop))
            correct += float((logits.argmax(1) == labels).sum())
            loss += float(nn.functional.cross_entropy(logits, labels, reduction="sum"))
        return {
            "round": number,
            "accuracy": round(100 * correct / count, 4),
            "loss": round(loss / count, 6),
            "accepted": len(devices),
            "bytes_up": sum(device["bytes_up"] for device in devices),
            "bytes_down": 4 * state.size * len(devices),
            "planned_bytes": self.training_bytes(),
            "devices": devices,
        }

    def _keep(self, rounds: list[dict[str, Any]], state: NDArray[np.float32]) -> None:
        out = io.BytesIO()
        np.savez(out, state=state, rounds=json.dumps(rounds), config=json.dumps(self.config.to_dict()))
        container.write_atomic(self.directory / "state.npz", out.getvalue())

    def _restored(self) -> list[dict[str, Any]]:
        path = self.directory / "state.npz"
        if not path.is_file():
            return []
        try:
            with np.load(path) as kept:
                old: dict[str, Any] = json.loads(str(kept["config"]))
                rounds: list[dict[str, Any]] = json.loads(str(kept["rounds"]))
                state = kept["state"]
        except (OSError, ValueError, EOFError, KeyError, zipfile.BadZipFile):
            hint = "remove it, and the run begins anew, or choose another --out"
            raise StateError(f"{path} is damaged", hint) from None
        for key, value in self.config.to_dict().items():
            if old.get(key) != value:
                raise ConfigError(
                    f"{self.directory} holds a run with {key} = {old.get(key)!r}, not {value!r}",
                    "start with the same configuration or choose another --out",
                )
        load(self.module, state)
        return rounds


def flatten(module: nn.Module) -> NDArray[np.float32]:
    """Parameters and running statistics in one vector."""
    parts = [t.detach().reshape(-1) for t in module.state_dict().values() if t.is_floating_point()]
    vector: NDArray[np.float32] = torch.cat(parts).float().numpy().copy()
    return vector


def load(module: nn.Module, vector: NDArray[np.float32]) -> None:
    """The inverse of `flatten`."""
    at = 0
    for tensor in module.state_dict().values():
        if tensor.is_floating_point():
            size = tensor.numel()
            tensor.copy_(torch.from_numpy(vector[at : at + size].copy()).reshape(tensor.shape))
            at += size


def _labels(labels: memoryview) -> Tensor:
    return torch.from_numpy(np.frombuffer(labels, np.uint16).astype(np.int64))
