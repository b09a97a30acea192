"""The agent of a device behind a link, against a scripted coordinator: rounds, resets, refusals."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from fedmpq.edge_runtime import core, protocol, topics
from fedmpq.edge_runtime.agent import Agent, Options
from fedmpq.edge_runtime.serial.board import RemoteCore
from fedmpq.edge_runtime.serial.gateway import ATTEMPTS, GatewayAgent
from fedmpq.edge_runtime.shard import Shard
from fedmpq.edge_runtime.trainer import core_plan
from tests.helpers.scripted import PROGRAM, Rig, expected_layers
from tests.helpers.serial_line import Kept, link_to, serve_command


class GatewayRig(Rig):
    """A device process behind the agent, with `memory` bytes; `when` cuts its line or resets it."""

    def __init__(self, folder: Path, memory: int = 1 << 20, when: Callable[[int], str] = lambda _: "") -> None:
        self.memory = memory
        self.kept = Kept(serve_command(memory), when)
        super().__init__(folder, limit=None)

    def make_agent(self, options: Options) -> Agent:
        link = link_to(serve_command(self.memory), open_line=self.kept.open)
        return GatewayAgent(options, self.link, self.store, Shard(self.shard), RemoteCore(link), clock=self.clock)

    def update(self) -> protocol.Update:
        found = protocol.decode(topics.UPDATE, self.coordinator.updates[-1])
        assert isinstance(found, protocol.Update)
        return found


def made(folder: Path, name: str) -> Path:
    (folder / name).mkdir()
    return folder / name


def planned(rig: Rig, bits: int) -> int:
    plan = core_plan(core, rig.coordinator.settings, (bits,) * len(core.Program(PROGRAM).weight_layers))
    return core.plan_memory(core.Program(PROGRAM), plan).total


def test_a_round_looks_like_that_of_any_device(tmp_path: Path) -> None:
    rig = GatewayRig(tmp_path)
    plan = rig.coordinator.make_plan(1, bits=3, eps_q16=2000)
    rig.coordinator.announce()
    rig.whole_round(plan)
    (profile,) = rig.coordinator.of(protocol.Profile)
    assert profile.limit_source == "board"
    assert profile.machine == "fedmpq-edge"
    assert rig.memory - 8 * 66 - 128 <= profile.budget_bytes < rig.memory - 8 * 66
    assert [size.planned_bytes for size in profile.plans] == [planned(rig, bits) for bits in range(1, 9)]
    assert all(size.planned_bytes == size.measured_bytes for size in profile.plans)
    update = rig.update()
    assert update.layers == expected_layers(plan, rig.coordinator.blobs, rig.shard)
    assert update.planned_bytes == update.measured_bytes
    rig.kept.end()


def test_a_device_reset_in_a_round_trains_it_again_to_the_same_bits(tmp_path: Path) -> None:
    resets: list[int] = []
    profiled = 0

    def when(written: int) -> str:
        if not profiled or len(resets) == 2 or written < profiled + 4000 * (1 + 2 * len(resets)):
            return ""
        resets.append(written)
        return "reset"

    rig = GatewayRig(tmp_path, when=when)
    rig.coordinator.announce()
    rig.until(lambda: bool(rig.coordinator.of(protocol.Profile)))
    profiled = rig.kept.written
    plan = rig.coordinator.make_plan(1, bits=3)
    rig.whole_round(plan)
    assert len(resets) == 2
    assert rig.update().layers == expected_layers(plan, rig.coordinator.blobs, rig.shard)
    rig.kept.end()


def test_a_device_that_is_always_lost_refuses_the_round(tmp_path: Path) -> None:
    broken = False
    rig = GatewayRig(tmp_path, when=lambda _: "reset" if broken else "")
    rig.coordinator.announce()
    rig.until(lambda: bool(rig.coordinator.of(protocol.Profile)))
    broken = True
    rig.coordinator.open_round(rig.coordinator.make_plan(1, bits=2))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("fedmpq.edge_runtime.serial.link.sleep", lambda _: None)
        patch.setattr(rig.agent._core.link, "patience", rig.agent._core.link.patience.__class__(0.05, 0.1, 1, 1, 0.05))
        rig.until(lambda: bool(rig.coordinator.of(protocol.Refusal)))
    (refusal,) = set(rig.coordinator.of(protocol.Refusal))
    assert refusal.reason == "device"
    assert "cut by the test" in refusal.detail
    assert ATTEMPTS > 1
    rig.kept.end()


def test_a_plan_over_the_boards_memory_is_refused_before_any_plane(tmp_path: Path) -> None:
    probe = GatewayRig(made(tmp_path, "probe"))
    room = planned(probe, 4) + 8 * 66 + 128
    probe.kept.end()
    rig = GatewayRig(made(tmp_path, "own"), memory=room)
    rig.coordinator.announce()
    rig.whole_round(rig.coordinator.make_plan(1, bits=8))
    (refusal,) = set(rig.coordinator.of(protocol.Refusal))
    assert (refusal.reason, refusal.planned_bytes) == ("memory", planned(rig, 8))
    assert set(rig.coordinator.sent_chunks) == {protocol.digest(PROGRAM)}
    (profile,) = rig.coordinator.of(protocol.Profile)
    assert [size.measured_bytes is not None for size in profile.plans] == [True] * 4 + [False] * 4
    rig.kept.end()
