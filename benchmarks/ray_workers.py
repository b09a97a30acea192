"""The same simulation in this process and on local Ray clusters of 1 and 2 workers: models and throughput.

    python benchmarks/ray_workers.py --out ray-workers.json

`same_bytes` says whether every round's global model has the same SHA-256 in all runs.
"""

from __future__ import annotations

import argparse
import json
import os
import shlex
import sys
import tempfile
from pathlib import Path
from time import monotonic

from fedmpq.coordinator import source
from fedmpq.coordinator.ray_engine import RayEngine
from fedmpq.coordinator.simulate import Simulation
from fedmpq.experiments.run import config_of
from fedmpq.experiments.setting import Setting, prepare


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--data", default="digits")
    parser.add_argument("--model", default="resnet8")
    parser.add_argument("--clients", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--epochs", type=int, default=4)
    parser.add_argument("--workers", default="0,1,2", help="0 for no Ray")
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args()
    setting = Setting(
        data=options.data, model=options.model, clients=options.clients, alpha=None, rounds=options.rounds,
        epochs=options.epochs,
    )  # fmt: skip
    prepared = prepare(setting)
    config = config_of("fedmpq", prepared, {"eval_every": options.rounds})
    images = sum(samples.count for samples in prepared.fleet.values()) * options.epochs * options.rounds
    runs = []
    for workers in map(int, options.workers.split(",")):
        cluster = RayEngine("local", workers) if workers else None
        mean, test = bytes(prepared.dataset.mean), prepared.judged
        origin = source.of_model(options.model, test, mean, crop_pad=prepared.crop_pad, seed=setting.seed)
        with tempfile.TemporaryDirectory() as folder:
            simulation = Simulation(
                Path(folder), config, origin, prepared.fleet, test, workers=workers or 1, cluster=cluster
            )
            began = monotonic()
            rounds = simulation.play()["rounds"]
            seconds = monotonic() - began
            simulation.close()
        if cluster is not None:
            cluster.close()
        runs.append(
            {
                "engine": "ray" if workers else "threads",
                "workers": workers or 1,
                "seconds": round(seconds, 2),
                "images_per_second": round(images / seconds),
                "models": [row["model"] for row in rounds],
            }
        )
        print(f"{runs[-1]['engine']} {runs[-1]['workers']}: {runs[-1]['images_per_second']} images/s", file=sys.stderr)
    result = {
        "command": "python benchmarks/ray_workers.py " + shlex.join(sys.argv[1:]),
        "cpus": len(os.sched_getaffinity(0)),
        "load_average_before": round(os.getloadavg()[1], 1),
        "same_bytes": len({json.dumps(run["models"]) for run in runs}) == 1,
        "runs": runs,
    }
    options.out.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
