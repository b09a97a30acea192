"""Pictures of results: accuracy by round, and the fleet's bits by layer and round. Needs matplotlib (an extra)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from fedmpq.errors import MissingExtraError

#: Colours that stay apart for colour-blind readers (Okabe and Ito).
_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000", "#999999")


def accuracy(path: Path, title: str, panels: Mapping[str, Mapping[str, Sequence[Mapping[str, Any]]]]) -> None:
    """Accuracy of the global model by round, one panel a setting; a system has the same colour in all of them.

    Args:
        path: of the PNG.
        title: above the picture.
        panels: rounds (with "round" and "accuracy") by system, by the panel's title.

    Raises:
        MissingExtraError: matplotlib is not installed.
    """
    plt = _pyplot()
    size = (8, 5.4) if len(panels) == 1 else (1 + 3.4 * len(panels), 4.6)
    figure, row = plt.subplots(1, len(panels), figsize=size, layout="constrained", squeeze=False, sharey=True)
    labels = list(dict.fromkeys(label for curves in panels.values() for label in curves))
    lines = {}
    for axes, (name, curves) in zip(row[0], panels.items(), strict=True):
        for label, rounds in curves.items():
            points = [(line["round"], line["accuracy"]) for line in rounds if line["accuracy"] is not None]
            turn, colour = divmod(labels.index(label), len(_COLOURS))
            style = ("-", "--", ":")[turn % 3]
            (lines[label],) = axes.plot(*zip(*points, strict=True), style, color=_COLOURS[colour], lw=1.6)
        axes.set(xlabel="round", title=name)
        axes.xaxis.get_major_locator().set_params(integer=True)
        axes.grid(alpha=0.3)
    row[0][0].set_ylabel("accuracy, %")
    figure.suptitle(title)
    columns = min(len(labels), 3 if len(panels) == 1 else 2 * len(panels) + 1)
    figure.legend(list(lines.values()), list(lines), loc="outside lower center", ncols=columns, fontsize="small")
    _save(plt, figure, path)


def by_epochs(path: Path, title: str, series: Mapping[str, Sequence[tuple[int, float]]]) -> None:
    """Final accuracy against the number of local epochs (Figure 2).

    Args:
        path: of the PNG.
        title: above the picture.
        series: (epochs, accuracy) by label.

    Raises:
        MissingExtraError: matplotlib is not installed.
    """
    plt = _pyplot()
    figure, axes = plt.subplots(figsize=(7, 4.5), layout="constrained")
    for index, (label, points) in enumerate(series.items()):
        axes.plot(*zip(*sorted(points), strict=True), "o-", color=_COLOURS[index % len(_COLOURS)], label=label, lw=1.8)
    axes.set(xlabel="local epochs of a round", ylabel="accuracy, %", title=title)
    axes.xaxis.get_major_locator().set_params(integer=True)
    axes.grid(alpha=0.3)
    axes.legend(fontsize="small", loc="lower right")
    _save(plt, figure, path)


def bits(path: Path, title: str, layers: Sequence[str], runs: Mapping[str, Sequence[Mapping[str, Any]]]) -> None:
    """Mean bits of the devices by layer (down) and round (across), one panel a run.

    Args:
        path: of the PNG.
        title: above the picture.
        layers: names.
        runs: rounds (with "devices", each with "bits" per layer) by label.

    Raises:
        MissingExtraError: matplotlib is not installed.
    """
    plt = _pyplot()
    height = 1.2 + 0.2 * len(layers)
    figure, panels = plt.subplots(
        1, len(runs), figsize=(1.8 + 3.2 * len(runs), height), layout="constrained", squeeze=False, sharey=True
    )
    image = None
    for panel, (label, rounds) in zip(panels[0], runs.items(), strict=True):
        table = mean_bits(rounds).T
        image = panel.imshow(table, aspect="auto", vmin=1, vmax=8, cmap="viridis", interpolation="nearest")
        panel.set(title=label, xlabel="round")
        ticks = sorted({0, table.shape[1] // 2, table.shape[1] - 1})
        panel.set_xticks(ticks, [str(rounds[tick]["round"]) for tick in ticks])
        panel.set_yticks(range(len(layers)), layers, fontsize="x-small")
    figure.suptitle(title)
    if image is not None:
        figure.colorbar(image, ax=panels[0], label="bits, mean over devices")
    _save(plt, figure, path)


def of_runs(out: Path, title: str, runs: Sequence[Mapping[str, Any]]) -> None:
    """accuracy.png of several strategies on one setting, and bits.png of those that mix bit-widths."""
    accuracy(out / "accuracy.png", title, {"": {run["strategy"]: run["rounds"] for run in runs}})
    mixed = [run for run in runs if is_mixed(run)]
    if mixed:
        layers = [layer["name"] for layer in mixed[0]["layers"]]
        bits(out / "bits.png", title, layers, {run["strategy"]: run["rounds"] for run in mixed})


def is_mixed(run: Mapping[str, Any]) -> bool:
    """Whether any device of an integer run had layers of different bits."""
    return bool(run["layers"]) and any(
        len(set(device["bits"])) > 1 for row in run["rounds"] for device in row["devices"]
    )


def mean_bits(rounds: Sequence[Mapping[str, Any]]) -> np.ndarray[Any, np.dtype[np.float64]]:
    """Bits [rounds, layers] meaned over the devices that trained."""
    return np.array([np.mean([d["bits"] for d in row["devices"] if d.get("bits")], axis=0) for row in rounds])


def available() -> bool:
    """Whether matplotlib is there."""
    try:
        _pyplot()
    except MissingExtraError:
        return False
    return True


def _pyplot() -> Any:
    try:
        import matplotlib as mpl
    except ImportError:
        raise MissingExtraError("matplotlib", "simulate") from None
    mpl.use("Agg")
    import matplotlib.pyplot as plt

    return plt


def _save(plt: Any, figure: Any, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=130)
    plt.close(figure)
