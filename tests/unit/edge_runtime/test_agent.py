"""The device agent against a scripted coordinator: rounds, refusals, losses, kills."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest

from fedmpq.edge_runtime import core, protocol, topics
from fedmpq.edge_runtime.agent import PLAN_REQUESTS
from fedmpq.edge_runtime.chunks import encode_chunk
from fedmpq.edge_runtime.profile import Limits, Trials, trials_in_process
from fedmpq.edge_runtime.shard import write_shard
from fedmpq.edge_runtime.trainer import core_plan
from fedmpq.edge_runtime.transport import Disconnected, Incoming
from fedmpq.errors import DataError, FormatError, NetworkError
from tests.helpers.scripted import DEVICE, NET, PROGRAM, RUN, Rig, expected_layers, with_times


@pytest.fixture
def rig(tmp_path: Path) -> Rig:
    return Rig(tmp_path)


def update_of(rig: Rig, index: int = -1) -> protocol.Update:
    found = protocol.decode(topics.UPDATE, rig.coordinator.updates[index])
    assert isinstance(found, protocol.Update)
    return found


def test_a_round_from_birth_to_ack(rig: Rig) -> None:
    plan = rig.coordinator.make_plan(1, bits=3, eps_q16=2000)
    rig.coordinator.announce()
    rig.whole_round(plan)
    births = rig.coordinator.of(protocol.DeviceState)
    assert births[0] == protocol.DeviceState(DEVICE, True, 1, births[0].version)
    (profile,) = rig.coordinator.of(protocol.Profile)
    assert profile.samples == 40
    assert profile.budget_bytes == rig.limit
    assert all(size.planned_bytes == size.measured_bytes for size in profile.plans)
    assert [s.planned_bytes for s in profile.plans] == sorted({s.planned_bytes for s in profile.plans})
    update = update_of(rig)
    assert update.plan == plan.identity
    assert update.steps == 5
    assert update.count == 40
    assert update.planned_bytes == update.measured_bytes
    assert update.layers == expected_layers(plan, rig.coordinator.blobs, rig.shard)
    assert all(blob in rig.coordinator.blobs for layer in update.layers for blob in layer.blobs)


@pytest.mark.parametrize("first", [topics.ROUND, topics.COORD_STATE])
def test_retained_messages_may_come_in_any_order(rig: Rig, first: str) -> None:
    job = protocol.Job(protocol.digest(PROGRAM), len(PROGRAM), rig.coordinator.settings)
    told = {
        topics.ROUND: protocol.RoundState(RUN, 2, 9, "cancelled", 0, 5),
        topics.COORD_STATE: protocol.CoordState(RUN, True, 5, job),
    }
    for kind in sorted(told, key=lambda kind: kind != first):
        rig.agent.handle(Incoming(rig.coordinator.topics.prefix + kind, protocol.encode(told[kind]), retained=True))
    assert rig.agent.finished
    resumed = protocol.RoundState(RUN, 2, 9, "collect", 0, 6)
    rig.agent.handle(Incoming(rig.coordinator.topics.prefix + topics.ROUND, protocol.encode(resumed)))
    assert not rig.agent.finished


def test_a_plan_over_the_limit_is_refused_before_any_plane(tmp_path: Path) -> None:
    rig = Rig(tmp_path)
    plan = rig.coordinator.make_plan(1, bits=8)
    program = core.Program(PROGRAM)
    planned = core.plan_memory(program, core_plan(core, plan.settings, plan.bits)).total
    rig.kill()
    rig.limit = planned - 1
    rig.boot()
    rig.coordinator.announce()
    rig.whole_round(plan)
    (refusal,) = set(rig.coordinator.of(protocol.Refusal))
    assert (refusal.reason, refusal.planned_bytes, refusal.limit_bytes) == ("memory", planned, planned - 1)
    assert str(planned) in refusal.detail
    assert str(planned - 1) in refusal.detail
    assert set(rig.coordinator.sent_chunks) == {protocol.digest(PROGRAM)}
    assert not rig.coordinator.updates
    rig.kill()
    rig.limit = planned
    rig.boot()
    rig.whole_round(rig.coordinator.make_plan(2, bits=8))
    assert update_of(rig).measured_bytes == planned


def test_a_tiny_limit_still_gives_a_profile(tmp_path: Path) -> None:
    rig = Rig(tmp_path, limit=1000)
    rig.coordinator.announce()
    rig.until(lambda: bool(rig.coordinator.of(protocol.Profile)))
    (profile,) = rig.coordinator.of(protocol.Profile)
    assert profile.budget_bytes == 1000
    assert all(size.measured_bytes is None and size.planned_bytes > 1000 for size in profile.plans)


def test_only_missing_planes_are_fetched(rig: Rig) -> None:
    first = rig.coordinator.make_plan(1, bits=2)
    rig.coordinator.announce()
    rig.whole_round(first)
    before = set(rig.coordinator.sent_chunks)
    rig.coordinator.sent_chunks.clear()
    second = rig.coordinator.make_plan(2, bits=2, seed=1)
    shared = first.layers[0]
    second = rig.coordinator.make_plan(2, layers=(shared, *second.layers[1:]))
    rig.whole_round(second)
    assert not set(shared.blobs) & set(rig.coordinator.sent_chunks)
    assert not before & set(rig.coordinator.sent_chunks)
    assert update_of(rig).layers == expected_layers(second, rig.coordinator.blobs, rig.shard)


def test_a_blob_damaged_on_the_disk_is_fetched_again(rig: Rig) -> None:
    plan = rig.coordinator.make_plan(1)
    rig.coordinator.announce()
    rig.coordinator.open_round(plan)
    rig.until(lambda: rig.agent.assignment is not None and not rig.agent.assignment.fetching)
    victim = plan.layers[3].planes[1]
    (rig.store.directory / "blobs" / victim).write_bytes(b"torn")
    rig.until(rig.settled)
    assert rig.coordinator.sent_chunks.count(victim) == 2
    assert update_of(rig).layers == expected_layers(plan, rig.coordinator.blobs, rig.shard)


def test_a_damaged_update_is_trained_again(rig: Rig) -> None:
    plan = rig.coordinator.make_plan(1)
    rig.coordinator.mute = {topics.UPDATE}
    rig.coordinator.announce()
    rig.coordinator.open_round(plan)
    rig.until(lambda: rig.store.record.update is not None)
    for layer in expected_layers(plan, rig.coordinator.blobs, rig.shard):
        for blob in set(layer.blobs) - set(rig.coordinator.blobs):
            (rig.store.directory / "blobs" / blob).write_bytes(b"torn")
    rig.coordinator.mute = set()
    rig.until(rig.settled)
    assert update_of(rig).layers == expected_layers(plan, rig.coordinator.blobs, rig.shard)


def births_of(rig: Rig) -> list[int]:
    return [0, *(state.bd_seq for state in rig.coordinator.of(protocol.DeviceState) if state.online)]


def until_back(rig: Rig) -> None:
    rig.until(lambda: rig.settled() and rig.coordinator.of(protocol.Profile) and births_of(rig)[-1] == 2)


def actions_of_a_round(folder: Path) -> int:
    folder.mkdir()
    rig = Rig(folder)
    rig.coordinator.announce()
    rig.whole_round(rig.coordinator.make_plan(1))
    rig.kill()
    return rig.steps + 10


@pytest.mark.parametrize("outage", [0, 3])
def test_killed_at_any_point_the_device_goes_on_and_trains_the_round_once(tmp_path: Path, outage: int) -> None:
    total = actions_of_a_round(tmp_path / "measure")
    expected = None
    for at in range(total):
        folder = tmp_path / str(at)
        folder.mkdir()
        rig = Rig(folder)
        plan = rig.coordinator.make_plan(1)
        expected = expected or expected_layers(plan, rig.coordinator.blobs, rig.shard)
        rig.coordinator.announce()
        rig.coordinator.open_round(plan)
        for _ in range(at):
            rig.turn()
        rig.kill()
        for _ in range(outage):
            rig.coordinator.pump()
        rig.boot()
        until_back(rig)
        rig.kill()
        assert rig.trained == 1, at
        assert len(set(rig.coordinator.updates)) == 1, at
        assert update_of(rig).layers == expected


def test_a_lost_ack_is_repeated_without_training_again(rig: Rig) -> None:
    plan = rig.coordinator.make_plan(1)
    rig.coordinator.announce()
    rig.whole_round(plan)
    told = len(rig.coordinator.updates)
    # the coordinator comes back without having kept the update, and sends the plan with new times
    rig.coordinator.publish(DEVICE, topics.PLAN, with_times(plan, 99))
    rig.until(lambda: len(rig.coordinator.updates) > told and rig.settled())
    assert len(set(rig.coordinator.updates)) == 1
    assert rig.agent.rounds_trained == 1


@pytest.mark.parametrize("seed", range(5))
def test_losses_duplicates_and_disorder_do_not_stop_a_round(tmp_path: Path, seed: int) -> None:
    rig = Rig(tmp_path, seed=seed, drop=0.2, duplicate=0.2, reorder=0.3)
    rig.coordinator.announce()
    for number in (1, 2, 3):
        plan = rig.coordinator.make_plan(number, seed=number)
        rig.whole_round(plan)
        assert update_of(rig).layers == expected_layers(plan, rig.coordinator.blobs, rig.shard)
    assert rig.agent.rounds_trained == 3


def test_chunks_that_come_slowly_are_not_asked_for_again(rig: Rig) -> None:
    rig.coordinator.announce()
    plan = rig.coordinator.make_plan(1)
    blobs = [blob for layer in plan.layers for blob in layer.blobs]
    rig.coordinator.open_round(plan)
    rig.until(lambda: rig.agent.assignment is not None)
    rig.coordinator.mute = {topics.REQUEST}
    for _ in range(20):
        rig.turn()
    asked = len(rig.coordinator.of(protocol.Request))
    for sha256 in blobs:  # one a second: the whole takes many times the patience for one
        rig.clock.now += 1.0
        rig.coordinator.publish(DEVICE, topics.CHUNK, encode_chunk(sha256, rig.coordinator.blobs[sha256], 0))
        rig.turn()
    assert len(rig.coordinator.of(protocol.Request)) <= asked + 1
    rig.until(rig.settled)


def test_a_corrupt_chunk_is_asked_for_again(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    plan = rig.coordinator.make_plan(1)
    victim = plan.layers[2].planes[0]
    true = rig.coordinator.blobs[victim]
    rig.coordinator.blobs[victim] = bytes(len(true))
    rig.coordinator.announce()
    rig.coordinator.open_round(plan)
    for _ in range(200):
        rig.turn()
    assert rig.store.record.update is None
    rig.coordinator.blobs[victim] = true
    rig.until(rig.settled)
    assert update_of(rig).layers == expected_layers(plan, rig.coordinator.blobs, rig.shard)


def test_a_round_that_closes_is_dropped_and_the_next_one_trained(rig: Rig) -> None:
    rig.coordinator.announce()
    rig.coordinator.open_round(rig.coordinator.make_plan(1))
    rig.until(lambda: rig.agent.assignment is not None and rig.agent.assignment.progress.steps > 1)
    rig.coordinator.announce(1, "closed")
    rig.until(lambda: rig.agent.assignment is None)
    assert rig.store.record.update is None
    rig.whole_round(rig.coordinator.make_plan(2, seed=2))
    assert [update_of(rig, i).round for i in range(len(rig.coordinator.updates))] == [2] * len(rig.coordinator.updates)


def test_an_answer_to_a_closed_round_is_not_pressed(rig: Rig) -> None:
    rig.coordinator.announce()
    rig.coordinator.mute = {topics.UPDATE}
    rig.coordinator.open_round(rig.coordinator.make_plan(1))
    rig.until(lambda: bool(rig.coordinator.of(protocol.Update)))
    rig.coordinator.announce(1, "closed")
    rig.turn()
    told = len(rig.coordinator.of(protocol.Update))
    for _ in range(2000):
        rig.turn()
    assert len(rig.coordinator.of(protocol.Update)) == told


def test_stale_foreign_and_malformed_messages_change_nothing(rig: Rig, caplog: pytest.LogCaptureFixture) -> None:
    rig.coordinator.announce()
    rig.whole_round(rig.coordinator.make_plan(2))
    record = rig.store.record
    coordinator = rig.coordinator
    coordinator.publish(DEVICE, topics.PLAN, coordinator.make_plan(1))
    coordinator.publish(DEVICE, topics.PLAN, coordinator.make_plan(3, run="other"))
    coordinator.publish(DEVICE, topics.PLAN, b"{}")
    coordinator.publish(DEVICE, topics.CHUNK, b"FMQC")
    coordinator.publish(DEVICE, topics.ACK, b"\xff" * 100)
    coordinator.publish(None, topics.ROUND, protocol.RoundState(RUN, 1, 9, "collect", 0, 1))
    for _ in range(50):
        rig.turn()
    other = coordinator.topics.device("pi-2", topics.PLAN)
    rig.agent.handle(Incoming(other, protocol.encode(coordinator.make_plan(3))))
    rig.turn()
    assert rig.store.record == record
    assert not [request for request in coordinator.of(protocol.Request) if request.plan]
    assert "message dropped" in caplog.text
    assert "another device" in caplog.text


def test_the_plan_of_an_open_round_is_asked_for_a_bounded_number_of_times(rig: Rig) -> None:
    rig.coordinator.announce(4, "collect")
    for _ in range(3000):
        rig.turn()
    asked = [r for r in rig.coordinator.of(protocol.Request) if r.plan]
    assert len(asked) == PLAN_REQUESTS
    rig.coordinator.plans[5] = protocol.encode(rig.coordinator.make_plan(5))
    rig.coordinator.announce(5, "collect")  # the plan itself is lost
    rig.until(rig.settled)
    assert update_of(rig).round == 5


def test_data_of_another_shape_is_complained_about(tmp_path: Path) -> None:
    rig = Rig(tmp_path)
    rig.kill()
    pixels = bytes(16 * 16 * 3 * 4)
    write_shard(rig.shard, pixels, bytes(8), shape=(16, 16, 3), classes=10, mean=bytes(3))
    rig.boot()
    rig.coordinator.announce()
    with pytest.raises(DataError, match="16×16×3"):
        rig.until(lambda: False)
    rig.coordinator.pump()
    (refusal,) = rig.coordinator.of(protocol.Refusal)
    assert (refusal.round, refusal.reason) == (0, "data")
    assert "16×16×3" in refusal.detail


def test_a_program_the_core_does_not_read_is_complained_about(tmp_path: Path) -> None:
    rig = Rig(tmp_path)
    bad = PROGRAM[:8] + b"\x09" + PROGRAM[9:]
    rig.coordinator.blobs[protocol.digest(bad)] = bad
    job = protocol.Job(protocol.digest(bad), len(bad), rig.coordinator.settings)
    rig.coordinator.publish(None, topics.COORD_STATE, protocol.CoordState(RUN, True, 1, job))
    with pytest.raises(FormatError):
        rig.until(lambda: False)
    rig.coordinator.pump()
    assert [r.reason for r in rig.coordinator.of(protocol.Refusal)] == ["program"]


@pytest.mark.parametrize("change", ["layers", "program"])
def test_a_plan_that_does_not_fit_the_program_is_refused(rig: Rig, change: str) -> None:
    plan = rig.coordinator.make_plan(1)
    changes = {"layers": plan.layers[:-1]} if change == "layers" else {"program": "0" * 64}
    rig.coordinator.announce()
    rig.whole_round(rig.coordinator.make_plan(1, **changes))
    (refusal,) = set(rig.coordinator.of(protocol.Refusal))
    assert refusal.reason == ("shape" if change == "layers" else "program")


def test_after_an_outage_the_device_announces_itself_again(rig: Rig) -> None:
    rig.coordinator.announce()
    rig.whole_round(rig.coordinator.make_plan(1))
    births = len(rig.coordinator.of(protocol.DeviceState))
    profiles = len(rig.coordinator.of(protocol.Profile))
    rig.agent.handle(Disconnected("broker gone"))
    assert rig.agent.tick() > 1
    rig.broker.attach(rig.link)
    rig.until(lambda: len(rig.coordinator.of(protocol.Profile)) > profiles)
    assert len(rig.coordinator.of(protocol.DeviceState)) == births + 1
    rig.whole_round(rig.coordinator.make_plan(2, seed=2))


def test_two_devices_of_one_name_are_an_error(rig: Rig) -> None:
    other = rig.broker.transport(rig.link.client_id)
    other.connect(())
    with pytest.raises(NetworkError, match="unique"):
        rig.until(lambda: False)


def test_the_next_run_starts_afresh(rig: Rig) -> None:
    rig.coordinator.announce()
    rig.whole_round(rig.coordinator.make_plan(7))
    rig.coordinator.announce(0, "waiting", run="r2")
    rig.until(lambda: any(p.run == "r2" for p in rig.coordinator.of(protocol.Profile)))
    plan = rig.coordinator.make_plan(1, run="r2", seed=5)
    rig.coordinator.plans[1] = protocol.encode(plan)
    rig.coordinator.announce(1, "collect", run="r2")
    rig.coordinator.publish(DEVICE, topics.PLAN, plan)
    rig.until(lambda: rig.settled() and update_of(rig).run == "r2")


def test_a_short_shard_trains_as_one_batch(tmp_path: Path) -> None:
    rig = Rig(tmp_path, samples=3)
    rig.coordinator.announce()
    rig.whole_round(rig.coordinator.make_plan(1))
    assert (update_of(rig).steps, update_of(rig).count) == (1, 3)


def test_the_net_of_these_tests_is_the_one_meant() -> None:
    assert len(core.Program(PROGRAM).weight_layers) == len(NET.layers) == 8


def test_memory_that_has_changed_is_told_between_rounds(tmp_path: Path) -> None:
    rig = Rig(tmp_path, limit=10**8)
    rig.coordinator.announce()
    rig.until(lambda: bool(rig.coordinator.of(protocol.Profile)))
    for budget, told in ((95 * 10**6, 1), (50 * 10**6, 2)):
        rig.agent.options = dataclasses.replace(rig.agent.options, limits=Limits(budget))
        rig.coordinator.announce(told, "waiting")
        for _ in range(200):
            rig.turn()
        budgets = [profile.budget_bytes for profile in rig.coordinator.of(protocol.Profile)]
        assert len(set(budgets)) == told, budgets
    assert budgets[-1] == 50 * 10**6


def test_memory_that_grows_does_not_bring_back_a_width_that_failed_its_trial(tmp_path: Path) -> None:
    class Tight(Rig):
        @staticmethod
        def trials(*given: Any) -> Trials:
            """Every width fits by plan; from 4 bits on the step cannot be run."""
            sizes, peak = trials_in_process(*given)
            return tuple(s if s.bits < 4 else dataclasses.replace(s, measured_bytes=None) for s in sizes), peak

    rig = Tight(tmp_path, limit=10**8)
    rig.coordinator.announce()
    rig.until(lambda: bool(rig.coordinator.of(protocol.Profile)))
    (first,) = {profile.budget_bytes for profile in rig.coordinator.of(protocol.Profile)}
    assert first == rig.coordinator.of(protocol.Profile)[0].plans[3].planned_bytes - 1
    for step, (free, told) in enumerate(((2 * 10**8, first), (first // 2, first // 2), (10**8, first)), 1):
        rig.agent.options = dataclasses.replace(rig.agent.options, limits=Limits(free))
        rig.coordinator.announce(step, "waiting")
        for _ in range(200):
            rig.turn()
        assert rig.coordinator.of(protocol.Profile)[-1].budget_bytes == told
