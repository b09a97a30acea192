"""The int8 multiply-accumulate rate of one core: a loop of nothing but such instructions on registers."""

from __future__ import annotations

import ctypes as c
import time
from typing import Any

from fedmpq.bench.job import Job
from fedmpq.edge_runtime import core
from fedmpq.edge_runtime.native import library

#: A step is about this long.
_SECONDS = 0.05


class PeakEngine:
    """A step runs a fixed number of iterations; `details` says how many multiply-accumulates they are."""

    def __init__(self, job: Job) -> None:
        self.isa = job.isa or core.isa()
        self.call = library().fmpq_peak_macs
        self.call.restype, self.call.argtypes = c.c_uint64, [c.c_char_p, c.c_uint64]
        self.iterations = 1 << 16
        self.macs = self._run()
        while self.macs:
            start = time.perf_counter()
            self.macs = self._run()
            if time.perf_counter() - start >= _SECONDS:
                break
            self.iterations *= 2

    def _run(self) -> int:
        return int(self.call(self.isa.encode(), self.iterations))

    def details(self) -> dict[str, Any]:
        """Multiply-accumulates of a step, 0 where no such loop exists for the instruction set."""
        return {"isa": self.isa, "macs": self.macs}

    def step(self) -> float:
        """One run of the loop."""
        self._run()
        return 0.0


def load(job: Job) -> PeakEngine:
    """The loop for the instruction set in use."""
    return PeakEngine(job)
