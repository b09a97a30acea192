"""`fedmpq demo`: the whole system on one machine, from one command."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import click

from fedmpq.cli._common import emit, example, json_option, note, print_table, progress


@click.command(
    "demo",
    epilog=example("fedmpq demo", "fedmpq demo --data fashion-mnist", "fedmpq demo --data photos.zip --rounds 20"),
)
@click.option(
    "--data",
    default="digits",
    help="digits, fashion-mnist, cifar10, another data set's name, or a folder or archive of images.",
)
@click.option("--model", help="Built-in model or package.module:factory.  [default: resnet8]")
@click.option("--rounds", type=click.IntRange(1, 10_000), help="Rounds of federated training; by default for the data.")
@click.option("--epochs", type=click.IntRange(1, 1000), help="Local epochs of a round; by default for the data.")
@click.option("--train-images", type=click.IntRange(1), help="Training images to use; by default for the data.")
@click.option("--alpha", type=click.FloatRange(1e-3, 1e6), default=0.5, help="Dirichlet concentration: 0.1 is severe.")
@click.option("--seed", type=click.IntRange(0, 2**32 - 1), default=1, help="Fixes every random choice.")
@click.option("--no-aqfl", is_flag=True, help="Leave out the comparison with AQFL.")
@click.option(
    "--out", type=click.Path(path_type=Path, file_okay=False), default=Path("demo-output"), help="Folder for results."
)
@json_option
def command(
    data: str,
    model: str | None,
    rounds: int | None,
    epochs: int | None,
    train_images: int | None,
    alpha: float,
    seed: int,
    no_aqfl: bool,
    out: Path,
    as_json: bool,
) -> None:
    """Run a broker, a coordinator and four devices on real images.

    The devices are processes whose memory limits lead to about 2, 4, 6 and 8 bits a weight. Images are dealt out
    unevenly over classes. Afterwards AQFL runs on the same fleet. Leaves demo.json, demo.png and logs in the folder.
    """
    from fedmpq.cli._fleet_view import watching
    from fedmpq.demo.run import Options, run
    from fedmpq.demo.scenario import scenario_for

    scenario = scenario_for(data)
    asked = {"rounds": rounds, "epochs": epochs}
    changed = {**scenario.run, **{key: value for key, value in asked.items() if value is not None}}
    scenario = replace(
        scenario,
        run=changed,
        model=model or scenario.model,
        train_images=train_images or scenario.train_images,
    )
    result = run(Options(scenario, alpha, seed, not no_aqfl, out), watching, note, progress)
    note(f"written to {out}: demo.json, demo.png, logs")
    emit(result, as_json, _print_result)


def _print_result(result: dict[str, Any]) -> None:
    other = {row["round"]: row["accuracy"] for row in result["aqfl"]["rounds"]} if result["aqfl"] else {}
    rows = [
        [row["round"], row["accuracy"], other.get(row["round"]), row["bytes_up"], row["bytes_down"], row["seconds"]]
        for row in result["rounds"]
    ]
    columns = ["round", "FedMPQ %", "AQFL %", "bytes up", "bytes down", "seconds"]
    print_table(columns, rows, f"{result['model']} on {result['data']}")
    devices = [
        [
            row["device"],
            row["samples"],
            row["limit_bytes"],
            row["planned_bytes"],
            row["measured_bytes"],
            row["bits"],
            " ".join(map(str, row["layer_bits"])),
        ]
        for row in result["rounds"][-1]["devices"]
    ]
    print_table(
        ["device", "images", "memory limit", "planned", "measured", "average bits", "bits by layer"],
        devices,
        "last round",
    )
    compared = "" if result["aqfl_accuracy"] is None else f", AQFL on the same fleet {result['aqfl_accuracy']:.2f} %"
    click.echo(
        f"test accuracy of the global model on {result['test_images']:,} images: "
        f"{result['final_accuracy']:.2f} %{compared} ({result['seconds']:.0f} s)"
    )
