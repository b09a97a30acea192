"""Draw the pictures of docs/results.md from benchmarks/results/federated-small.json (needs matplotlib).

python benchmarks/draw_results.py
"""

from __future__ import annotations

import json
from pathlib import Path

from fedmpq.experiments import paper, plots

ROOT = Path(__file__).resolve().parent.parent


def main() -> None:
    """Accuracy by round (means over the seeds), bits by layer and round."""
    runs = json.loads((ROOT / "benchmarks/results/federated-small.json").read_text())["runs"]
    same: dict[str, list[list[float]]] = {}
    for run in runs:
        if not run["strategy"].startswith("ablation-"):
            name = paper.TITLES[run["strategy"].removesuffix("-paper")] + (", literal" if run["paper_literal"] else "")
            same.setdefault(f"{run['column'].split(', ')[-1]}: {name}", []).append(run["accuracy"])
    curves = {
        name + (f" (mean of {len(seeds)})" if len(seeds) > 1 else ""): [
            {"round": number, "accuracy": sum(values) / len(values)}
            for number, values in enumerate(zip(*seeds, strict=True), 1)
        ]
        for name, seeds in sorted(same.items())
    }
    folder = ROOT / "docs" / "figures"
    plots.accuracy(folder / "federated-accuracy.png", "Ten clients, CIFAR-10, ResNet20, small scale", curves)
    mixed = [run for run in runs if any(len(set(row)) > 1 for row in run["layer_bits"])][:3]
    panels = {
        f"{run['row']}, {run['column'].split(', ')[-1]}": [
            {"round": number, "devices": [{"bits": bits}]} for number, bits in enumerate(run["layer_bits"], 1)
        ]
        for run in mixed
    }
    if mixed:
        plots.bits(folder / "federated-bits.png", "Bits by layer and round", mixed[0]["layers"], panels)


if __name__ == "__main__":
    main()
