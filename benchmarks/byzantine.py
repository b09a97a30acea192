"""Bad clients against robust rules: collects finished simulations into one JSON document and a table.

    fedmpq simulate --data cifar10 --model resnet20 --train 20000 --test 10000 --rounds 20 --epochs 2 --seed 1 \\
        --attack label-flip:0.2 --referee 300 --set robust=referee --out runs/flip-referee
    python benchmarks/byzantine.py runs/* --out benchmarks/results/byzantine.json

Each argument is the `--out` folder of one `fedmpq simulate`, or a run's own file of a preset. What an attack costs is
the accuracy of the run of the same seed without attack and without a rule, less the run's own.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from fedmpq.coordinator.journal import Journal


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("found", type=Path, nargs="+", metavar="RUN")
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    runs = [collect(path) for path in options.found]
    runs.sort(key=lambda run: (run["seed"], run["attack"] or "", run["rule"]))
    print(table(runs))
    if options.out is not None:
        options.out.write_text(json.dumps({"runs": runs}, indent=1) + "\n")


def collect(path: Path) -> dict[str, Any]:
    """One run: its command, what it reached, and whom the referee left out in which rounds."""
    if path.is_dir():
        result = json.loads((path / "result.json").read_text())
        (run,), setting = result["runs"], result["setting"]
        folder = path / run["strategy"]
    else:
        run = json.loads(path.read_text())
        setting, folder = run["setting"], path.with_suffix("")
    rule = run["config"].get("robust", "none")
    words = ["fedmpq simulate"]
    words += [f"--{key} {setting[key]}" for key in ("data", "model", "train", "test", "rounds", "epochs", "seed")]
    attack = setting.get("attack")
    words += [f"--attack {attack}"] if attack else []
    words += [f"--referee {setting['referee']}"] if setting.get("referee") else []
    words += [f"--set robust={rule}"] if rule != "none" else []
    journal = Journal(folder, read_only=True)
    left_out: dict[str, list[int]] = {}
    for row in journal.rows("SELECT round, device FROM events WHERE kind='left-out' ORDER BY round, device"):
        left_out.setdefault(row["device"], []).append(row["round"])
    journal.close()
    return {
        "command": " ".join(words), "seed": setting["seed"], "attack": attack, "rule": rule,
        "judged_on": run["judged_on"], "attackers": run.get("attackers", []), "accuracy": run["final_accuracy"],
        "curve": [row["accuracy"] for row in run["rounds"]], "left_out": left_out,
    }  # fmt: skip


def table(runs: list[dict[str, Any]]) -> str:
    """The runs as a markdown table."""
    honest = {run["seed"]: run["accuracy"] for run in runs if run["attack"] is None and run["rule"] == "none"}
    lines = ["| seed | attack | rule | accuracy % | cost |", "|---|---|---|---:|---:|"]
    for run in runs:
        cost = f"{honest[run['seed']] - run['accuracy']:.2f}" if run["seed"] in honest else "–"
        lines.append(f"| {run['seed']} | {run['attack'] or 'none'} | {run['rule']} | {run['accuracy']:.2f} | {cost} |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
