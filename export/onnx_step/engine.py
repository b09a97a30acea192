"""A core whose sessions run the ONNX graph in onnxruntime: the names of `edge_runtime.core`, for the device agent.

onnxruntime has no arena of exact size. What a session takes is measured in a trial step: the growth of the process.
Where that is more than the core's plan takes, the difference counts as this device's own overhead at every bit-width.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from fedmpq.edge_runtime import core, memory
from fedmpq.edge_runtime.profile import Trials
from fedmpq.edge_runtime.protocol import MAX_BITS, PlanSize, Settings
from fedmpq.edge_runtime.trainer import core_plan
from fedmpq.errors import ArenaTooSmall
from fedmpq.export.onnx_step.session import OnnxSession


class OnnxDeviceSession(OnnxSession):
    """An ONNX session that a device's round needs: it prunes, and says what the process has grown by."""

    def __init__(self, program: core.Program, plan: core.Plan) -> None:
        self._before = memory.status("VmRSS")
        super().__init__(program.data, plan, threads=plan.threads, lasso=True)
        self._data = program.data
        self._pruned: Any = None
        self._most = 0

    @property
    def measured_bytes(self) -> int:
        """Growth of the process since the session began, at its largest."""
        self._grow()
        return self._most

    def step(self, images: Any, labels: Any, hyper: core.Hyper, key: Sequence[int]) -> core.Stats:
        """One training step; see `core.Session.step`."""
        stats = super().step(images, labels, hyper, key)
        self._grow()
        return stats

    def prune(self, eps_q16: int) -> tuple[int, ...]:
        """Drops sparse top planes (eq. 13) by the reference; as the graph's widths are fixed, this ends training."""
        from fedmpq.models.reference.session import ReferenceSession

        session = ReferenceSession(self._data, self.plan)
        for index in range(len(self.plan.bits)):
            session.load(index, super().read(index))
        self._pruned = session
        return session.prune(eps_q16)

    def read(self, index: int) -> core.LayerState:
        """A weight layer as it is now."""
        if self._pruned is None:
            return super().read(index)
        state = self._pruned.read(index)
        return core.LayerState(state.bits, state.guard, state.step, state.planes, state.params)

    def _grow(self) -> None:
        self._most = max(self._most, memory.status("VmRSS") - self._before)


class OnnxCore:
    """The ONNX training step as a device's core; classes of values are those of `edge_runtime.core`."""

    Program, Plan, LayerState, Hyper, Stats = core.Program, core.Plan, core.LayerState, core.Hyper, core.Stats
    fx = staticmethod(core.fx)

    def __init__(self) -> None:
        from fedmpq.errors import MissingExtraError

        try:
            import onnxruntime
        except ModuleNotFoundError:
            raise MissingExtraError("onnxruntime", "export") from None
        self._version = str(onnxruntime.__version__)
        self._overhead = 0

    def isa(self) -> str:
        """Runtime and version."""
        return f"onnxruntime-{self._version}"

    def plan_memory(self, program: core.Program, plan: core.Plan) -> core.MemoryPlan:
        """The core's plan and, once trials have measured it, the overhead of onnxruntime."""
        planned = core.plan_memory(program, plan)
        return replace(planned, total=planned.total + self._overhead)

    def Session(self, program: core.Program, plan: core.Plan, limit: int | None = None) -> OnnxDeviceSession:  # noqa: N802
        """A session at a plan.

        Raises:
            ArenaTooSmall: plan and overhead take more than `limit` bytes.
        """
        planned = self.plan_memory(program, plan).total
        if limit is not None and planned > limit:
            raise ArenaTooSmall(planned, limit)
        return OnnxDeviceSession(program, plan)

    def trials(self, _core: Any, program_file: Path, settings: Settings, budget: int, threads: int) -> Trials:
        """The size table from one trial step at 8 bits: bit-widths hardly matter where weights are whole numbers."""
        from fedmpq.local import neutral_states

        program = core.Program(program_file.read_bytes())
        count = len(program.weight_layers)
        plans = [core_plan(core, settings, [bits] * count, threads) for bits in range(1, MAX_BITS + 1)]
        session = OnnxDeviceSession(program, plans[-1])
        for index, state in enumerate(neutral_states(program, plans[-1])):
            session.load(index, state)
        height, width, channels = program.in_shape
        batch = plans[-1].batch
        labels = memoryview(bytes(2 * batch)).cast("H")
        session.step(bytes([128]) * (batch * height * width * channels), labels, core.Hyper(core.fx(0.1)), (0,) * 4)
        grown = session.measured_bytes
        self._overhead = max(0, grown - core.plan_memory(program, plans[-1]).total)
        totals = [self.plan_memory(program, plan).total for plan in plans]
        sizes = tuple(PlanSize(n + 1, total, grown if total <= budget else None) for n, total in enumerate(totals))
        return sizes, memory.status("VmHWM")
