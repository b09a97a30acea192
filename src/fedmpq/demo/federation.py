"""One run of the demo: data cut into shards, memory limits from the planner, then rounds over a real broker."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from time import monotonic
from typing import Any, TypeAlias

from fedmpq.coordinator import admission, evaluate, service, source, status
from fedmpq.coordinator.broker import find_mosquitto
from fedmpq.coordinator.config import RunConfig
from fedmpq.coordinator.engine import Engine
from fedmpq.coordinator.run_state import RunState
from fedmpq.coordinator.source import Source
from fedmpq.data import dirichlet, load, write_split
from fedmpq.demo.fleet import Fleet, Member
from fedmpq.demo.scenario import BUDGETS, Scenario
from fedmpq.edge_runtime.shard import Shard

Watch: TypeAlias = Callable[[RunState], AbstractContextManager[Callable[[RunState], object]]]
FLEET = "demo"


@dataclass(frozen=True)
class Stage:
    """What the runs of a demo share.

    Attributes:
        scenario: data, model and choices.
        source: the compiled model with its first weights.
        members: the four devices.
        samples: training images of each device.
        test, round_test: shards of all test images and of those that judge each round.
        folder: working folder.
    """

    scenario: Scenario
    source: Source
    members: tuple[Member, ...]
    samples: tuple[int, ...]
    test: Path
    round_test: Path
    folder: Path


def prepare(scenario: Scenario, alpha: float, seed: int, folder: Path, report: Any = None) -> Stage:
    """Load the data, divide it by a Dirichlet(alpha) over classes, compile the model, compute the memory limits."""
    dataset = load(scenario.data, seed=seed, report=report).limit(train=scenario.train_images, seed=seed)
    parts = dirichlet(dataset.train.labels, len(BUDGETS), alpha, seed=seed)
    folder.mkdir(parents=True, exist_ok=True)
    test, round_test = folder / "test.shard", folder / "round-test.shard"
    write_split(test, dataset, dataset.test)
    write_split(round_test, dataset, dataset.limit(test=scenario.round_test_images, seed=seed).test)
    with Shard(test) as shard:
        model = source.of_model(scenario.model, shard, bytes(dataset.mean), crop_pad=scenario.crop_pad, seed=seed)
    config = config_of(scenario, "fedmpq", seed)
    members = []
    limits = memory_limits(model, config)
    for part, bits, limit in zip(parts, BUDGETS, limits, strict=True):
        shard_file = folder / f"client-{part.client}.shard"
        write_split(shard_file, dataset, dataset.train.take(part.indices))
        members.append(Member(f"device-{bits}", shard_file, limit))
    samples = tuple(len(part.indices) for part in parts)
    return Stage(scenario, model, tuple(members), samples, test, round_test, folder)


def memory_limits(model: Source, config: RunConfig) -> tuple[int, ...]:
    """Bytes of an arena with every layer at each of `BUDGETS` bits, and an eighth of a plane in every layer more."""
    plan_bytes = admission.planner_of(model.program, config.settings)
    layers = len(model.layout.layers)
    uniform = [plan_bytes((bits,) * layers) for bits in range(1, 9)]
    return tuple(uniform[bits - 1] + (uniform[-1] - uniform[0]) // 7 // 8 for bits in BUDGETS)


def config_of(scenario: Scenario, strategy: str, seed: int) -> RunConfig:
    """The configuration of a run of the demo."""
    return service.make_config(strategy, {"run": strategy, "seed": seed, **scenario.run})


def federate(stage: Stage, strategy: str, seed: int, watch: Watch, say: Callable[[str], object]) -> dict[str, Any]:
    """Run all rounds of one strategy and judge its last model on all test images.

    Returns:
        `accuracy` in percent, `seconds`, and `rounds` with the devices' bits and bytes.

    Raises:
        NetworkError: no broker; RoundError: a device or the run failed.
    """
    began = monotonic()
    folder = stage.folder / strategy
    config = config_of(stage.scenario, strategy, seed)
    with Shard(stage.round_test) as round_test, Shard(stage.test) as test:
        where = service.Where(
            fleet=FLEET, port=0, security=stage.folder / "security", insecure=find_mosquitto() is None
        )
        running = service.Service(folder, config, stage.source, round_test, where, say=say)
        try:
            with (
                Fleet(list(stage.members), running.url, FLEET, folder / "devices", running.enrolment) as fleet,
                watch(running.run) as changed,
            ):
                running.serve(stop=fleet.check, changed=changed, linger_s=1.0)
            found = status.status(running.run.journal)
            judge = evaluate.TestSet(Engine("core", stage.source.program), config, test)
            bits = [config.eval_bits] * len(stage.source.layout.layers)
            final = judge.judge(running.run.model(found["rounds"][-1]["model"]), bits)
        finally:
            running.close()
    return {
        "strategy": strategy,
        "accuracy": final["accuracy"],
        "loss": final["loss"],
        "test_images": final["count"],
        "seconds": round(monotonic() - began, 1),
        "rounds": [_round(row, stage) for row in found["rounds"]],
    }


def _round(row: dict[str, Any], stage: Stage) -> dict[str, Any]:
    limits = {member.name: member.memory_limit for member in stage.members}
    devices = [
        {
            "device": device["device"],
            "state": device["state"],
            "limit_bytes": limits[device["device"]],
            "budget_bits": device["budget_bits"],
            "bits": round(average(device["bits"], stage.source.layout.thetas), 3),
            "layer_bits": device["bits"],
            "layer_bits_after": device["final_bits"],
            "samples": device["samples"],
            "planned_bytes": device["planned_bytes"],
            "measured_bytes": device["measured_bytes"],
            "bytes_up": device["bytes_up"],
            "bytes_down": device["bytes_down"],
        }
        for device in row["devices"]
    ]
    keys = ("round", "accuracy", "loss", "accepted", "bytes_up", "bytes_down")
    return {**{key: row[key] for key in keys}, "seconds": round(row["seconds"] or 0.0, 2), "devices": devices}


def average(bits: Sequence[int], thetas: Sequence[int]) -> float:
    """Average magnitude bits of a weight."""
    return sum(n * theta for n, theta in zip(bits, thetas, strict=True)) / sum(thetas)


__all__ = ["Stage", "config_of", "federate", "memory_limits", "prepare"]
