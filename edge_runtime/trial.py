"""Trial steps: the arena at each bit-width, planned and then measured by training one batch in it.

Run as a child process (``python -m fedmpq.edge_runtime.trial``) by `profile`, so that the peak is that of a training
process, and a kernel that kills for memory kills the child: the widths it did not reach count as not fitting.
Input: one JSON object in argv; output: one JSON line a bit-width, as soon as it is known.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

from fedmpq.edge_runtime import memory
from fedmpq.edge_runtime.protocol import MAX_BITS, PlanSize, Settings
from fedmpq.edge_runtime.trainer import core_plan
from fedmpq.errors import BudgetError, FedmpqError


def measure(
    core: Any, program: Any, settings: Settings, budget: int, threads: int, samples: int | None = None
) -> Iterator[PlanSize]:
    """Planned and measured bytes with every layer at 1..8 bits; measured is None above the budget.

    A trial step trains `samples` images, by default a whole batch.
    """
    for bits in range(1, MAX_BITS + 1):
        plan = core_plan(core, settings, [bits] * len(program.weight_layers), threads)
        planned = int(core.plan_memory(program, plan).total)
        if planned > budget:
            yield PlanSize(bits, planned, None)
            continue
        try:
            yield PlanSize(bits, planned, _trial_step(core, program, plan, budget, samples or plan.batch))
        except (BudgetError, MemoryError):
            yield PlanSize(bits, planned, None)


def _trial_step(core: Any, program: Any, plan: Any, budget: int, samples: int) -> int:
    """Bytes of the arena after one step on grey images with zero weights: every buffer is used as in training."""
    session = core.Session(program, plan, budget)
    for i, layer in enumerate(program.weight_layers):
        size = -(-layer.theta // 8)
        planes = (bytes(size),) * (1 + plan.bits[i] + plan.guard)
        session.load(i, core.LayerState(plan.bits[i], plan.guard, core.fx(0.01), planes, bytes(layer.params_bytes)))
    height, width, channels = program.in_shape
    images = bytes([128]) * (samples * height * width * channels)
    labels = memoryview(bytes(2 * samples)).cast("H")
    session.step(images, labels, core.Hyper(core.fx(0.1), (0, 0)), (0, 0, 0, 0))
    return int(session.measured_bytes)


def main() -> None:
    """The child: one JSON line for each bit-width, then one with the peak of resident memory."""
    from fedmpq.edge_runtime import core

    given = json.loads(sys.argv[1])
    program = core.Program(Path(given["program"]).read_bytes())
    settings = Settings(**given["settings"])
    try:
        for size in measure(core, program, settings, given["budget"], given["threads"]):
            print(json.dumps(asdict(size)), flush=True)
    except FedmpqError as error:
        sys.exit(str(error))
    print(json.dumps({"peak_bytes": memory.status("VmHWM")}), flush=True)


if __name__ == "__main__":
    main()
