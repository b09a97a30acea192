"""What a run is: every choice that shapes its result, as one flat record kept in the journal.

A run is reproducible from its configuration, its program, its first global model and its devices' data.
"""

from __future__ import annotations

import dataclasses
import math
import re
import struct
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fedmpq.coordinator.fixed import Fx, norm
from fedmpq.coordinator.policy import POLICIES
from fedmpq.edge_runtime import topics
from fedmpq.edge_runtime.protocol import Settings
from fedmpq.errors import ConfigError


def read_toml(path: Path) -> dict[str, Any]:
    """A file in TOML; ConfigError names the file, and the line that cannot be read."""
    try:
        return tomllib.loads(path.read_text())
    except OSError as error:
        raise ConfigError(f"configuration {path} cannot be read: {error.strerror}") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"configuration {path}: {error}") from None


def fx_of(value: float) -> Fx:
    """The `fx` of a non-negative number, taken as a float32 first, so that it is exact."""
    single = struct.unpack("<f", struct.pack("<f", value))[0]
    mantissa, exponent = math.frexp(single)
    return norm(int(mantissa * (1 << 24)), exponent - 24)


@dataclass(frozen=True)
class RunConfig:
    """The configuration of a run.

    Attributes:
        run: its name, part of every message.
        strategy: one of strategies.STRATEGIES.
        rounds: number of rounds.
        seed: of every random stream.
        min_devices: admitted devices that must be there before a round starts.
        per_round: devices whose updates a round wants; 0 takes all that are there.
        over_selection: extra share of devices asked, in percent, so that losing some does not cost the deadline.
        quorum_percent: share of the wanted updates with which a round may close at its deadline.
        deadline_s: seconds from configuring a round to its deadline.
        extensions: how often a deadline without quorum is moved before the run stops with an error.
        late_rounds: rounds after its own in which an update that missed its deadline still counts, its weight halved
            for each (buffered rounds); 0 drops it.
        abort_percent: share of a round's devices that may refuse or be rejected before the run stops with an error.
        retries: how often in a round a device is given a smaller plan when its memory has shrunk since it was measured.
        epochs, batch, micro_batch, act_bits, guard, momentum, momentum_q15, crop, flip, decay_bn, recompute: of the
            local training (docs/arithmetic.md).
        lr, lr_final, schedule: learning rate of the first and last round, and "constant", "cosine" or "linear" between.
        weight_decay: of the local SGD.
        lasso: lambda of the group Lasso (eq. 11), 0 for none.
        prune_density: epsilon of the pruning of top planes (eq. 13), 0 for none.
        policy: bit-width policy (policy.POLICIES).
        scale: server's scale, "max" (eq. 14) or "mse".
        rounding: server's rounding, "nearest" or unbiased "stochastic".
        aggregation: "models" (eq. 15) or "changes".
        server_momentum_q15: share of the global weights' last movement that is added to the next, in 2**-15 (0: none).
        weighting: client weights, "samples-bits" (eq. 15) or "samples".
        pooled_variance: whether running variances are pooled over clients (aggregate.PartialSum.finish).
        eval_bits: uniform bit-width at which the global model is judged.
        eval_budgets: whether it is also judged at every device's own bit-widths.
        eval_every: evaluate after every so many rounds (and the last).
        robust: rule against bad clients (robust.RULES): "none", "clip", "trimmed", "median", "referee".
        trim_percent: share of the clients' weight cut off at both ends by "trimmed" (of batch-norm also by the others).
        quarantine_after: refused updates in a row after which a device sits out rounds; 0 for never.
        quarantine_rounds: rounds that it sits out.
        budgets: average bit-width each named device may have at most, whatever its memory; others go by memory alone.
    """

    run: str = "run"
    strategy: str = "fedmpq"
    rounds: int = 10
    seed: int = 1
    min_devices: int = 1
    per_round: int = 0
    over_selection: int = 0
    quorum_percent: int = 60
    deadline_s: float = 300.0
    extensions: int = 10
    late_rounds: int = 0
    abort_percent: int = 100
    retries: int = 2
    epochs: int = 1
    batch: int = 64
    micro_batch: int | None = None
    act_bits: int = 4
    guard: int = 0
    momentum: bool = True
    momentum_q15: int = 29491
    crop: bool = True
    flip: bool = True
    decay_bn: bool = True
    recompute: bool = True
    lr: float = 0.1
    lr_final: float = 0.0
    schedule: str = "cosine"
    weight_decay: float = 5e-4
    lasso: float = 0.01
    prune_density: float = 0.03
    policy: str = "literal"
    scale: str = "mse"
    rounding: str = "nearest"
    aggregation: str = "changes"
    server_momentum_q15: int = 0
    weighting: str = "samples-bits"
    pooled_variance: bool = False
    eval_bits: int = 8
    eval_budgets: bool = True
    eval_every: int = 1
    robust: str = "none"
    trim_percent: int = 20
    quarantine_after: int = 3
    quarantine_rounds: int = 10
    budgets: Mapping[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Checks ranges and names; ConfigError names the key.

        Everything a run would trip over must be found here: a configuration that is in the journal cannot be corrected.
        """
        if re.fullmatch(topics.NAME, self.run) is None:
            hint = "lower-case letters, digits, '.', '_' and '-', at most 63, starting with a letter or digit"
            raise ConfigError(f"run = {self.run[:80]!r}", hint)
        for key, (low, high) in _RANGES.items():
            value = getattr(self, key)
            if value is not None and not low <= value <= high:
                raise ConfigError(f"{key} = {value} is outside {low}..{high}")
        for key, names in _NAMES.items():
            if getattr(self, key) not in names:
                raise ConfigError(f"{key} = {getattr(self, key)!r}", f"one of {', '.join(names)}")
        if self.micro_batch is not None and self.micro_batch > self.batch:
            raise ConfigError(f"micro_batch = {self.micro_batch} exceeds batch = {self.batch}")
        for device, bits in self.budgets.items():
            if not 1 <= bits <= 8:
                raise ConfigError(f"budgets: {device} has {bits} bits", "1 to 8 are possible")
        if self.late_rounds and (self.aggregation != "changes" or self.robust != "none"):
            raise ConfigError(
                f"late_rounds = {self.late_rounds} needs aggregation = 'changes' and robust = 'none'",
                "a late update is a change of an older model",
            )
        if self.act_bits not in {4, 8}:
            raise ConfigError(f"act_bits = {self.act_bits}", "4 or 8")

    def cap16(self, device: str) -> int:
        """The largest budget of a device in sixteenths of a bit."""
        return int(self.budgets.get(device, 8) * 16)

    @property
    def settings(self) -> Settings:
        """The part that every device of the run shares, as it travels."""
        return Settings(
            batch=self.batch,
            micro_batch=self.micro_batch,
            act_bits=self.act_bits,
            guard=self.guard,
            momentum=self.momentum,
            crop=self.crop,
            flip=self.flip,
            decay_bn=self.decay_bn,
            recompute=self.recompute,
        )

    def rate(self, round_no: int) -> float:
        """Learning rate of a round (1..rounds)."""
        if self.schedule == "constant" or self.rounds == 1:
            return self.lr
        done = (round_no - 1) / self.rounds
        share = 1 - done if self.schedule == "linear" else (1 + math.cos(math.pi * done)) / 2
        return self.lr_final + (self.lr - self.lr_final) * share

    def to_dict(self) -> dict[str, Any]:
        """As JSON-able values."""
        return {**dataclasses.asdict(self), "budgets": dict(self.budgets)}

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> RunConfig:
        """From JSON values; ConfigError names an unknown key or one of the wrong type."""
        known = {item.name: item for item in dataclasses.fields(cls)}
        for key, value in values.items():
            if key not in known:
                raise ConfigError(f"unknown key {key!r} in the run's configuration")
            if key == "budgets":
                if not isinstance(value, dict) or not all(type(v) in {int, float} for v in value.values()):
                    raise ConfigError("budgets in the run's configuration must map device names to bits")
                continue
            default = known[key].default
            kinds: tuple[type, ...] = (int, type(None)) if key == "micro_batch" else (type(default),)
            if isinstance(default, float):
                kinds = (int, float)
            if not isinstance(value, kinds) or (isinstance(value, bool) and bool not in kinds):
                raise ConfigError(f"{key} = {value!r} in the run's configuration is of the wrong type")
        return cls(**values)


_RANGES: dict[str, tuple[float, float]] = {
    "rounds": (1, 1_000_000),
    "seed": (0, 2**32 - 1),
    "min_devices": (1, 1_000_000),
    "per_round": (0, 1_000_000),
    "over_selection": (0, 400),
    "quorum_percent": (1, 100),
    "deadline_s": (0.001, 30 * 86400),
    "extensions": (0, 1_000_000),
    "late_rounds": (0, 64),
    "abort_percent": (1, 100),
    "retries": (0, 8),
    "epochs": (1, 1000),
    "batch": (1, 4096),
    "micro_batch": (1, 4096),
    "guard": (0, 7),  # as in `Settings`
    "momentum_q15": (0, 32767),
    "server_momentum_q15": (0, 32767),
    "lr": (0, 1024),
    "lr_final": (0, 1024),
    "weight_decay": (0, 1),
    "lasso": (0, 1024),
    "prune_density": (0, 1),
    "eval_bits": (1, 8),
    "eval_every": (1, 1_000_000),
    "trim_percent": (0, 49),
    "quarantine_after": (0, 1_000_000),
    "quarantine_rounds": (1, 1_000_000),
}
_NAMES: dict[str, tuple[str, ...]] = {
    "policy": tuple(POLICIES),
    "schedule": ("cosine", "linear", "constant"),
    "scale": ("max", "mse"),
    "rounding": ("nearest", "stochastic"),
    "aggregation": ("models", "changes"),
    "robust": ("none", "clip", "trimmed", "median", "referee"),
    "weighting": ("samples-bits", "samples"),
}
