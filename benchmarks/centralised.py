"""Train one model on one data set without federation: does integer training learn what float training learns?

    python benchmarks/centralised.py --data digits --bits 4 --act-bits 4 --engine reference
    python benchmarks/centralised.py --data cifar10 --train 20000 --engine float

Prints one JSON document: the options, loss and accuracy of every epoch, seconds.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
import time
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812
from numpy.typing import NDArray

from fedmpq.data import load
from fedmpq.export.model import from_module
from fedmpq.models import codec, initial, zoo
from fedmpq.models.reference import Hyper, Plan, ReferenceSession, program

Array = NDArray[Any]


def options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--engine", choices=("reference", "core", "float"), default="reference")
    parser.add_argument("--device", default="cpu", help="of the reference and of float training")
    parser.add_argument("--data", default="digits")
    parser.add_argument("--train", type=int, help="training images, every class in proportion")
    parser.add_argument("--test", type=int)
    parser.add_argument("--model", default="resnet8", choices=sorted(zoo.MODELS))
    parser.add_argument("--width", type=int, default=16)
    parser.add_argument("--bits", type=int, default=8)
    parser.add_argument("--first-last", type=int, help="bits of the first and last layer")
    parser.add_argument("--act-bits", type=int, default=4)
    parser.add_argument("--guard", type=int, default=0)
    parser.add_argument("--scale", choices=("max", "mse"), default="max")
    parser.add_argument("--epochs", type=float, default=10)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--micro-batch", type=int)
    parser.add_argument("--lr", type=float, default=0.1)
    parser.add_argument("--schedule", choices=("cosine", "constant"), default="cosine")
    parser.add_argument("--momentum", type=float, default=0.9)
    parser.add_argument("--weight-decay", type=float, default=5e-4)
    parser.add_argument("--crop-pad", type=int, help="default: an eighth of the image's height")
    parser.add_argument("--no-flip", action="store_true")
    parser.add_argument("--t-residual", type=int, default=1, help="activation exponent of residual sums")
    parser.add_argument("--t-out", type=int, default=0)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=1)
    return parser.parse_args()


def batches(count: int, size: int, rng: np.random.Generator) -> Iterator[Array]:
    order = rng.permutation(count)
    for start in range(0, count - size + 1, size):
        yield order[start : start + size]


def rate(o: argparse.Namespace, step: int, total: int) -> float:
    return o.lr if o.schedule == "constant" else o.lr * 0.5 * (1 + math.cos(math.pi * step / total))


def main() -> None:
    o = options()
    torch.manual_seed(o.seed)
    torch.set_num_threads(o.threads)
    data = load(o.data).limit(o.train, o.test)
    height, _, channels = data.shape
    pad = height // 8 if o.crop_pad is None else o.crop_pad
    mean = tuple(round(m) for m in data.train.images.reshape(-1, channels).mean(0).tolist())
    module = zoo.MODELS[o.model](len(data.classes), channels, o.width)
    rng = np.random.default_rng(o.seed)
    steps_an_epoch = len(data.train) // o.batch
    total = int(o.epochs * steps_an_epoch)
    trainer = (Float if o.engine == "float" else Integer)(o, module, mean, pad, data.shape)
    history, loss, correct, seen, step, began = [], 0.0, 0, 0, 0, time.perf_counter()
    while step < total:
        for index in batches(len(data.train), o.batch, rng):
            batch_loss, batch_correct = trainer.step(
                data.train.images[index], data.train.labels[index], rate(o, step, total), step
            )
            loss, correct, seen, step = loss + batch_loss, correct + batch_correct, seen + len(index), step + 1
            if step >= total:
                break
        spent = time.perf_counter() - began
        accuracy = trainer.accuracy(data.test.images, data.test.labels)
        history.append(
            {
                "step": step,
                "train_loss": round(loss / seen, 4),
                "train_accuracy": round(100 * correct / seen, 2),
                "test_accuracy": round(accuracy, 2),
                "seconds": round(spent, 1),
            }
        )
        print(history[-1], file=sys.stderr, flush=True)
        loss, correct, seen = 0.0, 0, 0
    print(json.dumps({"options": vars(o), "history": history, "test_accuracy": history[-1]["test_accuracy"]}))


class Integer:
    """The integer engine under test."""

    def __init__(self, o: argparse.Namespace, module: Any, mean: tuple[int, ...], pad: int, shape: Any) -> None:
        height, width, channels = shape
        compiled = from_module(
            module, (channels, height, width), mean=mean, crop_pad=pad, t_out=o.t_out, t_residual=o.t_residual
        )
        parsed = program.parse(compiled.program)
        layers = len(parsed.weight_layers)
        edge = o.first_last or o.bits
        bits = tuple(edge if i in {0, layers - 1} else o.bits for i in range(layers))
        fields: dict[str, Any] = {
            "bits": bits, "batch": o.batch, "micro_batch": o.micro_batch, "act_bits": o.act_bits, "guard": o.guard,
            "momentum": o.momentum > 0, "threads": o.threads, "crop": pad > 0, "flip": not o.no_flip,
            "recompute": False,  # the same bits, a tenth faster
        }  # fmt: skip
        states = initial.states(parsed, Plan(**fields), initial.float_layers(module), o.scale)
        if o.engine == "core":
            from fedmpq.edge_runtime import core

            self.session: Any = core.Session(core.Program(compiled.program), core.Plan(**fields))
            self.hyper: Any = core.Hyper
            states = [core.LayerState(s.bits, s.guard, s.step, s.planes, s.params) for s in states]
        else:
            self.session = ReferenceSession(compiled.program, Plan(**fields), o.device)
            self.hyper = Hyper
        for i, state in enumerate(states):
            self.session.load(i, state)
        self.o = o
        self.micro_batches = -(-o.batch // (o.micro_batch or o.batch))

    def step(self, images: Array, labels: Array, lr: float, step: int) -> tuple[float, int]:
        hyper = self.hyper(
            lr=codec.fx_from_float(float(np.float32(lr))),
            weight_decay=codec.fx_from_float(float(np.float32(self.o.weight_decay))),
            momentum_q15=round(self.o.momentum * 32768),
        )
        key = (self.o.seed, 1, 0, step * self.micro_batches)
        images, labels = np.ascontiguousarray(images), labels.astype(np.uint16)
        stats = self.session.step(images, labels, hyper, key)
        return stats.loss_q16 / 65536, stats.correct

    def accuracy(self, images: Array, labels: Array) -> float:
        correct = 0
        for start in range(0, len(images), self.o.batch):
            part = slice(start, start + self.o.batch)
            stats = self.session.evaluate(np.ascontiguousarray(images[part]), labels[part].astype(np.uint16))
            correct += stats.correct
        return 100 * correct / len(images)


class Float:
    """Plain SGD in float32 with the same augmentation."""

    def __init__(self, o: argparse.Namespace, module: Any, mean: tuple[int, ...], pad: int, shape: Any) -> None:
        # Channels last is how the CPU's convolutions are fastest; the values are the same up to the order of sums.
        self.o, self.module, self.pad = o, module.to(o.device, memory_format=torch.channels_last), pad
        self.mean = torch.tensor(mean, device=o.device)[None, :, None, None]
        self.optimiser = torch.optim.SGD(module.parameters(), lr=o.lr, momentum=o.momentum, weight_decay=o.weight_decay)
        self.rng = np.random.default_rng(o.seed + 1)

    def step(self, images: Array, labels: Array, lr: float, step: int) -> tuple[float, int]:
        self.module.train()
        for group in self.optimiser.param_groups:
            group["lr"] = lr
        x, target = self._tensor(images), torch.from_numpy(labels.astype(np.int64)).to(self.o.device)
        logits = self.module(self._augmented(x))
        loss = F.cross_entropy(logits, target)
        self.optimiser.zero_grad()
        loss.backward()
        self.optimiser.step()
        return float(loss.detach()) * len(labels), int((logits.argmax(1) == target).sum())

    def accuracy(self, images: Array, labels: Array) -> float:
        self.module.eval()
        correct = 0
        with torch.no_grad():
            for start in range(0, len(images), 500):
                logits = self.module(self._tensor(images[start : start + 500]))
                correct += int((logits.argmax(1).cpu().numpy() == labels[start : start + 500]).sum())
        return 100 * correct / len(images)

    def _tensor(self, images: Array) -> torch.Tensor:
        x = torch.from_numpy(images.astype(np.float32)).permute(0, 3, 1, 2).to(self.o.device)
        return ((x - self.mean) / 64).contiguous(memory_format=torch.channels_last)

    def _augmented(self, x: torch.Tensor) -> torch.Tensor:
        padded = F.pad(x, (self.pad,) * 4)
        result = torch.empty_like(x)
        for i in range(len(x)):
            dy, dx = self.rng.integers(0, 2 * self.pad + 1, 2)
            sample = padded[i, :, dy : dy + x.shape[2], dx : dx + x.shape[3]]
            result[i] = sample.flip(2) if not self.o.no_flip and self.rng.random() < 0.5 else sample
        return result


if __name__ == "__main__":
    main()
