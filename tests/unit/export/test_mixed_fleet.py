"""One fleet of a native, an ExecuTorch and an ONNX Runtime device: the same model as a simulated run, to the byte."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from fedmpq.coordinator.admission import planner_of
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
from fedmpq.errors import CoreError, FormatError
from fedmpq.export import build
from fedmpq.export.budget import average_bits
from fedmpq.export.executorch import lowering
from fedmpq.export.executorch.engine import ExecutorchCore
from fedmpq.export.onnx_step.engine import OnnxCore
from fedmpq.local import neutral_states
from tests.helpers import programs
from tests.helpers.fleet import LAYOUT, PROGRAM, Clock, config, first_model, samples

BUDGETS = {"native": 8.0, "executorch": 4.5, "onnx": 2.0}
BIG = 1 << 30


def engines() -> dict[str, tuple[Any, Any]]:
    """Core and trial of each device."""
    graph = OnnxCore()
    return {
        "native": (core, trials_in_process),
        "executorch": (ExecutorchCore(), trials_in_process),
        "onnx": (graph, graph.trials),
    }


def simulated(folder: Path, made: Any) -> str:
    clients = {name: samples(40, number) for number, name in enumerate(BUDGETS)}
    run = Simulation(folder, made, Source(PROGRAM, LAYOUT, first_model, "tiny"), clients, None, workers=1)
    run.play()
    model = run.run.journal.meta("model")
    run.close()
    assert model is not None
    return model


@pytest.fixture(autouse=True)
def _own_cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """The backend's library is taken from the user's cache; programs made here stay out of it."""
    from fedmpq.export.executorch import engine, library

    library.library()
    engine._made.cache_clear()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))


def test_a_mixed_round_equals_the_simulated_one(tmp_path: Path) -> None:
    made = config(rounds=2, batch=16, budgets=BUDGETS, deadline_s=3600.0, prune_density=0.05)
    clock, broker = Clock(), LoopbackBroker()
    run = RunState.open(tmp_path / "run", made, LAYOUT, PROGRAM, first_model, planner_of(PROGRAM, made.settings), clock)
    server = Server(Machine(run), broker.transport("coordinator"), "fleet")
    server.connect()
    agents = {}
    for number, (name, (engine, trials)) in enumerate(engines().items()):
        link = broker.transport(name)
        options = Options("fleet", name, Limits(BIG), until_finished=True)
        store = Store(tmp_path / name, name)
        agents[name] = (Agent(options, link, store, samples(40, number), engine, clock=clock, trials=trials), link)
        agents[name][0].start()
    for _ in range(100_000):
        if server.machine.finished:
            break
        server.step(0.0)
        for agent, link in agents.values():
            agent.work()
            agent.tick()
            while (event := link.poll(0.0)) is not None:
                agent.handle(event)
        clock.now += 0.05
    accepted = run.journal.rows("SELECT round, device FROM verdicts WHERE of='update' AND verdict='accepted'")
    assert {(row["round"], row["device"]) for row in accepted} == {(r, name) for r in (1, 2) for name in BUDGETS}
    for row in run.journal.rows("SELECT device, bits FROM assignments WHERE round=1"):
        assert average_bits(row["bits"], LAYOUT.thetas) <= BUDGETS[row["device"]]
    assert run.journal.meta("model") == simulated(tmp_path / "simulated", made)


def test_a_given_program_serves_the_runs_plans_and_no_other_program(tmp_path: Path) -> None:
    parsed = core.Program(PROGRAM)
    count = len(parsed.weight_layers)
    plan = core.Plan(bits=(1,) * count, batch=8)
    file = tmp_path / "tiny.pte"
    file.write_bytes(lowering.build(build.with_states(PROGRAM, plan, neutral_states(parsed, plan), {})))
    engine = ExecutorchCore(file)
    wanted = core.Plan(bits=(3,) * count, batch=32, momentum=True)
    session = engine.Session(parsed, wanted, BIG)
    assert session.measured_bytes == engine.plan_memory(parsed, wanted).total
    other = core.Program(programs.resnet(1, size=(8, 8, 1), width=4, classes=5).build())
    with pytest.raises(FormatError, match=r"holds program .*, the run trains .* \(export the run's model"):
        engine.Session(other, core.Plan(bits=(1,) * count), BIG)
    with pytest.raises(CoreError, match="takes batches up to 1024, the plan has 2000"):
        engine.Session(parsed, core.Plan(bits=(1,) * count, batch=2000), BIG)
    with pytest.raises(CoreError, match="carries 0 guard planes, the plan has 2"):
        engine.Session(parsed, core.Plan(bits=(1,) * count, guard=2), BIG)
