"""`fedmpq data`: look at data sets, decode them ahead of time, cut them into shards for devices."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from fedmpq.cli._common import emit, example, human_bytes, json_option, print_table, progress

if TYPE_CHECKING:
    from fedmpq.data import Dataset, Part
    from fedmpq.data.partition import OnEmpty


class ImageSize(click.ParamType[tuple[int, int]]):
    """An option type for sizes such as 32x32 (height x width)."""

    name = "HxW"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[int, int]:
        """Parse HxW into (height, width), each 1..65535."""
        if isinstance(value, tuple):
            return value
        height, _, width = str(value).lower().partition("x")
        if not (height.isdecimal() and width.isdecimal() and 0 < int(height) < 65536 and 0 < int(width) < 65536):
            self.fail(f"{value!r} is no image size; write 32x32", param, ctx)
        return int(height), int(width)


_size_option = click.option("--size", type=ImageSize(), help="Resize image files to this height and width.")
_seed_option = click.option("--seed", type=click.IntRange(0, 2**32 - 1), default=0, help="Fixes every random choice.")
_validation_option = click.option(
    "--validation",
    type=click.FloatRange(min=0),
    default=0,
    help="Number, or share below 1, of training images to hold out for validation.",
)


@click.group(
    epilog=example("fedmpq data info digits", "fedmpq data partition cifar10 --clients 10 --alpha 0.5 --out d")
)
def command() -> None:
    """Import, partition and inspect data sets."""


@command.command("info", epilog=example("fedmpq data info fashion-mnist", "fedmpq data info shards/client-0.shard"))
@click.argument("source")
@_size_option
@json_option
def info(source: str, size: tuple[int, int] | None, as_json: bool) -> None:
    """Show what a data set or a shard holds: sizes, classes, mean, images of each class.

    SOURCE is a name, a folder or archive of images, or a shard.
    """
    if source.endswith(".shard"):
        from fedmpq.edge_runtime.shard import Shard

        with Shard(source) as shard:
            height, width, channels = shard.shape
            counts = [0] * shard.classes
            for label in shard.labels(0, shard.count):
                counts[label] += 1
            facts = {
                "name": shard.name, "height": height, "width": width, "channels": channels, "classes": shard.classes,
                "mean": list(shard.mean), "images": shard.count, "per_class": counts, "sha256": shard.sha256,
                "bytes": shard.path.stat().st_size,
            }  # fmt: skip
        emit(facts, as_json)
        return
    from fedmpq.data import load

    emit(load(source, size=size, report=progress).describe(), as_json, _print_info)


@command.command("import", epilog=example("fedmpq data import photos.zip --size 32x32 --out shards"))
@click.argument("source")
@click.option("--out", type=click.Path(path_type=Path, file_okay=False), required=True, help="Folder for the shards.")
@_size_option
@_validation_option
@_seed_option
@json_option
def import_(source: str, out: Path, size: tuple[int, int] | None, validation: float, seed: int, as_json: bool) -> None:
    """Decode a data set once and write it as one training shard and one test shard.

    SOURCE is digits, keywords (synthetic speech), fashion-mnist, cifar10, cifar100, tiny-imagenet, or a folder or
    archive of images.
    """
    from fedmpq.data import load

    dataset = load(source, size=size, validation=validation, seed=seed, report=progress)
    _write(out, dataset, None, as_json, {"source": source})


@command.command(
    "partition",
    epilog=example(
        "fedmpq data partition digits --clients 4 --alpha 0.5 --out shards",
        "fedmpq data partition cifar10 --clients 10 --iid --out shards",
    ),
)
@click.argument("source")
@click.option("--clients", type=click.IntRange(1, 100_000), required=True, help="Number of clients.")
@click.option("--alpha", type=click.FloatRange(1e-3, 1e6), default=0.5, help="Dirichlet concentration: 0.1 is severe.")
@click.option("--iid", "evenly", is_flag=True, help="Deal images out evenly instead.")
@click.option(
    "--on-empty",
    type=click.Choice(["stop", "drop"]),
    default="stop",
    help="What to do about a client that is left without images.",
)
@click.option("--train-limit", type=click.IntRange(1), help="Use at most so many training images.")
@click.option("--out", type=click.Path(path_type=Path, file_okay=False), required=True, help="Folder for the shards.")
@_size_option
@_validation_option
@_seed_option
@json_option
def partition(
    source: str,
    clients: int,
    alpha: float,
    evenly: bool,
    on_empty: str,
    train_limit: int | None,
    out: Path,
    size: tuple[int, int] | None,
    validation: float,
    seed: int,
    as_json: bool,
) -> None:
    """Divide a data set among clients and write a shard for each.

    SOURCE is digits, keywords (synthetic speech), fashion-mnist, cifar10, cifar100, tiny-imagenet, or a folder or
    archive of images.
    """
    from fedmpq.data import dirichlet, iid, load

    dataset = load(source, size=size, validation=validation, seed=seed, report=progress)
    dataset = dataset.limit(train=train_limit, seed=seed)
    how: OnEmpty = "drop" if on_empty == "drop" else "stop"
    if evenly:
        parts = iid(dataset.train.labels, clients, seed, on_empty=how)
    else:
        parts = dirichlet(dataset.train.labels, clients, alpha, seed, on_empty=how)
    method = {"source": source, "method": "iid" if evenly else "dirichlet", "alpha": None if evenly else alpha}
    _write(out, dataset, parts, as_json, {**method, "clients": clients, "seed": seed})


def _write(out: Path, dataset: Dataset, parts: list[Part] | None, as_json: bool, facts: dict[str, Any]) -> None:
    """Write the shards and print what was written."""
    from fedmpq.data import write_partition

    records = write_partition(out, dataset, parts)
    if parts is not None:
        facts["dropped"] = sorted(set(range(facts["clients"])) - {part.client for part in parts})
    emit({**facts, "shards": records}, as_json, _print_shards)


def _print_info(facts: dict[str, Any]) -> None:
    classes = facts["classes"]
    shown = ", ".join(classes[:10]) + (f", … ({len(classes)})" if len(classes) > 10 else "")
    images = ", ".join(f"{facts[part]:,} {part}" for part in ("train", "validation", "test") if facts[part])
    click.echo(f"{facts['name']}: {images} images of {facts['height']}x{facts['width']}x{facts['channels']}")
    click.echo(f"classes: {shown}")
    click.echo(f"mean of each channel: {', '.join(map(str, facts['mean']))}")
    if len(classes) <= 20:
        rows = zip(classes, facts["train_per_class"], facts["test_per_class"], strict=True)
        print_table(["class", "train", "test"], list(rows))


def _print_shards(facts: dict[str, Any]) -> None:
    rows = [
        [each["file"], each["images"], human_bytes(each["bytes"]), " ".join(map(str, each["per_class"][:20]))]
        for each in facts["shards"]
    ]
    print_table(["shard", "images", "size", "images of each class"], rows)
    if facts.get("dropped"):
        click.echo(f"dropped, left without images: {', '.join(map(str, facts['dropped']))}")
