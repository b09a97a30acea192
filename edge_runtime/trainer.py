"""Local training of one round, without a network: the agent, `simulate` and tests run this very loop.

The session is injected (the C core, or the PyTorch reference with the same methods), as are the samples (a
memory-mapped shard, or anything with its two methods).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from fedmpq.edge_runtime import sampling
from fedmpq.edge_runtime.protocol import LayerBlobs, PlanMessage, Settings, digest
from fedmpq.errors import DataError, FormatError


class Samples(Protocol):
    """Labelled images: what `shard.Shard` offers."""

    count: int
    shape: tuple[int, int, int]
    classes: int

    def batch(self, indices: Sequence[int]) -> tuple[memoryview, memoryview]:
        """Images (bytes of [B, H, W, C]) and labels (uint16 [B]) at the indices."""


@dataclass(slots=True)
class Progress:
    """Sums over the steps so far: loss in 1/65536 nat, correct answers, samples seen."""

    steps: int = 0
    loss_q16: int = 0
    correct: int = 0
    count: int = 0


@dataclass(frozen=True, slots=True)
class Layer:
    """One weight layer after training: bits, step, planes [sign, 1..bits] and parameters as bytes."""

    bits: int
    step: tuple[int, int]
    planes: tuple[bytes, ...]
    params: bytes

    def reference(self) -> LayerBlobs:
        """The layer by hashes, as an update names it."""
        return LayerBlobs(self.bits, self.step, tuple(digest(p) for p in self.planes), digest(self.params))


def core_plan(core: Any, settings: Settings, bits: Sequence[int], threads: int = 1) -> Any:
    """The `core.Plan` of a run's settings at the given bits of each weight layer."""
    return core.Plan(
        bits=tuple(bits),
        batch=settings.batch,
        micro_batch=settings.micro_batch,
        act_bits=settings.act_bits,
        guard=settings.guard,
        momentum=settings.momentum,
        threads=threads,
        crop=settings.crop,
        flip=settings.flip,
        decay_bn=settings.decay_bn,
        recompute=settings.recompute,
    )


def check_samples(samples: Samples, program: Any) -> None:
    """Refuse data of another image shape or with labels the program's classifier does not have."""
    if tuple(samples.shape) != tuple(program.in_shape) or samples.classes > program.classes:
        raise DataError(
            f"the shard has {_shape(samples.shape)} images of {samples.classes} classes, "
            f"the program takes {_shape(program.in_shape)} and {program.classes} classes",
            "give the device a shard of the data set this run trains on",
        )


def check_plan(plan: PlanMessage, program: Any) -> None:
    """Refuse a plan whose number of layers is not the program's."""
    if len(plan.layers) != len(program.weight_layers):
        raise FormatError(
            f"the plan has {len(plan.layers)} layers, the program {len(program.weight_layers)} with weights"
        )


def load_layers(core: Any, session: Any, plan: PlanMessage, blob: Callable[[str], bytes]) -> None:
    """Load the plan's start weights; `blob` gives the bytes of a SHA-256. Guard planes start at zero."""
    for i, layer in enumerate(plan.layers):
        planes = tuple(blob(sha256) for sha256 in layer.planes)
        load_layer(core, session, i, Layer(layer.bits, layer.step, planes, blob(layer.params)), plan.settings.guard)


def load_layer(core: Any, session: Any, index: int, layer: Layer, guard: int) -> None:
    """Load one layer as it travels."""
    sign, *magnitudes = layer.planes
    planes = (sign, *(bytes(len(sign)) for _ in range(guard)), *magnitudes)
    session.load(index, core.LayerState(layer.bits, guard, layer.step, planes, layer.params))


def train_local(core: Any, session: Any, plan: PlanMessage, samples: Samples) -> Iterator[Progress]:
    """Train the plan's epochs; yields the running sums after each step so that a caller can stop or listen.

    The session holds the plan's start weights (`load_layers`); afterwards call `finish`.
    """
    hyper = core.Hyper(lr=plan.lr, weight_decay=plan.weight_decay, momentum_q15=plan.momentum_q15, lasso=plan.lasso)
    size = min(plan.settings.batch, samples.count)
    micro_steps = -(-size // (plan.settings.micro_batch or size))
    progress = Progress()
    chosen = sampling.batches(samples.count, plan.settings.batch, plan.epochs, plan.seed, plan.round, plan.client)
    for indices in chosen:
        images, labels = samples.batch(indices)
        key = (plan.seed, plan.round, plan.client, progress.steps * micro_steps)
        stats = session.step(images, labels, hyper, key)
        progress.steps += 1
        progress.loss_q16 += stats.loss_q16
        progress.correct += stats.correct
        progress.count += stats.count
        yield progress


def finish(session: Any, plan: PlanMessage) -> list[Layer]:
    """Drop sparse top planes (eq. 13) and read the layers without their guard planes, as they travel."""
    if plan.eps_q16:
        session.prune(plan.eps_q16)
    return [wire_layer(session.read(i)) for i in range(len(plan.layers))]


def wire_layer(state: Any) -> Layer:
    """A layer state as it travels: guard planes rounded away (docs/arithmetic.md section 3)."""
    planes = tuple(bytes(p) for p in state.planes)
    if state.guard:
        planes = round_guard(planes, state.guard)
    return Layer(state.bits, tuple(state.step), planes, bytes(state.params))


def round_guard(planes: tuple[bytes, ...], guard: int) -> tuple[bytes, ...]:
    """Planes of q = sign·((|q_full| + 2^(g−1)) >> g) from those of q_full, in bit-sliced arithmetic.

    Adding half of the guard range carries into plane g exactly where guard plane g−1 is set; the carry ripples up
    through big integers, one bit a weight. It never leaves the top plane, as |q_full| ≤ (2^n − 1)·2^g.
    """
    size = len(planes[0])
    sign, *full = (int.from_bytes(p, "little") for p in planes)
    carry = full[guard - 1]
    magnitudes = []
    for plane in full[guard:]:
        magnitudes.append(plane ^ carry)
        carry &= plane
    used = 0
    for plane in magnitudes:
        used |= plane
    return tuple(v.to_bytes(size, "little") for v in (sign & used, *magnitudes))


def _shape(shape: Sequence[int]) -> str:
    return "×".join(str(n) for n in shape)
