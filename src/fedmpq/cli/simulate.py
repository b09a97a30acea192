"""`fedmpq simulate`: federated runs in one process, one or several strategies on the same clients, or a preset."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import click

from fedmpq.cli._common import emit, example, human_bytes, json_option, note, print_table, progress
from fedmpq.cli._models import Numbers
from fedmpq.errors import ConfigError, UsageError


def _from_file(ctx: click.Context, param: click.Parameter, path: Path | None) -> Path | None:
    """Makes the file's values the defaults of the other options; ConfigError names file and key."""
    if path is None:
        return None
    from fedmpq.coordinator.config import read_toml

    values = read_toml(path)
    known = {option.name: option for option in ctx.command.params if option.name != param.name}
    keys = {key.replace("-", "_"): value for key, value in values.items()}
    if "set" in keys:
        table = keys.pop("set")
        if not isinstance(table, dict):
            raise ConfigError(f"configuration {path}: set = {table!r} is no table of a run's keys")
        keys["settings"] = [f"{key}={json.dumps(value)}" for key, value in table.items()]
    for name, key in (("strategy", "names"), ("json", "as_json")):
        if name in keys:
            keys[key] = keys.pop(name)
    for key, value in keys.items():
        if key not in known:
            raise ConfigError(f"configuration {path}: unknown key {key!r}", "see fedmpq simulate --help")
        if isinstance(value, list) and not known[key].multiple:
            keys[key] = ",".join(map(str, value))
        elif known[key].multiple and not isinstance(value, list):
            keys[key] = [value]
    ctx.default_map = {**(ctx.default_map or {}), **keys}
    return path


@click.command(
    "simulate",
    epilog=example(
        "fedmpq simulate --data digits --clients 10 --rounds 5",
        "fedmpq simulate --data cifar10 --model resnet20 --strategy fedmpq --strategy aqfl --train 20000 --rounds 20",
        "fedmpq simulate --preset table1 --scale small --seeds 1,2,3 --out table1",
        "fedmpq simulate --config experiment.toml --out experiment",
    ),
)
@click.option(
    "--config",
    "config_file",
    type=click.Path(path_type=Path, dir_okay=False),
    is_eager=True,
    callback=_from_file,
    help="TOML file with any of these options as keys and a [set] table; the command line wins.",
)
@click.option("--preset", help="A table or figure of the paper: table1, table2, table3, table4, figure2.")
@click.option(
    "--scale", type=click.Choice(["full", "small"]), default="small", help="Preset: the paper's size or ours."
)
@click.option("--seeds", type=Numbers(), default="1", help="Preset: every run once with each of these seeds.")
@click.option("--only", multiple=True, metavar="GLOB", help="Preset: only runs whose name matches; may be repeated.")
@click.option("--paper-literal", is_flag=True, help="Quantise, average and allot as the paper prints it.")
@click.option("--data", default=None, help="Data set: a name, a folder or an archive.  [default: digits]")
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
@click.option("--attack", help="Bad clients, KIND:SHARE[:FACTOR]: label-flip, scale or sign-flip.")
@click.option(
    "--referee", type=click.IntRange(1), help="Training images kept from the clients for --set robust=referee."
)
@click.option("--engine", type=click.Choice(["core", "torch"]), default="core", help="What trains; same bits.")
@click.option("--workers", type=click.IntRange(0), default=0, help="Clients trained at a time; 0 for every core.")
@click.option(
    "--ray",
    is_flag=False,
    flag_value="local",
    metavar="[ADDRESS]",
    help="Train and aggregate on a Ray cluster: its address, or none to start one here.",
)
@click.option("--set", "settings", multiple=True, metavar="KEY=VALUE", help="Any key of a run's configuration.")
@click.option(
    "--out",
    type=click.Path(path_type=Path, file_okay=False),
    help="Keep runs and results here; an interrupted simulation goes on from it. A preset's default is NAME-SCALE.",
)
@json_option
@click.pass_context
def command(ctx: click.Context, /, **options: Any) -> None:
    """Simulate federated runs in one process."""
    from fedmpq.coordinator.service import parse_setting

    keys = dict(parse_setting(text) for text in options["settings"])
    if options["preset"] is None:
        for name in ("scale", "seeds", "only"):
            if ctx.get_parameter_source(name) is click.core.ParameterSource.COMMANDLINE:
                raise UsageError(f"--{name} goes with --preset only")
        _strategies(options, keys)
        return
    _refuse_beside_preset(ctx)
    _preset(options, keys)


def _strategies(options: dict[str, Any], keys: dict[str, Any]) -> None:
    """Every strategy asked for, on one setting."""
    import tempfile

    from fedmpq.edge_runtime import container
    from fedmpq.experiments import plots, tables
    from fedmpq.experiments.run import config_of, run
    from fedmpq.experiments.setting import Setting, prepare

    out: Path | None = options["out"]
    setting = Setting(
        data=options["data"] or "digits",
        alpha=None if options["iid"] else options["alpha"],
        on_empty="drop" if options["drop_empty"] else "stop",
        **{
            key: options[key]
            for key in (
                "model", "clients", "budgets", "rounds", "epochs", "batch", "lr", "train", "test", "validation", "seed",
                "attack", "referee",
            )
        },
    )  # fmt: skip
    prepared = prepare(setting, progress)
    literal = options["paper_literal"]
    for name in options["names"]:
        config_of(name, prepared, keys, paper_literal=literal)  # an unknown name or key stops all before any training
    with tempfile.TemporaryDirectory(prefix="fedmpq-") as scratch:
        runs = [
            run(
                name,
                prepared,
                (out or Path(scratch)) / name,
                settings=keys,
                paper_literal=literal,
                engine=options["engine"],
                workers=options["workers"],
                ray=options["ray"] or "",
                progress=progress,
                say=note,
            )
            for name in options["names"]
        ]
    result = {
        "data": prepared.dataset.name, "model": setting.model, "clients": len(prepared.fleet), "alpha": setting.alpha,
        "seed": setting.seed, "budgets": dict(prepared.caps),
        "samples": {name: samples.count for name, samples in prepared.fleet.items()},
        "judged_on": prepared.judged_on, "engine": options["engine"], "setting": setting.to_dict(), "runs": runs,
    }  # fmt: skip
    if out is not None:
        container.write_atomic(out / "result.json", (json.dumps(result, indent=1) + "\n").encode())
        container.write_atomic(out / "table.md", tables.of_runs(result).encode())
        if plots.available():
            plots.of_runs(out, f"{prepared.dataset.name}, {setting.model}, {len(prepared.fleet)} clients", runs)
    emit(result, options["as_json"], _print)


def _preset(options: dict[str, Any], keys: dict[str, Any]) -> None:
    """A table or figure of the paper."""
    from fnmatch import fnmatchcase

    from fedmpq.experiments.play import play
    from fedmpq.experiments.presets import cells

    name, scale = options["preset"], options["scale"]
    seeds = [int(seed) for seed in options["seeds"]]
    found = cells(name, scale, seeds, [options["data"]] if options["data"] else [])
    patterns = options["only"]
    chosen = [cell for cell in found if not patterns or any(fnmatchcase(cell.name, glob) for glob in patterns)]
    if not chosen:
        raise UsageError(f"--only {' '.join(patterns)} matches no run of {name}", f"for example {found[0].name}")
    words = ["fedmpq simulate", f"--preset {name} --scale {scale} --seeds {','.join(map(str, seeds))}"]
    words += [f"--data {options['data']}"] if options["data"] else []
    words += [f"--only '{glob}'" for glob in patterns]
    words += ["--paper-literal"] if options["paper_literal"] else []
    words += [f"--set {text}" for text in options["settings"]]
    result = play(
        name,
        chosen,
        options["out"] or Path(f"{name}-{scale}"),
        command=" ".join(words),
        settings=keys,
        paper_literal=options["paper_literal"],
        engine=options["engine"],
        workers=options["workers"],
        ray=options["ray"] or "",
        progress=progress,
        say=note,
    )
    emit(result, options["as_json"], _print_preset)


def _refuse_beside_preset(ctx: click.Context) -> None:
    """A preset says what its runs are: an option that would change that must not be ignored silently."""
    free = {"config_file", "preset", "scale", "seeds", "only", "paper_literal", "data", "engine", "workers", "ray"}
    for key in ctx.params:
        if key in free | {"settings", "out", "as_json"}:
            continue
        if ctx.get_parameter_source(key) is not click.core.ParameterSource.DEFAULT:
            option = {"names": "strategy"}.get(key, key).replace("_", "-")
            raise UsageError(f"--{option} cannot be combined with --preset", "choose runs by --only, keys by --set")


def _print(result: dict[str, Any]) -> None:
    print_table(
        ["strategy", "accuracy %", "best %", "up a round", "down a round", "training memory"],
        [
            [
                run["strategy"],
                run["final_accuracy"],
                max((row["accuracy"] for row in run["rounds"] if row["accuracy"] is not None), default=None),
                human_bytes(run["bytes_up"] // len(run["rounds"])),
                human_bytes(run["bytes_down"] // len(run["rounds"])),
                human_bytes(run["device_bytes"]),
            ]
            for run in result["runs"]
        ],
        title=f"{result['data']}, {result['model']}, {result['clients']} clients, judged on {result['judged_on']}",
    )


def _print_preset(result: dict[str, Any]) -> None:
    print_table(
        ["system", "setting", "seed", "accuracy %", "paper %", "up a round", "training memory"],
        [
            [
                cell["row"],
                cell["column"],
                str(cell["seed"]),
                cell["final_accuracy"],
                cell["printed"],
                human_bytes(cell["bytes_up"] // cell["rounds"]),
                human_bytes(cell["device_bytes"]),
            ]
            for cell in result["cells"]
        ],
        title=result["title"],
    )
