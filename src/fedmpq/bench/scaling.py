"""The core against itself: batches, threads, and what FedMPQ's own work adds to a step."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

from fedmpq.bench import compare, machine
from fedmpq.bench.job import Job


def run(
    job: Job,
    batches: Sequence[int],
    threads: Sequence[int],
    repetitions: int,
    seconds: float,
    advance: Callable[[int], None] = lambda _: None,
) -> dict[str, Any]:
    """The document of `fedmpq bench scaling`.

    Args:
        job: the setting; its batch with one thread is what the others are compared with.
        batches: further batches, with one thread.
        threads: further numbers of threads, at the job's batch.
        repetitions: turns of each.
        seconds: length of a turn.
        advance: told of each turn.
    """
    before = machine.load()
    jobs = jobs_of(job, batches, threads)
    measured = compare.run(jobs, repetitions, seconds, advance)
    base, fedmpq = measured[0], measured[-1]
    basis = compare.time_basis([entry for entry in measured if entry.job.threads == 1])

    def per_sample(entry: compare.Measured) -> float:
        return basis.of(entry) / entry.job.batch

    alone = [entry for entry in measured[:-1] if entry.job.threads == 1]
    return {
        "model": job.model,
        "input": list(job.shape),
        "bits": job.bits,
        "act_bits": job.act_bits,
        "batch": job.batch,
        "time_basis": basis.name,
        "batches": [
            {"batch": entry.job.batch, "ms_per_sample": round(1e3 * per_sample(entry), 5)}
            for entry in sorted(alone, key=lambda entry: entry.job.batch)
        ],
        "batch_spread": round(max(map(per_sample, alone)) / min(map(per_sample, alone)) - 1, 4),
        "threads": [
            {
                "threads": entry.job.threads,
                "step_ms": round(1e3 * entry.seconds, 4),
                "speedup": round(base.seconds / entry.seconds, 4),
            }
            for entry in [base, *(entry for entry in measured if entry.job.threads > 1)]
        ],
        "fedmpq_overhead": round(basis.of(fedmpq) / basis.of(base) - 1, 4),
        "repetitions": repetitions,
        "turn_seconds": seconds,
        "machine": machine.describe(),
        "load_before": before,
        "load_after": machine.load(),
    }


def jobs_of(job: Job, batches: Sequence[int], threads: Sequence[int]) -> list[Job]:
    """The jobs in the order of their turns: the base first, FedMPQ's additions (eq. 11, 13) last."""
    return [
        replace(job, threads=1, lasso=False),
        *(replace(job, batch=batch, threads=1, lasso=False) for batch in batches if batch != job.batch),
        *(replace(job, threads=count, lasso=False) for count in threads if count > 1),
        replace(job, threads=1, lasso=True),
    ]
