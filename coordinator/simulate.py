"""A whole run in one process: the coordinator's state machine, virtual devices, the device's own training loop.

Every message is encoded, sent through the machine and decoded, so a simulated run counts the same bytes and passes the
same checks as one over a network, and gives the same bits. Only the clock, the processes and the memory limits are
missing; budgets come from the configuration. Training runs in threads: both engines compute outside Python's lock.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fedmpq.coordinator import control, status
from fedmpq.coordinator.admission import PlanBytes, planner_of
from fedmpq.coordinator.attacks import Attack
from fedmpq.coordinator.config import RunConfig
from fedmpq.coordinator.engine import Engine
from fedmpq.coordinator.evaluate import TestSet
from fedmpq.coordinator.machine import Machine
from fedmpq.coordinator.referee import Referee
from fedmpq.coordinator.run_state import RunState
from fedmpq.coordinator.source import Source
from fedmpq.coordinator.virtual import Trained, VirtualDevice, route, train
from fedmpq.edge_runtime.protocol import MAX_BITS, PlanMessage
from fedmpq.edge_runtime.shard import Images
from fedmpq.edge_runtime.trainer import Samples
from fedmpq.errors import RoundError

if TYPE_CHECKING:
    from fedmpq.coordinator.ray_engine import RayEngine

#: Memory that virtual devices grant an arena: none is refused, the budgets decide.
UNLIMITED = 1 << 50
#: Seconds after which a simulation looks again whether the operator wants something; `control.ask` waits for 10.
_LOOK_S = 1.0


class Simulation:
    """One simulated run on one data directory; opened again, it goes on where it was stopped.

    Args:
        directory: the data directory of its coordinator.
        config: of the run; `budgets` names the devices' average bit-widths.
        origin: program and first model.
        clients: private data by device name.
        judge: images that global models are judged on, None for none.
        referee: images for the rule "referee"; other ones.
        engine: "core" or "torch".
        workers: clients trained at the same time; 0 takes every core.
        limits: memory limits in bytes by device name, for fleets whose budgets come from memory.
        attack: what some of the clients do to their data or updates.
        cluster: trains and sums instead of this process's threads.
        progress: called with a number of finished local trainings.
        say: told when the operator has paused the run.
    """

    def __init__(
        self,
        directory: Path,
        config: RunConfig,
        origin: Source,
        clients: Mapping[str, Samples],
        judge: Images | None,
        *,
        engine: str = "core",
        workers: int = 0,
        limits: Mapping[str, int] | None = None,
        attack: Attack | None = None,
        referee: Samples | None = None,
        cluster: RayEngine | None = None,
        progress: Callable[[int], object] = int,
        say: Callable[[str], object] = str,
    ) -> None:
        self.engine = Engine(engine, origin.program)
        self._workers = workers or os.cpu_count() or 1
        self._progress = progress
        self._say = say
        self._waits = False
        self._attack = attack
        self._cluster = cluster
        self.attackers = frozenset(attack.attackers(list(clients), config.seed)) if attack else frozenset[str]()
        if attack is not None:
            clients = {name: attack.data(s) if name in self.attackers else s for name, s in clients.items()}
        plan_bytes = planner_of(origin.program, config.settings)
        run = RunState.open(directory, config, origin.layout, origin.program, origin.initial, plan_bytes, self._clock)
        self.run = run
        if referee is not None:
            run.referee = Referee(self.engine, config, referee)
        if cluster is not None:
            run.sums = cluster.sum
        self.machine = Machine(run, None if judge is None else TestSet(self.engine, config, judge))
        self.devices = self._fleet(clients, limits or {}, plan_bytes)

    def play(self, changed: Callable[[RunState], object] | None = None) -> dict[str, Any]:
        """Runs to the end and returns the run's facts (status.status).

        Raises:
            RoundError: the run cannot go on.
        """
        for name, device in self.devices.items():
            for kind, payload in device.birth():
                route(self.machine, self.devices, self.machine.handle(kind, name, payload))
        route(self.machine, self.devices, self.machine.birth())
        running: dict[Future[tuple[Trained, int]], tuple[VirtualDevice, PlanMessage]] = {}
        with ThreadPoolExecutor(self._workers) as pool:
            while not self.machine.finished:
                before = self.run.journal.changes
                route(self.machine, self.devices, self.machine.tick())
                if self.machine.cancelled:
                    pool.shutdown(cancel_futures=True)
                    hint = f"`fedmpq coordinator resume --dir {self.run.directory}`, then start it again"
                    raise RoundError("the run is cancelled", hint)
                for device in self.devices.values():
                    if device.work is not None:
                        plan, blobs, device.work = device.work, device.start_blobs(), None
                        running[self._start(pool, plan, blobs, device.samples)] = (device, plan)
                if changed is not None:
                    changed(self.run)
                if not running:
                    if self.run.journal.changes == before and not self.machine.finished:
                        self._stand_still()
                    continue
                self._waits = False
                # Not for ever: the operator's wishes are heeded between two ticks.
                done, _ = wait(running, _LOOK_S, FIRST_COMPLETED)
                for future in done:
                    device, plan = running.pop(future)
                    trained, elapsed = future.result()
                    trained = self._attacked(device, plan, trained)
                    for kind, payload in device.finish(plan, trained, elapsed):
                        route(self.machine, self.devices, self.machine.handle(kind, device.name, payload))
                    self._progress(1)
        if changed is not None:
            changed(self.run)
        return status.status(self.run.journal)

    def _stand_still(self) -> None:
        """Nobody trains and nothing moves: waits while the run is paused; RoundError where only waiting is left."""
        run = self.run
        row = run.round_row()
        waiting = status.waiting_for(run.journal, run.config.to_dict(), row)
        if control.state_of(run.journal) != control.PAUSED or (row is not None and row["phase"] != "done"):
            hint = f"`fedmpq coordinator devices --dir {run.directory}` shows the clients"
            raise RoundError(f"the simulation stands still, waiting for {waiting}", hint)
        if not self._waits:
            self._waits = True
            self._say(f"waiting for {waiting}")
        time.sleep(_LOOK_S / 4)

    def close(self) -> None:
        """Gives up the data directory."""
        self.run.close()

    def _start(
        self, pool: ThreadPoolExecutor, plan: PlanMessage, blobs: Mapping[str, bytes], samples: Samples
    ) -> Future[tuple[Trained, int]]:
        if self._cluster is not None:
            return self._cluster.train(self.engine, plan, blobs, samples)
        return pool.submit(self._train, plan, blobs, samples)

    def _train(self, plan: PlanMessage, blobs: Mapping[str, bytes], samples: Samples) -> tuple[Trained, int]:
        began = time.monotonic()
        trained = train(self.engine, plan, blobs, samples)
        return trained, int((time.monotonic() - began) * 1000)

    def _attacked(self, device: VirtualDevice, plan: PlanMessage, trained: Trained) -> Trained:
        """What the device sends: what it trained, or an attacker's version of it."""
        if self._attack is None or device.name not in self.attackers:
            return trained
        blobs = device.held_blobs(plan)
        return replace(trained, layers=self._attack.layers(self.run.layout, plan, blobs, trained.layers))

    def _fleet(
        self, clients: Mapping[str, Samples], limits: Mapping[str, int], plan_bytes: PlanBytes
    ) -> dict[str, VirtualDevice]:
        run = self.run
        layers = run.layout.layers
        plans = [plan_bytes((bits,) * len(layers)) for bits in range(1, MAX_BITS + 1)]
        fleet = {}
        for name, samples in clients.items():
            device = VirtualDevice(
                name, run.config.run, run.layout.program, samples, limits.get(name, UNLIMITED), plans
            )
            device.sizes = [(layer.plane_bytes, layer.params_bytes) for layer in layers]
            fleet[name] = device
        return fleet

    @staticmethod
    def _clock() -> float:
        return time.time()
