"""A microcontroller as a member of a fleet: the agent runs here, training and its memory are the device's.

To the coordinator it looks like any device. Its budget is what the device reports, its sizes are measured by trial
steps on the device, and its plans come from the planner that the device has, too. A device that is reset or
unplugged in the middle of a round trains the round again from the same start, which gives the same bits.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any, Final

import fedmpq
from fedmpq.edge_runtime import trial
from fedmpq.edge_runtime.agent import Agent
from fedmpq.edge_runtime.assignment import Assignment
from fedmpq.edge_runtime.profile import Limits
from fedmpq.edge_runtime.protocol import CoordState, Job, PlanSize, Profile, Settings
from fedmpq.edge_runtime.serial.board import RemoteCore
from fedmpq.errors import LinkError

log = logging.getLogger("fedmpq.device")

#: How often one round's training, or the trial steps, begin again after the device was reset or could not be reached.
ATTEMPTS: Final = 5


def trial_sizes(core: RemoteCore, program: Any, settings: Settings, budget: int) -> tuple[PlanSize, ...]:
    """Planned and measured bytes at 1..8 bits, by training one micro-batch on the device at each width that fits.

    Raises:
        LinkError: the device was lost again and again.
    """
    samples = settings.micro_batch or settings.batch
    for attempt in range(1, ATTEMPTS + 1):
        try:
            return tuple(trial.measure(core, program, settings, budget, 1, samples))
        except LinkError as error:
            if attempt == ATTEMPTS:
                raise
            log.warning("%s; measuring again", error)
    raise AssertionError


class GatewayAgent(Agent):
    """The agent of a device behind a link; its core is a `RemoteCore`."""

    _core: RemoteCore

    def run(self, stop: Callable[[], bool] = lambda: False) -> None:
        """As `Agent.run`; `stop` also ends the wait for a device that does not answer."""
        link = self._core.link
        link.stopping = stop
        super().run(stop)
        done = link.counters
        log.info("serial line: %d requests, %d sent again, %d damaged", done.requests, done.repeats, done.damaged)

    def _make_profile(self, coord: CoordState) -> Profile:
        assert isinstance(coord.job, Job)
        core, settings = self._core, coord.job.settings
        data = (self._store.directory / "blobs" / coord.job.program).read_bytes()
        program = core.Program(data)
        budget = self._budget(settings)
        sizes = trial_sizes(core, program, settings, budget)
        facts = core.facts()
        ram = facts.limit + facts.data + facts.bss + facts.stack_kept
        return Profile(
            device=self.options.device,
            run=coord.run,
            program=program.sha256,
            samples=self._samples.count,
            budget_bytes=budget,
            limit_source="board" if self.options.limits.memory is None else "option",
            ram_bytes=ram,
            available_bytes=facts.limit,
            cgroup_bytes=None,
            peak_bytes=facts.resident_peak or ram - facts.stack_kept + facts.stack_used,
            plans=sizes,
            machine=core.link.info.board,
            isa=core.isa(),
            cpus=1,
            threads=1,
            version=fedmpq.__version__,
        )

    def _look_at_memory(self) -> None:
        """The board's memory is its own and stays as it is; that of the gateway's machine says nothing."""

    def _assign(self, plan: Any) -> Assignment:
        limits = Limits(self._budget(plan.settings), 1)
        return RemoteAssignment(plan, self._core, self._program, self._store, self._samples, limits)

    def _budget(self, settings: Settings) -> int:
        """Bytes for a session: what the device has beside a batch of samples, or less if the user grants less."""
        most = self._core.budget(self._program, settings.batch)
        granted = self.options.limits.memory
        return most if granted is None else min(most, granted)


class RemoteAssignment(Assignment):
    """A plan that is trained on the device behind a link, again from its start where the device is lost."""

    _lost = 0

    def train(self) -> bool:
        """As `Assignment.train`; a lost device costs the steps of this round so far."""
        try:
            return super().train()
        except LinkError as error:
            self.close()
            self._lost += 1
            if self._lost >= ATTEMPTS:
                self._refuse("device", str(error))
                return False
            log.warning("round %d: %s; training it again from its start", self.plan.round, error)
            return True
