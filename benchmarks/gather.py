"""Condense what measurements printed into one small file of benchmarks/results.

    python benchmarks/gather.py federated OUT RESULT.json ...     results of `fedmpq simulate --out` (result.json)
    python benchmarks/gather.py centralised OUT RUN.json ...      output of benchmarks/centralised.py
    python benchmarks/gather.py choices OUT NAME=RESULT.json ...  output of `fedmpq simulate --json`, several settings

Later files win where two hold the same run; federated runs and choices that OUT holds already stay. What a run was
made with stays in full; the states of single devices in every round are left out.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

#: Keys of a run's configuration that distinguish our systems.
_METHOD = (
    "policy",
    "lasso",
    "prune_density",
    "scale",
    "aggregation",
    "rounding",
    "server_momentum_q15",
    "weighting",
    "pooled_variance",
)


def federated(documents: list[dict[str, Any]], old: dict[str, Any]) -> dict[str, Any]:
    """One entry a run, of presets and of runs of single strategies alike, added to those of an existing file."""
    runs: dict[str, dict[str, Any]] = {
        f"{entry['cell']}{entry['paper_literal']}": entry for entry in old.get("runs", [])
    }
    for document in documents:
        entries = document["cells"] if "cells" in document else of_strategies(document)
        for entry in entries:
            entry.setdefault("command", document.get("command"))
            entry["paper_literal"] = "--paper-literal" in (entry["command"] or "") or entry["strategy"].endswith(
                "-paper"
            )
            runs[f"{entry['cell']}{entry['paper_literal']}"] = entry
    return {"runs": list(runs.values())}


def of_strategies(document: dict[str, Any]) -> list[dict[str, Any]]:
    """Entries of a document of `fedmpq simulate --strategy`, in the form of a preset's cells."""
    entries = []
    for run in document["runs"]:
        config, rounds = run["config"], run["rounds"]
        last = [device["planned_bytes"] for device in rounds[-1]["devices"] if "planned_bytes" in device]
        memory = run.get("device_bytes")
        images = sum(document["samples"].values())
        command = (
            f"fedmpq simulate --data {document['data']} --model {document['model']} --train {images} "
            f"--rounds {config['rounds']} --epochs {config['epochs']} --alpha {document['alpha']:g} "
            f"--seed {document['seed']} --strategy {run['strategy']}"
        )
        entries.append(
            {
                "cell": f"{document['data']}-a{document['alpha']:g}-k{document['clients']}-e{config['epochs']}-"
                f"{run['strategy']}-s{document['seed']}",
                "row": run["strategy"],
                "column": f"{document['data']}, α = {document['alpha']:g}",
                "strategy": run["strategy"],
                "seed": document["seed"],
                "printed": None,
                "final_accuracy": run["final_accuracy"],
                "accuracy": [row["accuracy"] for row in rounds],
                "clients": document["clients"],
                "rounds": len(rounds),
                "judged_on": document["judged_on"],
                "bytes_up": run["bytes_up"],
                "bytes_down": run["bytes_down"],
                "device_bytes": max(last) if last else memory,
                "least_device_bytes": min(last) if last else memory,
                "layers": [],
                "layer_bits": [],
                "method": {key: config.get(key) for key in _METHOD},
                "command": command,
            }
        )
    return entries


def centralised(documents: list[dict[str, Any]]) -> dict[str, Any]:
    """All runs with their options and epochs."""
    return {"command": "python benchmarks/centralised.py", "runs": documents}


def choices(paths: list[str], old: dict[str, Any]) -> dict[str, Any]:
    """Mean of the last three rounds of each run, added to those of an existing file."""
    runs = {_choice(entry): entry for entry in old.get("runs", [])}
    for named in paths:
        name, _, path = named.rpartition("=")
        document = json.loads(Path(path).read_text())
        for run in document["runs"]:
            last = [row["accuracy"] for row in run["rounds"][-3:]]
            assert document["judged_on"] == "validation"
            method = {key: run["config"].get(key) for key in _METHOD}
            length = f"{run['config']['rounds']} × {run['config']['epochs']}"
            entry = {"name": name, "length": length, "seed": document["seed"], "mean": sum(last) / len(last)}
            sent = run["bytes_up"] // (len(run["rounds"]) * document["clients"])
            entry |= {"alpha": document["alpha"], "bytes_up": sent, "method": method}
            runs[_choice(entry)] = entry
    return {"command": old.get("command", []), "text": old.get("text", []), "runs": list(runs.values())}


def _choice(entry: dict[str, Any]) -> tuple[Any, ...]:
    return entry["name"], entry["length"], entry["alpha"], entry["seed"]


def main() -> None:
    """Read, condense, write."""
    kind, out, *paths = sys.argv[1:]
    old = json.loads(Path(out).read_text()) if Path(out).is_file() else {}
    if kind == "choices":
        Path(out).write_text(json.dumps(choices(paths, old), indent=1, ensure_ascii=False) + "\n")
        return
    documents = [json.loads(Path(path).read_text()) for path in paths]
    made = federated(documents, old) if kind == "federated" else centralised(documents)
    Path(out).write_text(json.dumps(made, indent=1, ensure_ascii=False) + "\n")


if __name__ == "__main__":
    main()
