"""A device's profile: what it has and what the run's program takes on it at each bit-width.

The coordinator derives a device's average bit-width from this: the largest whose plan fits the measured budget.
"""

from __future__ import annotations

import json
import logging
import os
import platform
import signal
import subprocess
import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final, TypeAlias

import fedmpq
from fedmpq.edge_runtime import memory, trial
from fedmpq.edge_runtime.protocol import MAX_BITS, PlanSize, Profile, Settings
from fedmpq.edge_runtime.trainer import core_plan
from fedmpq.errors import CoreError

log = logging.getLogger("fedmpq.device")

#: Trial steps of a large model on a small device take their time; a hung child must still end.
TRIAL_TIMEOUT_S: Final = 900

Trials: TypeAlias = tuple[tuple[PlanSize, ...], int]


@dataclass(frozen=True, slots=True)
class Limits:
    """What the user grants training: arena bytes (None: measured) and threads."""

    memory: int | None = None
    threads: int = 1


def trials_in_child(core: Any, program_file: Path, settings: Settings, budget: int, threads: int) -> Trials:
    """The size table by trial steps in a child process, and the child's resident peak in bytes.

    Args:
        core: the core binding, for planning the widths a killed child did not reach.
        program_file: the program's bytes on disk.
        settings: of the run.
        budget: bytes the arena may take.
        threads: of the plan.

    Raises:
        CoreError: the child failed for another reason than memory, or did not get through one width in time.
    """
    request = {"program": str(program_file), "settings": asdict(settings), "budget": budget, "threads": threads}
    command = [sys.executable, "-m", "fedmpq.edge_runtime.trial", json.dumps(request)]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=TRIAL_TIMEOUT_S, check=False)
    except subprocess.TimeoutExpired as late:
        done = _ended(late)
    rows = [json.loads(line) for line in done.stdout.splitlines()]
    peak = rows.pop()["peak_bytes"] if rows and "peak_bytes" in rows[-1] else 0
    sizes = [PlanSize(**row) for row in rows]
    if done.returncode not in (0, -signal.SIGKILL):
        raise CoreError(f"the trial step failed: {done.stderr.strip()[-400:] or f'exit code {done.returncode}'}")
    program = core.Program(program_file.read_bytes())
    for bits in range(len(sizes) + 1, MAX_BITS + 1):  # killed at the first of these
        plan = core_plan(core, settings, [bits] * len(program.weight_layers), threads)
        sizes.append(PlanSize(bits, int(core.plan_memory(program, plan).total), None))
    return tuple(sizes), peak


def timed_out() -> CoreError:
    """The error of trial steps that told nothing in their time."""
    return CoreError(f"the trial steps took over {TRIAL_TIMEOUT_S} s", "a smaller batch, or --memory-limit")


def _ended(late: subprocess.TimeoutExpired) -> subprocess.CompletedProcess[str]:
    """A child that ran out of time as one that was killed at the width it was at: those before it are measured."""
    out: bytes | str = late.stdout or b""  # bytes even where text was asked for
    text = out if isinstance(out, str) else out.decode("utf-8", "replace")
    whole = text[: text.rfind("\n") + 1]
    if not whole:
        raise timed_out() from None
    log.warning("trial steps: %d widths took over %d s; the others count as too large", len(whole.splitlines()),
                TRIAL_TIMEOUT_S)  # fmt: skip
    return subprocess.CompletedProcess(late.cmd, -signal.SIGKILL, whole, "")


def trials_in_process(core: Any, program_file: Path, settings: Settings, budget: int, threads: int) -> Trials:
    """The same table without a child process, for simulation and tests."""
    program = core.Program(program_file.read_bytes())
    sizes = tuple(trial.measure(core, program, settings, budget, threads))
    return sizes, memory.status("VmHWM")


def ceiling_of(budget: int, sizes: tuple[PlanSize, ...]) -> int | None:
    """Bytes below the smallest width that was planned to fit `budget` and yet could not be run; None if all could."""
    failed = [size.planned_bytes for size in sizes if size.measured_bytes is None and size.planned_bytes <= budget]
    return min(failed) - 1 if failed else None


def make_profile(
    core: Any,
    device: str,
    run: str,
    program_file: Path,
    settings: Settings,
    samples: int,
    limits: Limits,
    trials: Callable[[Any, Path, Settings, int, int], Trials] = trials_in_child,
) -> tuple[Profile, int | None]:
    """Measures this device against a program; `samples` is the size of its shard.

    Returns:
        The profile, its budget lowered where a width failed that was planned to fit, and that bound (`ceiling_of`):
        it holds for every later budget as well.
    """
    found = memory.measure(limits.memory)
    sizes, peak = trials(core, program_file, settings, found.budget, limits.threads)
    ceiling = ceiling_of(found.budget, sizes)
    profile = Profile(
        device=device,
        run=run,
        program=core.Program(program_file.read_bytes()).sha256,
        samples=samples,
        budget_bytes=found.budget if ceiling is None else ceiling,
        limit_source=found.source,
        ram_bytes=found.ram,
        available_bytes=found.available,
        cgroup_bytes=found.cgroup,
        peak_bytes=peak,
        plans=sizes,
        machine=platform.machine()[:400],
        isa=core.isa(),
        cpus=max(1, len(os.sched_getaffinity(0))),
        threads=limits.threads,
        version=fedmpq.__version__,
    )
    return profile, ceiling
