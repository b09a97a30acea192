"""`fedmpq simulate`: federated runs in one process, one or several strategies on the same clients."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from fedmpq.cli._common import emit, example, human_bytes, json_option, note, print_table, progress
from fedmpq.cli._models import Numbers
from fedmpq.errors import UsageError

if TYPE_CHECKING:
    from fedmpq.coordinator.config import RunConfig
    from fedmpq.coordinator.samples import ArraySamples
    from fedmpq.data import Dataset


@click.command(
    "simulate",
    epilog=example(
        "fedmpq simulate --data digits --clients 10 --rounds 5",
        "fedmpq simulate --data cifar10 --model resnet20 --strategy fedmpq --strategy aqfl --train 20000 --rounds 20",
    ),
)
@click.option("--data", default="digits", help="Data set: a name, a folder or an archive.")
@click.option("--model", default="resnet8", help="Built-in model or package.module:factory.")
@click.option("--strategy", "names", multiple=True, default=["fedmpq"], help="System to run; may be repeated.")
@click.option("--clients", type=click.IntRange(1, 100_000), default=10, help="Number of clients.")
@click.option("--alpha", type=click.FloatRange(0, min_open=True), default=0.5, help="Dirichlet alpha of the partition.")
@click.option("--iid", is_flag=True, help="Deal the images out evenly instead.")
@click.option("--drop-empty", is_flag=True, help="Leave clients without images out instead of stopping.")
@click.option(
    "--budgets",
    type=Numbers(),
    default="2,2,2,2,4,4,4,6,6,8",
    help="Average bit-widths, repeated over the clients.",
)
@click.option("--rounds", type=click.IntRange(1), default=10, help="Rounds.")
@click.option("--epochs", type=click.IntRange(1, 1000), default=1, help="Local epochs of a round.")
@click.option("--batch", type=click.IntRange(1, 4096), default=64, help="Batch size.")
@click.option("--lr", type=click.FloatRange(0), default=0.1, help="Learning rate of the first round.")
@click.option("--train", type=click.IntRange(1), help="Use at most so many training images.")
@click.option("--test", type=click.IntRange(1), help="Use at most so many test images.")
@click.option(
    "--validation",
    type=click.FloatRange(min=0),
    default=0.0,
    help="Judge on so many (below 1: such a share of) training images held out, not on the test set.",
)
@click.option("--seed", type=click.IntRange(0, 2**32 - 1), default=1, help="Fixes partition, first model, training.")
@click.option("--engine", type=click.Choice(["core", "torch"]), default="core", help="What trains; same bits.")
@click.option("--workers", type=click.IntRange(0), default=0, help="Clients trained at a time; 0 for every core.")
@click.option("--set", "settings", multiple=True, metavar="KEY=VALUE", help="Any key of a run's configuration.")
@click.option(
    "--out",
    type=click.Path(path_type=Path, file_okay=False),
    help="Keep runs and results here; an interrupted simulation goes on from it.",
)
@json_option
def command(
    data: str,
    model: str,
    names: tuple[str, ...],
    clients: int,
    alpha: float,
    iid: bool,
    drop_empty: bool,
    budgets: tuple[float, ...],
    rounds: int,
    epochs: int,
    batch: int,
    lr: float,
    train: int | None,
    test: int | None,
    validation: float,
    seed: int,
    engine: str,
    workers: int,
    settings: tuple[str, ...],
    out: Path | None,
    as_json: bool,
) -> None:
    """Simulate federated runs in one process."""
    import tempfile

    from fedmpq.coordinator.service import parse_setting

    dataset = _load(data, validation, train, test, seed)
    fleet = _partition(dataset, clients, None if iid else alpha, seed, "drop" if drop_empty else "stop")
    caps = {name: float(budgets[number % len(budgets)]) for number, name in enumerate(fleet)}
    values = {
        "rounds": rounds, "epochs": epochs, "batch": batch, "lr": lr, "seed": seed, "budgets": caps,
        "min_devices": len(fleet), "eval_budgets": False, "deadline_s": 86400.0 * 30,
        **dict(parse_setting(text) for text in settings),
    }  # fmt: skip
    judged = dataset.validation if len(dataset.validation) else dataset.test
    runs = []
    with tempfile.TemporaryDirectory(prefix="fedmpq-") as scratch:
        for name in names:
            folder = (out or Path(scratch)) / name
            runs.append(_simulate(name, values, model, dataset, judged, fleet, folder, engine, workers))
    result = {
        "data": dataset.name, "model": model, "clients": len(fleet), "alpha": None if iid else alpha, "seed": seed,
        "budgets": caps, "samples": {name: samples.count for name, samples in fleet.items()},
        "judged_on": "validation" if len(dataset.validation) else "test", "engine": engine, "runs": runs,
    }  # fmt: skip
    if out is not None:
        (out / "result.json").write_text(json.dumps(result, indent=1) + "\n")
    emit(result, as_json, _print)


def _simulate(
    name: str,
    values: dict[str, Any],
    model: str,
    dataset: Dataset,
    judged: Any,
    fleet: dict[str, ArraySamples],
    folder: Path,
    engine: str,
    workers: int,
) -> dict[str, Any]:
    """One strategy on the fleet."""
    from fedmpq.coordinator import source, strategies
    from fedmpq.coordinator.samples import ArraySamples
    from fedmpq.coordinator.service import make_config
    from fedmpq.coordinator.simulate import Simulation

    config = make_config(name, {"run": name, **values})
    if name in strategies.FLOAT_STRATEGIES:
        return _simulate_float(config, model, dataset, judged, fleet, folder)
    test = ArraySamples(judged.images, judged.labels, len(dataset.classes))
    pad = min(16, test.shape[0] // 8) if config.crop else 0
    origin = source.of_model(model, test, bytes(dataset.mean), crop_pad=pad, seed=config.seed)
    with progress(f"simulating {name}", config.rounds * len(fleet)) as advance:
        simulation = Simulation(folder, config, origin, fleet, test, engine=engine, workers=workers, progress=advance)
        try:
            facts = simulation.play(_reporter(name))
        finally:
            simulation.close()
    return {
        "strategy": name,
        "config": config.to_dict(),
        "final_accuracy": facts["last_accuracy"],
        "bytes_up": sum(row["bytes_up"] for row in facts["rounds"]),
        "bytes_down": sum(row["bytes_down"] for row in facts["rounds"]),
        "rounds": facts["rounds"],
    }


def _simulate_float(
    config: RunConfig, model: str, dataset: Dataset, judged: Any, fleet: dict[str, ArraySamples], folder: Path
) -> dict[str, Any]:
    """One full-precision strategy on the fleet."""
    from fedmpq.coordinator import source
    from fedmpq.coordinator.float_rounds import FloatRun
    from fedmpq.coordinator.samples import ArraySamples

    test = ArraySamples(judged.images, judged.labels, len(dataset.classes))
    pad = min(16, test.shape[0] // 8) if config.crop else 0
    origin = source.of_model(model, test, bytes(dataset.mean), crop_pad=pad, seed=config.seed)
    module = source.module_of(model, test, config.seed)
    with progress(f"simulating {config.strategy}", config.rounds * len(fleet)) as advance:
        run = FloatRun(config, module, origin.program, fleet, test, folder, advance)
        rounds = run.play()
    return {
        "strategy": config.strategy,
        "config": config.to_dict(),
        "final_accuracy": rounds[-1]["accuracy"],
        "bytes_up": sum(row["bytes_up"] for row in rounds),
        "bytes_down": sum(row["bytes_down"] for row in rounds),
        "device_bytes": run.training_bytes(),
        "rounds": rounds,
    }


def _reporter(name: str) -> Any:
    """Says a line for every round that is done."""
    told: set[int] = set()

    def tell(run: Any) -> None:
        for row in run.journal.rows("SELECT round, metrics FROM rounds WHERE phase='done' ORDER BY round"):
            if row["round"] not in told:
                told.add(row["round"])
                if row["metrics"]:
                    note(f"{name}, round {row['round']}: {row['metrics']['global']['accuracy']:.2f} %")

    return tell


def _load(data: str, validation: float, train: int | None, test: int | None, seed: int) -> Dataset:
    from fedmpq.data import load

    return load(data, validation=validation, seed=seed, report=progress).limit(train, test, seed)


def _partition(
    dataset: Dataset, clients: int, alpha: float | None, seed: int, on_empty: Any
) -> dict[str, ArraySamples]:
    """Private data by client name."""
    from fedmpq.coordinator.samples import ArraySamples
    from fedmpq.data import dirichlet, iid

    labels = dataset.train.labels
    if clients > len(labels):
        raise UsageError(f"{clients} clients cannot share {len(labels)} images")
    if alpha is None:
        parts = iid(labels, clients, seed, on_empty)
    else:
        parts = dirichlet(labels, clients, alpha, seed, on_empty=on_empty)
    width = len(str(clients - 1))
    return {
        f"client-{part.client:0{width}d}": ArraySamples(
            dataset.train.images[part.indices], labels[part.indices], len(dataset.classes)
        )
        for part in parts
    }


def _print(result: dict[str, Any]) -> None:
    print_table(
        ["strategy", "accuracy %", "best %", "up a round", "down a round"],
        [
            [
                run["strategy"],
                run["final_accuracy"],
                max((row["accuracy"] for row in run["rounds"] if row["accuracy"] is not None), default=None),
                human_bytes(run["bytes_up"] // len(run["rounds"])),
                human_bytes(run["bytes_down"] // len(run["rounds"])),
            ]
            for run in result["runs"]
        ],
        title=f"{result['data']}, {result['model']}, {result['clients']} clients, judged on {result['judged_on']}",
    )
