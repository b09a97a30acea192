"""The demo from beginning to end: FedMPQ, then AQFL on the same fleet, one result."""

from __future__ import annotations

import json
import platform
import shutil
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from time import monotonic
from typing import Any

import fedmpq
from fedmpq.demo import plot
from fedmpq.demo.federation import Watch, federate, prepare
from fedmpq.demo.scenario import Scenario
from fedmpq.edge_runtime import core


@dataclass(frozen=True)
class Options:
    """What a user chooses: the scenario, how uneven the data lies, the seed, whether AQFL runs too, and where to."""

    scenario: Scenario
    alpha: float
    seed: int
    aqfl: bool
    out: Path


def run(options: Options, watch: Watch, say: Callable[[str], object], report: Any = None) -> dict[str, Any]:
    """Run the demo and write `demo.json`, `demo.png` and the devices' logs to `options.out`.

    Args:
        options: see there.
        watch: shows a run as it goes.
        say: receives lines of commentary.
        report: progress of loading data (`fedmpq.data.load`).
    """
    began = monotonic()
    options.out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="fedmpq-demo-") as folder:
        work = Path(folder)
        stage = prepare(options.scenario, options.alpha, options.seed, work, report)
        limits = ", ".join(f"{member.memory_limit:,}" for member in stage.members)
        say(f"{options.scenario.model} on {options.scenario.data}: four devices with {limits} bytes for training")
        runs: dict[str, dict[str, Any]] = {}
        try:
            for strategy in ("fedmpq", "aqfl") if options.aqfl else ("fedmpq",):
                say(f"{strategy}: {options.scenario.run['rounds']} rounds")
                runs[strategy] = federate(stage, strategy, options.seed, watch, say)
        finally:
            _keep_logs(work, options.out / "logs")
    mixed, uniform = runs["fedmpq"], runs.get("aqfl")
    result = {
        "data": options.scenario.data,
        "model": options.scenario.model,
        "program": stage.source.layout.program,
        "alpha": options.alpha,
        "seed": options.seed,
        "train_images": sum(stage.samples),
        "test_images": mixed["test_images"],
        "configuration": options.scenario.run,
        "final_accuracy": mixed["accuracy"],
        "aqfl_accuracy": None if uniform is None else uniform["accuracy"],
        "seconds": round(monotonic() - began, 1),
        "machine": {"machine": platform.machine(), "isa": core.isa(), "cpus": _cpus()},
        "version": fedmpq.__version__,
        "devices": [
            {"device": member.name, "limit_bytes": member.memory_limit, "samples": samples}
            for member, samples in zip(stage.members, stage.samples, strict=True)
        ],
        "rounds": mixed["rounds"],
        "aqfl": uniform,
    }
    plot.draw(result, options.out / "demo.png")
    (options.out / "demo.json").write_text(json.dumps(result, indent=1) + "\n")
    return result


def _cpus() -> int:
    import os

    return len(os.sched_getaffinity(0))


def _keep_logs(work: Path, out: Path) -> None:
    """Copy the devices' logs out of the working folder."""
    out.mkdir(parents=True, exist_ok=True)
    for log in work.glob("*/devices/*.log"):
        shutil.copyfile(log, out / f"{log.parent.parent.name}-{log.name}")
