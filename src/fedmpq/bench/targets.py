"""Every export target of one model beside the native core: files, runtime, memory, time of a step, in one run."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import replace
from typing import Any

from fedmpq.bench import compare, machine
from fedmpq.bench.job import TARGETS, Job
from fedmpq.bench.process import prepare


def run(job: Job, repetitions: int, seconds: float, advance: Callable[[int], None] = lambda _: None) -> dict[str, Any]:
    """The document of `fedmpq bench targets`.

    Args:
        job: the core's job; the other targets train the same model on the same batch.
        repetitions: turns of each target.
        seconds: length of a turn.
        advance: told of each turn.
    """
    before = machine.load()
    with tempfile.TemporaryDirectory(prefix="fedmpq-bench-") as folder, ExitStack() as stack:
        jobs = [replace(job, engine=name, folder=folder) for name in TARGETS]
        for each in jobs:
            prepare(each)
        measured = compare.turns(stack, jobs, repetitions, seconds, advance)
    basis = compare.time_basis(measured)
    ours = measured[0]
    rows = []
    for entry in measured:
        facts = entry.result()
        rows.append(
            {
                "target": entry.job.engine,
                "file_bytes": sum(facts["files"].values()),
                "runtime_bytes": sum(facts["runtime"].values()),
                "times_native": round(basis.of(entry) / basis.of(ours), 3),
                **{key: value for key, value in facts.items() if key != "engine"},
            }
        )
    same = {row["target"]: row["first_loss"] == rows[0]["first_loss"] for row in rows[1:3]}
    return {
        "model": job.model,
        "input": list(job.shape),
        "bits": job.bits,
        "batch": job.batch,
        "threads": job.threads,
        "momentum": job.momentum,
        "targets": rows,
        "same_first_loss": same,
        "ratio_basis": basis.name,
        "repetitions": repetitions,
        "turn_seconds": seconds,
        "machine": machine.describe(),
        "load_before": before,
        "load_after": machine.load(),
    }
