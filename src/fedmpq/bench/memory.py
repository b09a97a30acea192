"""How far a process grows by training, beside what the planner said."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

from fedmpq.bench import machine
from fedmpq.bench.job import Job
from fedmpq.bench.process import Worker, prepare
from fedmpq.edge_runtime import artifact, core

#: Batches that the arena is planned for. A batch of one works in strips of rows and takes less than the line says.
BATCHES = (2, 4, 8, 16, 32, 64, 128, 256)

_STEPS = 3


def run(jobs: Sequence[Job], against: Sequence[str], advance: Callable[[int], None] = lambda _: None) -> dict[str, Any]:
    """The document of `fedmpq bench memory`.

    Args:
        jobs: the core's jobs, one a batch.
        against: names of peers, run at the same batches.
        advance: told of each process.
    """
    results = []
    fit: dict[str, Any] = {}
    with tempfile.TemporaryDirectory(prefix="fedmpq-bench-") as folder:
        for job in jobs:
            for name in ("fedmpq", *against):
                placed = replace(job, engine=name, folder=folder)
                prepare(placed)
                if not fit:
                    fit = arena(placed)
                results.append(grown(placed))
                advance(1)
    first = jobs[0]
    return {
        "model": first.model,
        "input": list(first.shape),
        "bits": first.bits,
        "act_bits": first.act_bits,
        "momentum": first.momentum,
        "results": results,
        "arena": fit,
        "machine": machine.describe(),
    }


def grown(job: Job) -> dict[str, Any]:
    """Growth of a process that loads a job and takes a few steps."""
    with Worker(job) as worker:
        details = worker.ask("load", job=job.json())["details"]
        answer = worker.ask("run", seconds=600, limit=_STEPS)
    entry = {"engine": job.engine, "batch": job.batch, "memory_bytes": answer["memory_bytes"], **details}
    if job.engine == "fedmpq":
        entry["over_plan_bytes"] = answer["memory_bytes"] - details["planned_bytes"]
    return entry


def arena(job: Job) -> dict[str, Any]:
    """Planned bytes over batches and the straight line through them (least squares of relative deviations)."""
    held = artifact.read(job.file(".fmpq"))
    program = core.Program(held.program)
    plan = core.Plan(**{**held.plan, "bits": tuple(held.plan["bits"]), "micro_batch": None})
    planned = [core.plan_memory(program, replace(plan, batch=batch)).total for batch in BATCHES]
    fixed, slope = line(BATCHES, planned)
    deviation = max(abs(fixed + slope * b - p) / p for b, p in zip(BATCHES, planned, strict=True))
    return {
        "batches": list(BATCHES),
        "planned_bytes": planned,
        "fixed_bytes": round(fixed),
        "bytes_per_sample": round(slope),
        "largest_deviation": round(deviation, 5),
    }


def line(xs: Sequence[float], ys: Sequence[float]) -> tuple[float, float]:
    """Intercept and slope with the least squares of deviations relative to y."""
    weights = [1 / (y * y) for y in ys]
    total = sum(weights)
    x0 = sum(w * x for w, x in zip(weights, xs, strict=True)) / total
    y0 = sum(w * y for w, y in zip(weights, ys, strict=True)) / total
    over = sum(w * (x - x0) * (y - y0) for w, x, y in zip(weights, xs, ys, strict=True))
    slope = over / sum(w * (x - x0) ** 2 for w, x in zip(weights, xs, strict=True))
    return y0 - slope * x0, slope
