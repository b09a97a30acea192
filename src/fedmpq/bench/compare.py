"""Several engines side by side: warm, in turns (A B C A B C …), medians."""

from __future__ import annotations

import statistics
import tempfile
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from typing import Any

from fedmpq.bench import machine, macs
from fedmpq.bench.job import ENGINES, Job
from fedmpq.bench.process import Worker, prepare
from fedmpq.edge_runtime import artifact, core


@dataclass(frozen=True)
class Measured:
    """One job's turns.

    Attributes:
        job: what ran.
        turns: median wall seconds of a step in each turn.
        cpu_turns: the same in processor seconds of the process, which other programs do not stretch as much.
        steps: steps timed in all.
        memory_bytes: how far the process grew over its idle size, at most.
        details: what the engine says of itself.
        losses: of the first and of the last step.
        idle_bytes: resident size of the process with its libraries and before the model.
    """

    job: Job
    turns: list[float]
    cpu_turns: list[float]
    steps: int
    memory_bytes: int
    details: dict[str, Any]
    losses: tuple[float, float]
    idle_bytes: int

    @property
    def seconds(self) -> float:
        """Median over turns of a step's wall time."""
        return statistics.median(self.turns)

    @property
    def cpu_seconds(self) -> float:
        """Median over turns of a step's processor time."""
        return statistics.median(self.cpu_turns)

    @property
    def cpu_share(self) -> float:
        """Processor time over wall time: below 1 where other programs took the processor away."""
        return self.cpu_seconds / self.seconds

    def result(self) -> dict[str, Any]:
        """An entry of `results`."""
        return {
            "engine": self.job.engine,
            "images_per_s": round(self.job.batch / self.seconds, 3),
            "step_ms": round(self.seconds * 1e3, 4),
            "memory_bytes": self.memory_bytes,
            "idle_bytes": self.idle_bytes,
            "cpu_ms": round(self.cpu_seconds * 1e3, 4),
            "cpu_share": round(self.cpu_share, 3),
            "batch": self.job.batch,
            "threads": self.job.threads,
            "steps": self.steps,
            "turns_ms": [round(turn * 1e3, 4) for turn in self.turns],
            "first_loss": round(self.losses[0], 4),
            "last_loss": round(self.losses[1], 4),
            **self.details,
        }


@dataclass(frozen=True)
class Basis:
    """Which time ratios are made of."""

    name: str

    def of(self, entry: Measured) -> float:
        """Seconds of a step."""
        return entry.seconds if self.name == "wall" else entry.cpu_seconds


def time_basis(measured: Sequence[Measured]) -> Basis:
    """Wall time on a quiet machine, processor time where other programs took more than a tenth of it away.

    A scheduler interrupts long steps more than short ones, so that wall times of a busy machine would flatter the
    faster engine. Engines with several threads are always compared by wall time.
    """
    alone = all(entry.job.threads == 1 for entry in measured)
    return Basis("processor" if alone and min(entry.cpu_share for entry in measured) < 0.9 else "wall")


def run(
    jobs: Sequence[Job], repetitions: int, seconds: float, advance: Callable[[int], None] = lambda _: None
) -> list[Measured]:
    """Prepares and times all jobs.

    Args:
        jobs: what to run; each gets a process of its own.
        repetitions: turns of each job.
        seconds: length of a turn; at least one step is taken.
        advance: told of each turn.

    Raises:
        BenchError: an engine failed.
    """
    with ExitStack() as stack:
        folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="fedmpq-bench-"))
        placed = [replace(job, folder=folder) for job in jobs]
        for path in {job.file(""): job for job in placed}.values():
            prepare(path)
        return turns(stack, placed, repetitions, seconds, advance)


def turns(
    stack: ExitStack, jobs: Sequence[Job], repetitions: int, seconds: float, advance: Callable[[int], None]
) -> list[Measured]:
    """Loads prepared jobs, each into a process that `stack` ends, and gives them turns."""
    workers = [stack.enter_context(Worker(job)) for job in jobs]
    loaded = [worker.ask("load", job=worker.job.json()) for worker in workers]
    # warm: caches, allocators and frequency; engines whose first step took seconds are warm after it
    for worker, facts in zip(workers, loaded, strict=True):
        if facts["first_step_s"] < 2:
            worker.ask("run", seconds=min(seconds, 1.0))
    wall: list[list[float]] = [[] for _ in jobs]
    cpu: list[list[float]] = [[] for _ in jobs]
    steps, memory, losses = [0] * len(jobs), [0] * len(jobs), [0.0] * len(jobs)
    for _ in range(repetitions):
        for i, worker in enumerate(workers):
            answer = worker.ask("run", seconds=seconds)
            wall[i].append(statistics.median(answer["wall"]))
            cpu[i].append(statistics.median(answer["cpu"]))
            steps[i] += len(answer["wall"])
            memory[i], losses[i] = answer["memory_bytes"], answer["loss"]
            advance(1)
    return [
        Measured(
            job,
            wall[i],
            cpu[i],
            steps[i],
            memory[i],
            loaded[i]["details"],
            (loaded[i]["loss"], losses[i]),
            loaded[i]["idle_bytes"],
        )
        for i, job in enumerate(jobs)
    ]


def train(
    job: Job,
    against: Sequence[str],
    repetitions: int,
    seconds: float,
    advance: Callable[[int], None] = lambda _: None,
) -> dict[str, Any]:
    """The document of `fedmpq bench train`: the core, its peers and the machine's int8 peak in one run.

    Args:
        job: the core's job; peers run the same model, batch and threads.
        against: names of peers.
        repetitions: turns of each engine.
        seconds: length of a turn.
        advance: told of each turn.
    """
    before = machine.load()
    names = ["fedmpq", *against, "peak"]
    with tempfile.TemporaryDirectory(prefix="fedmpq-bench-") as folder, ExitStack() as stack:
        jobs = [replace(job, engine=name, folder=folder) for name in names]
        jobs[-1] = replace(jobs[-1], threads=1)
        for each in jobs:
            prepare(each)
        program = core.Program(artifact.read(jobs[0].file(".fmpq")).program)
        *measured, peak = turns(stack, jobs, repetitions, seconds, advance)
    ours = measured[0]
    basis = time_basis([*measured, peak])
    rate = peak.details["macs"] / basis.of(peak)
    done = macs.step(program) * job.batch / basis.of(ours)
    return {
        "model": job.model,
        "input": list(job.shape),
        "bits": job.bits,
        "act_bits": job.act_bits,
        "batch": job.batch,
        "threads": job.threads,
        "momentum": job.momentum,
        "isa": peak.details["isa"],
        "results": [entry.result() for entry in measured],
        "ratio_vs": {
            ENGINES[entry.job.engine][1]: round(basis.of(entry) / basis.of(ours), 4) for entry in measured[1:]
        },
        "ratio_basis": basis.name,
        "macs_per_sample": macs.step(program),
        "peak_macs_per_s": round(rate),
        "peak_fraction": round(done / (rate * job.threads), 4) if rate else None,
        "repetitions": repetitions,
        "turn_seconds": seconds,
        "machine": machine.describe(),
        "load_before": before,
        "load_after": machine.load(),
    }
