"""Draw the pictures of docs/results.md from benchmarks/results/federated-*.json (needs matplotlib).

python benchmarks/draw_results.py
"""

from __future__ import annotations

import json
from pathlib import Path
from statistics import fmean
from typing import Any

from fedmpq.experiments import paper, plots

ROOT = Path(__file__).resolve().parent.parent


FOLDER = ROOT / "docs" / "figures"

Run = dict[str, Any]


def main() -> None:
    """Accuracy by round (means over the seeds) at both scales, bits by layer and round."""
    small, full = (runs_of(f"federated-{scale}.json") for scale in ("small", "full"))
    draw_accuracy("federated-accuracy.png", "Ten clients, CIFAR-10, ResNet20, small scale (means of the seeds)", small)
    draw_accuracy("federated-full.png", "Ten clients, CIFAR-10, ResNet20, the paper's scale", full)
    draw_bits("federated-bits.png", small)


def runs_of(name: str) -> list[Run]:
    """The runs of whole systems in a results file."""
    path = ROOT / "benchmarks" / "results" / name
    runs: list[Run] = json.loads(path.read_text())["runs"] if path.is_file() else []
    return [run for run in runs if not run["strategy"].startswith("ablation-")]


def draw_accuracy(name: str, title: str, runs: list[Run]) -> None:
    """Accuracy by round, a curve for each system, a panel for each degree of heterogeneity."""
    same: dict[str, dict[str, list[list[float]]]] = {}
    order = list(paper.TITLES)
    for run in sorted(runs, key=lambda run: (run["column"], order.index(run["strategy"]))):
        system = paper.TITLES[run["strategy"].removesuffix("-paper")] + (", literal" if run["paper_literal"] else "")
        same.setdefault(run["column"].split(", ")[-1], {}).setdefault(system, []).append(run["accuracy"])
    panels = {
        column: {
            system: [
                {"round": number, "accuracy": fmean(row)} for number, row in enumerate(zip(*seeds, strict=True), 1)
            ]
            for system, seeds in systems.items()
        }
        for column, systems in same.items()
    }
    if panels:
        plots.accuracy(FOLDER / name, title, panels)


def draw_bits(name: str, runs: list[Run]) -> None:
    """Bits by layer and round of the first three runs that mix them."""
    mixed = [run for run in runs if any(len(set(row)) > 1 for row in run["layer_bits"])][:3]
    panels = {
        f"{run['row']}, {run['column'].split(', ')[-1]}": [
            {"round": number, "devices": [{"bits": bits}]} for number, bits in enumerate(run["layer_bits"], 1)
        ]
        for run in mixed
    }
    if mixed:
        plots.bits(FOLDER / name, "Bits by layer and round", mixed[0]["layers"], panels)


if __name__ == "__main__":
    main()
