"""Runs the cells of a preset one after the other into a folder; what is finished there is not run again."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from fedmpq.edge_runtime import container
from fedmpq.errors import ConfigError
from fedmpq.experiments import plots, tables
from fedmpq.experiments.presets import PRESETS, Cell
from fedmpq.experiments.run import Progress, config_of, run
from fedmpq.experiments.setting import Prepared, Setting, prepare, read_document


def play(
    name: str,
    cells: Sequence[Cell],
    out: Path,
    *,
    command: str,
    settings: Mapping[str, Any] | None = None,
    paper_literal: bool = False,
    engine: str = "core",
    workers: int = 0,
    ray: str = "",
    progress: Progress,
    say: Callable[[str], object] = str,
) -> dict[str, Any]:
    """Runs what is missing and writes result.json, table.md and the plots after every cell.

    Args:
        name: of the preset.
        cells: its runs.
        out: folder; one subfolder a run, which an interrupted run is continued from.
        command: as it stands above the table.
        settings: keys for every run, over the preset's own.
        paper_literal: everything as the paper prints it.
        engine: "core" or "torch".
        workers: clients trained at a time; 0 for every core.
        ray: address of a Ray cluster (`run.run`).
        progress: shows how far it is.
        say: told a line a round.

    Returns:
        The document of result.json.

    Raises:
        ConfigError: a finished or interrupted run in the folder has another configuration (names the key).
    """
    prepared: tuple[Setting, Prepared] | None = None
    results: list[dict[str, Any]] = []
    finished: dict[str, dict[str, Any]] = {}
    for cell in cells:
        key = replace(cell.setting, epochs=1, rounds=1)  # neither changes the images
        if prepared is None or prepared[0] != key:
            prepared = key, prepare(cell.setting, progress)
        here = replace(prepared[1], setting=cell.setting)
        keys = {**dict(cell.keys), **(settings or {})}
        path = out / f"{cell.name}.json"
        found = finished.get(cell.name) or _known(path, cell, here, keys, paper_literal)
        if found is None:
            say(f"{cell.name} ({len(results) + 1} of {len(cells)})")
            found = run(
                cell.strategy,
                here,
                out / cell.name,
                settings=keys,
                paper_literal=paper_literal,
                engine=engine,
                workers=workers,
                ray=ray,
                progress=progress,
                say=say,
            )
            found = {"setting": cell.setting.to_dict(), **found}
            _write(path, json.dumps(found, indent=1) + "\n")
        finished[cell.name] = found
        results.append(entry(cell, found, len(here.fleet)))
        document = {"preset": name, "title": PRESETS[name].title, "command": command, "cells": results}
        _write(out / "result.json", json.dumps(document, indent=1) + "\n")
        _write(out / "table.md", tables.markdown(PRESETS[name].title, command, results))
    if plots.available():
        draw(PRESETS[name].title, cells, finished, out)
    else:
        say("no plots: matplotlib is not installed (pip install 'fedmpq[simulate]')")
    return document


def entry(cell: Cell, found: Mapping[str, Any], clients: int) -> dict[str, Any]:
    """A cell's line in result.json."""
    accuracies = [row["accuracy"] for row in found["rounds"]]
    return {
        "cell": cell.name,
        "row": cell.row,
        "column": cell.column,
        "strategy": cell.strategy,
        "seed": cell.setting.seed,
        "printed": cell.printed,
        "final_accuracy": found["final_accuracy"],
        "accuracy": accuracies,
        "clients": clients,
        "rounds": len(accuracies),
        "trainings": tables.trainings(found["rounds"]),
        **{key: found[key] for key in ("judged_on", "bytes_up", "bytes_down", "device_bytes", "least_device_bytes")},
        "layers": [layer["name"] for layer in found["layers"]],
        "layer_bits": plots.mean_bits(found["rounds"]).round(2).tolist() if found["layers"] else [],
    }


def draw(title: str, cells: Sequence[Cell], finished: Mapping[str, Mapping[str, Any]], out: Path) -> None:
    """Pictures of the runs of the first seed.

    accuracy.png of all; bits.png of those whose bits differ by layer; epochs.png where the number of epochs differs.
    """
    first = [cell for cell in cells if cell.setting.seed == cells[0].setting.seed]
    single = len({cell.column for cell in first}) == 1
    labels = {cell.name: cell.row if single else f"{cell.row}, {cell.column}" for cell in first}
    columns: dict[str, dict[str, Any]] = {}
    for cell in first:
        columns.setdefault(cell.column, {})[cell.row] = finished[cell.name]["rounds"]
    plots.accuracy(out / "accuracy.png", title, columns)
    epochs: dict[str, list[tuple[int, float]]] = {}
    for cell in first:
        epochs.setdefault(cell.row, []).append((cell.setting.epochs, finished[cell.name]["final_accuracy"]))
    if len({cell.setting.epochs for cell in first}) > 1:
        plots.by_epochs(out / "epochs.png", title, epochs)
    mixed = [cell for cell in first if plots.is_mixed(finished[cell.name])][:6]
    if mixed:
        names = [layer["name"] for layer in finished[mixed[0].name]["layers"]]
        same = [cell for cell in mixed if len(finished[cell.name]["layers"]) == len(names)]
        plots.bits(out / "bits.png", title, names, {labels[cell.name]: finished[cell.name]["rounds"] for cell in same})


def _known(
    path: Path, cell: Cell, prepared: Prepared, keys: Mapping[str, Any], paper_literal: bool
) -> dict[str, Any] | None:
    """The finished result of a cell, None if there is none; ConfigError if it is of another configuration."""
    if not path.is_file():
        return None
    found = read_document(path, "remove it, and its run is finished again from its folder")
    wanted = {
        **config_of(cell.strategy, prepared, keys, paper_literal=paper_literal).to_dict(),
        **{f"setting.{key}": value for key, value in cell.setting.to_dict().items()},
    }
    old = {**found.get("config", {}), **{f"setting.{key}": value for key, value in found.get("setting", {}).items()}}
    for key, value in wanted.items():
        if old.get(key) != value:
            raise ConfigError(
                f"{path} was run with {key} = {old.get(key)!r}, not {value!r}",
                "start with the same options or choose another --out",
            )
    return found


def _write(path: Path, text: str) -> None:
    container.write_atomic(path, text.encode())
