"""A full-precision client: the agent (`edge_runtime.agent`) with ONNX Runtime training in place of the integer core."""

from __future__ import annotations

import json
import os
import platform
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar, TypeAlias

import fedmpq
from fedmpq.edge_runtime import memory
from fedmpq.edge_runtime.agent import Agent, Options
from fedmpq.edge_runtime.ort import bundle as bundles
from fedmpq.edge_runtime.ort import engine as engines
from fedmpq.edge_runtime.ort import trial
from fedmpq.edge_runtime.ort.assignment import FloatAssignment
from fedmpq.edge_runtime.ort.bundle import Bundle
from fedmpq.edge_runtime.profile import TRIAL_TIMEOUT_S, timed_out
from fedmpq.edge_runtime.protocol import CoordState, FloatJob, FloatPlan, FloatProfile, Job, PlanMessage
from fedmpq.edge_runtime.store import Store
from fedmpq.edge_runtime.trainer import Samples
from fedmpq.edge_runtime.transport import Transport
from fedmpq.errors import CoreError

#: (bundle file, batch, threads) -> step_bytes (None: the trial was killed), peak_bytes, engine.
FloatTrial: TypeAlias = Callable[[Path, int, int], dict[str, Any]]


class Program:
    """A bundle as the agent sees a program: what it takes, and its name."""

    def __init__(self, data: bytes) -> None:
        self.bundle: Bundle = bundles.parse(data)
        self.in_shape, self.classes, self.sha256 = self.bundle.in_shape, self.bundle.classes, self.bundle.sha256


class Binding:
    """Stands where the agent expects the core binding."""

    Program = Program


class FloatAgent(Agent):
    """One device of a fleet that trains in full precision. Arguments as `Agent`, without a core."""

    job_type: ClassVar[type[Job | FloatJob]] = FloatJob
    plan_type: ClassVar[type[PlanMessage | FloatPlan]] = FloatPlan

    def __init__(
        self,
        options: Options,
        transport: Transport,
        store: Store,
        samples: Samples,
        *,
        trial: FloatTrial | None = None,
        **named: Any,
    ) -> None:
        engines.runtime()  # a missing package is said before anything is connected
        super().__init__(options, transport, store, samples, Binding, **named)
        self._trial = trial or trial_in_child
        self._engine: engines.Engine | None = None
        self._idle = memory.status("VmRSS")
        self._step_bytes = 0

    def _make_profile(self, coord: CoordState) -> FloatProfile:
        job, limits = coord.job, self.options.limits
        assert isinstance(job, FloatJob)
        found = memory.measure(limits.memory)
        result = self._trial(self._store.directory / "blobs" / job.bundle, job.batch, limits.threads)
        self._step_bytes = result["step_bytes"] or 0
        self._engine = None
        return FloatProfile(
            device=self.options.device,
            run=coord.run,
            bundle=job.bundle,
            samples=self._samples.count,
            budget_bytes=found.budget,
            limit_source=found.source,
            ram_bytes=found.ram,
            available_bytes=found.available,
            cgroup_bytes=found.cgroup,
            step_bytes=result["step_bytes"],
            peak_bytes=result["peak_bytes"],
            machine=platform.machine()[:400],
            engine=result["engine"],
            cpus=max(1, len(os.sched_getaffinity(0))),
            threads=limits.threads,
            version=fedmpq.__version__,
        )

    def _blobs_of(self, plan: Any) -> set[str]:
        return {plan.bundle, plan.state}

    def _assign(self, plan: Any) -> FloatAssignment:
        bundle = self._program.bundle
        if self._engine is None or self._engine.bundle.sha256 != bundle.sha256:
            self._engine = engines.Engine(bundle, self.options.limits.threads)
        return FloatAssignment(
            plan, bundle, self._engine, self._store, self._samples, self.options.limits, self._step_bytes, self._idle
        )


def trial_in_child(path: Path, batch: int, threads: int) -> dict[str, Any]:
    """`trial.measure` in a child process; one that was killed for memory has no `step_bytes`.

    Raises:
        CoreError: it failed for another reason, or took too long.
    """
    request = json.dumps({"bundle": str(path), "batch": batch, "threads": threads})
    command = [sys.executable, "-m", "fedmpq.edge_runtime.ort.trial", request]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=TRIAL_TIMEOUT_S, check=False)
    except subprocess.TimeoutExpired:
        raise timed_out() from None
    if done.returncode == -signal.SIGKILL:
        return {"step_bytes": None, "peak_bytes": 0, "engine": engines.version()}
    if done.returncode:
        lines = done.stderr.strip().splitlines() or [f"exit code {done.returncode}"]
        raise CoreError(f"the trial step failed: {lines[-1][-400:]}")
    result: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return result


def trial_in_process(path: Path, batch: int, threads: int) -> dict[str, Any]:
    """The same without a child process, for simulation and tests."""
    return trial.measure(path, batch, threads)
