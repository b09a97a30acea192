"""One system on one prepared setting, to a result that is plain values."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fedmpq.coordinator import kinds, source, strategies
from fedmpq.coordinator.attacks import Attack
from fedmpq.coordinator.config import RunConfig
from fedmpq.coordinator.float_rounds import FloatRun
from fedmpq.coordinator.service import make_config
from fedmpq.coordinator.simulate import Simulation
from fedmpq.errors import ConfigError, UsageError
from fedmpq.experiments.setting import Prepared, claim

if TYPE_CHECKING:
    from fedmpq.coordinator.ray_engine import RayEngine

#: progress(description, total) as a context that yields a function of the number of trainings done.
Progress = Callable[[str, int | None], AbstractContextManager[Callable[[int], None]]]

#: A simulation has no clock to hurry it.
_DEADLINE_S = 86400.0 * 30


def config_of(name: str, prepared: Prepared, settings: Mapping[str, Any], *, paper_literal: bool = False) -> RunConfig:
    """The run's configuration: what the strategy sets, then the setting, then single keys.

    Raises:
        ConfigError: unknown strategy or key, a value out of range, or one that this setting cannot keep to.
    """
    if "strategy" in settings:  # its keys would not come along
        raise ConfigError(f"strategy = {settings['strategy']!r}", "the strategy is chosen by --strategy")
    setting = prepared.setting
    values: dict[str, Any] = {
        "run": name, "rounds": setting.rounds, "epochs": setting.epochs, "batch": setting.batch, "lr": setting.lr,
        "seed": setting.seed, "budgets": dict(prepared.caps), "min_devices": len(prepared.fleet),
        "eval_budgets": False, "deadline_s": _DEADLINE_S,
    }  # fmt: skip
    config = make_config(name, {**values, **settings}, paper_literal=paper_literal)
    if name in strategies.FLOAT_STRATEGIES:
        kinds.check_float(config, simulated=True)
    if config.robust == "referee" and prepared.referee is None:
        raise ConfigError('robust = "referee" needs images to judge with', "--referee COUNT keeps some for it")
    if config.min_devices > len(prepared.fleet):
        raise ConfigError(f"min_devices = {config.min_devices} exceeds the {len(prepared.fleet)} clients")
    return config


def run(
    name: str,
    prepared: Prepared,
    folder: Path,
    *,
    settings: Mapping[str, Any] | None = None,
    paper_literal: bool = False,
    engine: str = "core",
    workers: int = 0,
    ray: str = "",
    progress: Progress,
    say: Callable[[str], object] = str,
) -> dict[str, Any]:
    """Runs one strategy, or continues it where it was stopped.

    Args:
        name: of the strategy.
        prepared: data and clients.
        folder: of this run's state.
        settings: single keys of its RunConfig.
        paper_literal: quantise, average and allot as the paper prints it.
        engine: "core" or "torch".
        workers: clients trained at a time; 0 for every core.
        ray: address of a Ray cluster to train on, "local" for one started here; empty for this process's threads.
        progress: shows how far it is.
        say: told a line a round.

    Raises:
        ConfigError: the folder holds a run of another configuration (names the key).
    """
    config = config_of(name, prepared, settings or {}, paper_literal=paper_literal)
    claim(folder, prepared.setting)
    if name not in strategies.FLOAT_STRATEGIES:
        found = _integer(config, prepared, folder, engine, workers, ray, progress, say)
    elif ray:
        raise UsageError(f"--ray works with systems that train in integers, not with {name}")
    else:
        found = _float(config, prepared, folder, progress, say)
    rounds = found["rounds"]
    return {
        "strategy": name,
        "config": config.to_dict(),
        "judged_on": prepared.judged_on,
        "final_accuracy": rounds[-1]["accuracy"],
        "bytes_up": sum(row["bytes_up"] for row in rounds),
        "bytes_down": sum(row["bytes_down"] for row in rounds),
        **found,
    }


def _origin(config: RunConfig, prepared: Prepared) -> source.Source:
    pad = prepared.crop_pad if config.crop else 0
    mean = bytes(prepared.dataset.mean)
    return source.of_model(prepared.setting.model, prepared.judged, mean, crop_pad=pad, seed=config.seed)


def _integer(
    config: RunConfig,
    prepared: Prepared,
    folder: Path,
    engine: str,
    workers: int,
    ray: str,
    progress: Progress,
    say: Callable[[str], object],
) -> dict[str, Any]:
    """A system that trains in integers, by the coordinator's own machine."""
    origin = _origin(config, prepared)
    attack = prepared.setting.attack
    cluster = _cluster(ray, workers)
    with progress(f"simulating {config.strategy}", config.rounds * len(prepared.fleet)) as advance:
        simulation = Simulation(
            folder,
            config,
            origin,
            prepared.fleet,
            prepared.judged,
            engine=engine,
            workers=workers,
            attack=None if attack is None else Attack.parse(attack),
            referee=prepared.referee,
            cluster=cluster,
            progress=advance,
            say=say,
        )
        try:
            facts = simulation.play(_reporter(config.strategy, say))
        finally:
            simulation.close()
            if cluster is not None:
                cluster.close()
    last = facts["rounds"][-1]["devices"]
    return {
        "device_bytes": max(device["planned_bytes"] for device in last),
        "least_device_bytes": min(device["planned_bytes"] for device in last),
        "attackers": sorted(simulation.attackers),
        "layers": [{"name": layer.name, "weights": layer.theta} for layer in origin.layout.layers],
        "rounds": facts["rounds"],
    }


def _cluster(ray: str, workers: int) -> RayEngine | None:
    if not ray:
        return None
    from fedmpq.coordinator.ray_engine import RayEngine

    return RayEngine(ray, workers)


def _float(
    config: RunConfig,
    prepared: Prepared,
    folder: Path,
    progress: Progress,
    say: Callable[[str], object],
) -> dict[str, Any]:
    """A full-precision system, in PyTorch."""
    if prepared.setting.attack is not None:
        raise UsageError(f"--attack works with systems that train in integers, not with {config.strategy}")
    origin = _origin(config, prepared)
    module = source.module_of(prepared.setting.model, prepared.judged, config.seed)
    with progress(f"simulating {config.strategy}", config.rounds * len(prepared.fleet)) as advance:
        made = FloatRun(config, module, origin.program, prepared.fleet, prepared.judged, folder, advance)
        rounds = made.play(say)
    memory = made.training_bytes()
    return {"device_bytes": memory, "least_device_bytes": memory, "layers": [], "rounds": rounds}


def _reporter(name: str, say: Callable[[str], object]) -> Callable[[Any], None]:
    """Says a line for every round that is done."""
    told: set[int] = set()

    def tell(run: Any) -> None:
        for row in run.journal.rows("SELECT round, metrics FROM rounds WHERE phase='done' ORDER BY round"):
            if row["round"] not in told:
                told.add(row["round"])
                if row["metrics"]:
                    say(f"{name}, round {row['round']}: {row['metrics']['global']['accuracy']:.2f} %")

    return tell
