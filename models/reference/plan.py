"""Plans, rates and results: small records with the attributes of their twins in `fedmpq.edge_runtime.core`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol


class PlanLike(Protocol):
    """What a session reads of a plan: `Plan` below or `fedmpq.edge_runtime.core.Plan`."""

    @property
    def bits(self) -> Sequence[int]:
        """Magnitude planes of each weight layer, in record order."""

    @property
    def micro_batch(self) -> int | None:
        """Samples of a micro-batch; None: the whole batch at once."""

    @property
    def act_bits(self) -> int:
        """Bits of activations that convolutions read, 4 or 8."""

    @property
    def guard(self) -> int:
        """Guard planes: extra low planes that are updated but not multiplied."""

    @property
    def momentum(self) -> bool:
        """Whether layers keep momentum."""

    @property
    def crop(self) -> bool:
        """Random crops in training."""

    @property
    def flip(self) -> bool:
        """Random mirroring in training."""

    @property
    def decay_bn(self) -> bool:
        """Whether weight decay reaches γ, β and biases."""


class HyperLike(Protocol):
    """What a session reads of the rates: `Hyper` below or `fedmpq.edge_runtime.core.Hyper`."""

    @property
    def lr(self) -> tuple[int, int]:
        """Learning rate, an fx pair."""

    @property
    def weight_decay(self) -> tuple[int, int]:
        """Weight decay, an fx pair."""

    @property
    def momentum_q15(self) -> int:
        """Momentum factor in 1/32768."""

    @property
    def lasso(self) -> Sequence[tuple[int, int]]:
        """λ_l of each weight layer, fx pairs, or nothing."""


@dataclass(frozen=True)
class Plan:
    """A plan for sessions without the C core. Batch, threads and recompute change memory or time, never results."""

    bits: tuple[int, ...]
    batch: int = 64
    micro_batch: int | None = None
    act_bits: int = 4
    guard: int = 0
    momentum: bool = False
    threads: int = 1
    crop: bool = True
    flip: bool = True
    decay_bn: bool = True
    recompute: bool = True


@dataclass(frozen=True)
class Hyper:
    """Rates of one step; fx pairs. `lasso` holds λ_l for each weight layer or nothing."""

    lr: tuple[int, int]
    weight_decay: tuple[int, int] = (0, 0)
    momentum_q15: int = 29491
    lasso: tuple[tuple[int, int], ...] = ()


@dataclass(frozen=True)
class Stats:
    """Sum of the samples' losses in 1/65536 nat, correct predictions, samples."""

    loss_q16: int
    correct: int
    count: int
