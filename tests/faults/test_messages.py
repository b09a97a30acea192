"""A broker that drops, doubles, reorders, delays and damages: the same model, and no stuck round.

Fifty rounds in `make test-kill`, ten in the short form.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from fedmpq.coordinator.machine import Machine
from fedmpq.coordinator.run_state import RunState
from fedmpq.coordinator.server import Server
from fedmpq.coordinator.simulate import Simulation
from fedmpq.coordinator.source import Source
from fedmpq.edge_runtime import core
from fedmpq.edge_runtime.agent import Agent, Options
from fedmpq.edge_runtime.loopback import LoopbackBroker
from fedmpq.edge_runtime.profile import Limits, trials_in_process
from fedmpq.edge_runtime.store import Store
from tests.faults.test_kills import FULL
from tests.helpers.fleet import LAYOUT, PROGRAM, Clock, config, first_model, samples
from tests.helpers.killing import memory_folder, plan_bytes_of, plan_limit

BITS = {"d0": 2, "d1": 4, "d2": 8}
ROUNDS = 50 if FULL else 10
ALL = {"drop": 0.05, "duplicate": 0.05, "reorder": 0.1, "delay": 0.05, "corrupt": 0.05}


@pytest.fixture(scope="module")
def folder() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(dir=memory_folder()) as name:
        yield Path(name)


@pytest.fixture(scope="module")
def plain(folder: Path) -> str:
    """The model of an undisturbed run."""
    made = config(rounds=ROUNDS, batch=64)
    source = Source(PROGRAM, LAYOUT, first_model, "tiny")
    shards = {name: samples(64, i) for i, name in enumerate(BITS)}
    limits = {name: plan_limit(made, n) for name, n in BITS.items()}
    simulated = Simulation(folder / "plain", made, source, shards, None, limits=limits)
    simulated.play()
    model = simulated.run.journal.meta("model")
    simulated.close()
    assert model is not None
    return model


class Federation:
    """Coordinator and agents on one loopback broker and one simulated clock."""

    def __init__(self, folder: Path, seed: int, rounds: int, **faults: float) -> None:
        made = config(rounds=rounds, batch=64, deadline_s=3600.0)
        self.clock = Clock()
        self.broker = LoopbackBroker(seed, **faults)
        run = RunState.open(folder / "run", made, LAYOUT, PROGRAM, first_model, plan_bytes_of(made), self.clock)
        self.run = run
        self.server = Server(Machine(run), self.broker.transport("coordinator"), "fleet")
        self.server.connect()
        self.links = {name: self.broker.transport(name) for name in BITS}
        self.agents = {}
        for number, (name, n) in enumerate(BITS.items()):
            limits = Limits(plan_limit(made, n))
            self.agents[name] = Agent(
                Options("fleet", name, limits, until_finished=True), self.links[name], Store(folder / name, name),
                samples(64, number), core, clock=self.clock, trials=trials_in_process,
            )  # fmt: skip
            self.agents[name].start()

    def play(self, most_s: float) -> list[float]:
        """Runs to the end; seconds of every round. AssertionError if one takes longer than `most_s`."""
        taken, began, done = [], self.clock.now, 0
        while not self.server.machine.finished:
            before = self.server.transport.traffic.received
            self.server.step(0.0)
            busy = self.server.transport.traffic.received > before
            for name, agent in self.agents.items():
                busy |= agent.work()
                agent.tick()
                while (event := self.links[name].poll(0.0)) is not None:
                    busy = True
                    agent.handle(event)
            if not busy:
                self.clock.now += 0.5
            row = self.run.round_row()
            if row is not None and row["round"] - (row["phase"] != "done") > done:
                done += 1
                taken.append(self.clock.now - began)
                began = self.clock.now
            assert self.clock.now - began < most_s, f"round {done + 1} is stuck"
        return taken


@pytest.mark.parametrize("seed", [1])
def test_many_rounds_with_every_fault_at_once(folder: Path, plain: str, seed: int) -> None:
    federation = Federation(folder / f"all-{seed}", seed, ROUNDS, **ALL)
    taken = federation.play(900)
    assert federation.run.journal.meta("model") == plain
    assert len(taken) == ROUNDS
    accepted = federation.run.journal.rows("SELECT round, device FROM verdicts WHERE of='update'")
    assert len(accepted) == len(BITS) * ROUNDS
    assert [agent.rounds_trained for agent in federation.agents.values()] == [ROUNDS] * len(BITS)
    assert all(count >= (5 if FULL else 1) for count in federation.broker.faults.values()), federation.broker.faults


@pytest.mark.parametrize("fault", sorted(ALL) if FULL else ["corrupt"])
def test_each_fault_alone_at_a_quarter_of_the_messages(folder: Path, fault: str) -> None:
    federation = Federation(folder / fault, 7, 3, **{fault: 0.25})
    undisturbed = Federation(folder / f"{fault}-none", 7, 3)
    federation.play(1800)
    undisturbed.play(60)
    assert federation.run.journal.meta("model") == undisturbed.run.journal.meta("model")
    assert federation.broker.faults[fault] > 5
