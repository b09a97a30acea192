"""The child process: `python -m fedmpq.bench.worker`, one JSON command a line on stdin, one JSON answer a line.

Commands: {"do": "prepare" | "load", "job": {...}}, {"do": "run", "seconds": s}. Whatever a library prints goes to
standard error, so that the answers stay alone on standard output.
"""

from __future__ import annotations

import importlib
import json
import os
import sys
import time
import traceback
from typing import Any

from fedmpq.bench import rss
from fedmpq.bench.engines import Engine
from fedmpq.bench.job import ENGINES, Job


class Worker:
    """Holds the engine between commands."""

    def __init__(self) -> None:
        self.engine: Engine | None = None
        self.idle = 0

    def answer(self, command: dict[str, Any]) -> dict[str, Any]:
        """Carries one command out."""
        if command["do"] == "run":
            return self.run(float(command["seconds"]), int(command.get("limit", 1 << 30)))
        job = Job.parse(command["job"])
        module = importlib.import_module(ENGINES[job.engine][0])
        if command["do"] == "prepare":
            if hasattr(module, "prepare"):
                module.prepare(job)
            return {}
        importing(job.engine)
        self.idle = rss.settle()
        self.engine = module.load(job)
        start = time.perf_counter()
        loss = self.engine.step()
        first = time.perf_counter() - start
        return {"details": self.engine.details(), "first_step_s": first, "loss": loss, "idle_bytes": self.idle}

    def run(self, seconds: float, limit: int) -> dict[str, Any]:
        """Steps for about so long, at least one: wall and processor seconds of each."""
        assert self.engine is not None
        wall: list[float] = []
        cpu: list[float] = []
        loss = 0.0
        end = time.perf_counter() + seconds
        while not wall or (time.perf_counter() < end and len(wall) < limit):
            start, start_cpu = time.perf_counter(), time.process_time()
            loss = self.engine.step()
            cpu.append(time.process_time() - start_cpu)
            wall.append(time.perf_counter() - start)
        return {"wall": wall, "cpu": cpu, "loss": loss, "memory_bytes": rss.peak() - self.idle}


def importing(engine: str) -> None:
    """Loads an engine's libraries, so that they count as the idle process and not as its growth."""
    loaded: list[object] = []
    if engine in {"fedmpq", "peak"}:
        from fedmpq.edge_runtime import artifact, core

        core.isa()
        loaded.append(artifact)
    elif engine == "torch":
        import torch
        import torch.nn.functional

        from fedmpq.export import model

        loaded.append(model)
        torch.zeros(1).add_(1)
    elif engine == "ort-training":
        import numpy as np
        import onnxruntime.training.api

        loaded.extend((np, onnxruntime))
    elif engine == "executorch-delegate":
        from executorch.extension.pybindings import _C

        from fedmpq.export.executorch import library, session

        loaded.extend((_C, session, library.library()))
    elif engine == "onnx":
        import onnxruntime

        from fedmpq.export.onnx_step import engine as graph

        loaded.extend((onnxruntime, graph))
    elif engine == "executorch":
        import executorch.extension.training
        import torch

        loaded.append(executorch)
        torch.zeros(1).add_(1)


def main() -> None:
    """Answers commands until standard input ends."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    worker = Worker()
    for line in sys.stdin:
        try:
            answer = worker.answer(json.loads(line))
        except Exception as problem:  # noqa: BLE001 - whatever a peer throws is reported to the parent
            traceback.print_exc()
            last = str(problem).strip().splitlines() or [""]
            answer = {"error": f"{type(problem).__name__}: {last[0]}"}
        answers.write(json.dumps(answer) + "\n")
        answers.flush()


if __name__ == "__main__":
    main()
