"""The round state machine with virtual devices that train by the C core."""

from __future__ import annotations

import dataclasses
import itertools
import sqlite3
from pathlib import Path

import pytest

from fedmpq.coordinator import rounds, status
from fedmpq.coordinator.journal import Journal
from fedmpq.edge_runtime import chunks, protocol, topics
from fedmpq.errors import ConfigError, RoundError, StateError
from tests.helpers.fleet import LAYOUT, Fleet, config, limits, plan_bytes

THREE = limits(a=2, b=4, c=8)


def fleet(path: Path, **values: object) -> Fleet:
    made = Fleet(path, config(**values), dict(THREE))
    made.announce()
    return made


def states(made: Fleet, round_no: int = 1) -> dict[str, str]:
    return {a["device"]: a["state"] for a in made.run.assignments(round_no)}


def verdicts(made: Fleet) -> list[tuple[str, str]]:
    return [(row["device"], row["verdict"]) for row in made.run.journal.rows("SELECT * FROM verdicts ORDER BY id")]


def ack(messages: list[object]) -> protocol.Ack:
    (message,) = messages
    decoded = protocol.decode(message.kind, message.payload)  # type: ignore[attr-defined]
    assert isinstance(decoded, protocol.Ack)
    return decoded


def test_a_run_goes_through_all_its_rounds(tmp_path: Path) -> None:
    made = Fleet(tmp_path, config(rounds=2), dict(THREE), judge=True)
    made.announce()
    made.play()
    facts = status.status(made.run.journal)
    assert (facts["phase"], facts["rounds_done"], facts["waiting_for"]) == ("done", 2, None)
    for row in facts["rounds"]:
        assert row["accepted"] == 3
        assert row["bytes_up"] > 0
        assert row["bytes_down"] > 0
        assert 0 <= row["accuracy"] <= 100
        for device in row["devices"]:
            assert device["planned_bytes"] <= THREE[device["device"]]
    budgets = {d["device"]: d["budget_bits"] for d in status.devices(made.run.journal)}
    assert budgets["a"] <= 2 < budgets["b"] <= 4 < budgets["c"] == 8


@pytest.mark.parametrize("aggregation", ["models", "changes"])
def test_the_order_of_arrival_changes_no_byte(tmp_path: Path, aggregation: str) -> None:
    models = set()
    for number, order in enumerate(itertools.permutations("abc")):
        made = fleet(tmp_path / str(number), aggregation=aggregation)
        made.play(order=order)
        models.add(made.model())
        made.run.close()
    assert len(models) == 1


def test_client_weights_are_samples_times_budget(tmp_path: Path) -> None:
    made = fleet(tmp_path)
    made.tick()
    weights = {a["device"]: (a["weight"], a["samples"], a["budget16"]) for a in made.run.assignments(1)}
    assert all(weight == samples * budget for weight, samples, budget in weights.values())


def test_a_round_closes_at_its_deadline_with_a_quorum(tmp_path: Path) -> None:
    made = fleet(tmp_path, quorum_percent=60)
    made.tick()
    for name in "ab":
        made.send(name, made.train(name))
    made.clock.now += 59
    made.tick()
    assert made.run.round_row()["phase"] == "collect"  # type: ignore[index]
    made.clock.now += 2
    made.tick()
    assert states(made) == {"a": "accepted", "b": "accepted", "c": "missed"}
    assert made.run.round_row()["round"] == 2  # type: ignore[index]
    late = ack(made.machine.handle(*_first(made, "c")))
    assert (late.accepted, late.reason) == (False, "stale-round")
    made.play()
    assert states(made, 2)["c"] == "accepted"


def _first(made: Fleet, name: str) -> tuple[str, str, bytes]:
    """The update of round 1, trained although the round is over."""
    device = made.devices[name]
    plan = protocol.decode(topics.PLAN, made.run.assignment(1, name)["plan"])  # type: ignore[index]
    assert isinstance(plan, protocol.PlanMessage)
    layers = tuple(dataclasses.replace(layer) for layer in plan.layers)
    update = protocol.Update(
        run="test", round=1, plan=plan.identity, samples=device.samples.count, steps=1, count=1, correct=0, loss_q16=0,
        planned_bytes=0, measured_bytes=0, train_ms=0, layers=layers,
    )  # fmt: skip
    return topics.UPDATE, name, protocol.encode(update)


def test_without_a_quorum_the_deadline_moves_and_then_the_run_stops(tmp_path: Path) -> None:
    made = fleet(tmp_path, extensions=2)
    made.tick()
    made.send("a", made.train("a"))
    for _ in range(2):
        made.clock.now += 61
        made.tick()
        assert made.run.round_row()["phase"] == "collect"  # type: ignore[index]
    made.clock.now += 61
    with pytest.raises(RoundError, match="1 of 2 updates needed"):
        made.tick()
    assert len(made.run.journal.rows("SELECT * FROM events WHERE kind='no-quorum'")) == 2


def test_a_restart_continues_inside_the_round_and_no_device_trains_again(tmp_path: Path) -> None:
    plain = fleet(tmp_path / "plain")
    plain.play()
    made = fleet(tmp_path / "killed")
    made.tick()
    update_a = made.train("a")
    made.send("a", update_a)
    made.restart()
    assert states(made)["a"] == "accepted"
    assert made.devices["a"].work is None  # nobody asked it again
    # Its ack was lost: the same update gets the same answer, without a chunk travelling.
    assert ack(made.machine.handle(topics.UPDATE, "a", update_a[0][1])).accepted
    made.play()
    assert made.model() == plain.model()


def test_every_transition_survives_a_restart(tmp_path: Path) -> None:
    plain = fleet(tmp_path / "plain")
    plain.play()
    made = fleet(tmp_path / "killed")
    while not made.machine.finished:
        for _ in made.machine._advance():
            made.restart()  # after each transition, before anything it made due was sent
            break
        for name in "abc":
            if made.devices[name].work is not None:
                made.send(name, made.train(name))
                made.restart()
    assert made.model() == plain.model()
    assert len(made.run.journal.rows("SELECT * FROM verdicts WHERE of='update'")) == 6


def test_a_device_that_fits_nothing_is_refused_before_any_plane(tmp_path: Path) -> None:
    made = Fleet(tmp_path, config(), {**THREE, "tiny": plan_bytes((1,) * len(LAYOUT.layers)) - 1})
    made.announce()
    made.play()
    assert "tiny" not in states(made)
    (refused,) = status.status(made.run.journal)["refused"]
    needed = plan_bytes((1,) * len(LAYOUT.layers))
    assert refused["device"] == "tiny"
    assert refused["reason"] == "budget"
    assert refused["detail"] == f"the smallest plan takes {needed} bytes, the device allows {needed - 1}"
    want = protocol.Want(made.run.serving(made.run.round_row()).packed(0, 1).blobs.params, "01")  # type: ignore[arg-type]
    request = protocol.encode(protocol.Request("test", 1, False, (want,)))
    assert made.machine.handle(topics.REQUEST, "tiny", request) == []


def test_only_missing_planes_travel(tmp_path: Path) -> None:
    """Unchanged planes go up by name only: an update identical to the start costs one message."""
    made = fleet(tmp_path)
    made.tick()
    _, _, payload = _first(made, "a")
    answer = ack(made.machine.handle(topics.UPDATE, "a", payload))
    assert answer.accepted


# --- what is refused --------------------------------------------------------------------------------------------


def changed(made: Fleet, name: str, **values: object) -> bytes:
    update = protocol.decode(topics.UPDATE, _first(made, name)[2])
    assert isinstance(update, protocol.Update)
    return protocol.encode(dataclasses.replace(update, **values))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("values", "reason"),
    [
        ({"round": 7}, "stale-round"),
        ({"run": "other"}, "stale-round"),
        ({"plan": "0" * 64}, "stale-round"),
        ({"count": 49}, "range"),
        ({"count": 5, "correct": 6}, "range"),
    ],
)
def test_claims_that_cannot_be_are_rejected(tmp_path: Path, values: dict[str, object], reason: str) -> None:
    made = fleet(tmp_path)
    made.tick()
    answer = ack(made.machine.handle(topics.UPDATE, "a", changed(made, "a", **values)))
    assert (answer.accepted, answer.reason) == (False, reason)
    assert ("a", f"rejected:{reason}") in verdicts(made)


def test_layers_that_differ_from_the_plan_are_rejected(tmp_path: Path) -> None:
    made = fleet(tmp_path)
    made.tick()
    update = protocol.decode(topics.UPDATE, _first(made, "a")[2])
    assert isinstance(update, protocol.Update)
    head = update.layers[0]
    fewer = changed(made, "a", layers=update.layers[:-1])
    assert ack(made.machine.handle(topics.UPDATE, "a", fewer)).reason == "shape"
    other = protocol.decode(topics.UPDATE, _first(made, "b")[2])
    assert isinstance(other, protocol.Update)
    head = other.layers[0]
    moved = dataclasses.replace(head, step=(head.step[0], head.step[1] + 1))
    payload = changed(made, "b", layers=(moved, *other.layers[1:]))
    assert ack(made.machine.handle(topics.UPDATE, "b", payload)).reason == "range"
    made.send("c", made.train("c"))
    assert states(made) == {"a": "rejected", "b": "rejected", "c": "accepted"}


def test_more_bits_than_assigned_are_rejected(tmp_path: Path) -> None:
    made = fleet(tmp_path)
    made.tick()
    update = protocol.decode(topics.UPDATE, _first(made, "a")[2])
    assert isinstance(update, protocol.Update)
    head = update.layers[0]
    wider = dataclasses.replace(head, bits=head.bits + 1, planes=(*head.planes, head.planes[0]))
    answer = ack(made.machine.handle(topics.UPDATE, "a", changed(made, "a", layers=(wider, *update.layers[1:]))))
    assert answer.reason == "range"
    assert "bits" in answer.detail


def test_a_second_update_is_a_duplicate_and_the_same_one_is_not(tmp_path: Path) -> None:
    made = fleet(tmp_path)
    made.tick()
    mine = made.train("a")
    made.send("a", mine)
    assert ack(made.machine.handle(topics.UPDATE, "a", mine[0][1])).accepted
    other = ack(made.machine.handle(topics.UPDATE, "a", changed(made, "a", train_ms=5)))
    assert other.reason == "duplicate"
    assert [v for v in verdicts(made) if v == ("a", "accepted")].count(("a", "accepted")) == 2  # profile and update


def test_a_device_outside_the_round_is_not_selected(tmp_path: Path) -> None:
    made = Fleet(tmp_path, config(min_devices=2), dict(THREE))
    made.announce(["a", "b"])
    made.tick()
    made.announce(["c"])
    payload = _first(made, "a")[2]
    assert ack(made.machine.handle(topics.UPDATE, "c", payload)).reason == "not-selected"
    assert ack(made.machine.handle(topics.UPDATE, "nobody", payload)).reason == "unknown-device"


def test_planes_that_lie_are_rejected(tmp_path: Path) -> None:
    """A plane of the right length and hash whose bits cannot be: a sign on a zero weight."""
    made = fleet(tmp_path)
    made.tick()
    device = made.devices["a"]
    messages = made.train("a")
    update = protocol.decode(topics.UPDATE, messages[0][1])
    assert isinstance(update, protocol.Update)
    shape = LAYOUT.layers[1]
    lie = b"\xff" * shape.plane_bytes
    layer = update.layers[1]
    planes = (protocol.digest(lie), *layer.planes[1:])
    device._sent[planes[0]] = lie
    forged = dataclasses.replace(layer, planes=planes)
    payload = protocol.encode(dataclasses.replace(update, layers=(update.layers[0], forged, *update.layers[2:])))
    made.send("a", [(topics.UPDATE, payload)])
    row = made.run.assignment(1, "a")
    assert row is not None
    assert (row["state"], row["reason"]) == ("rejected", "shape")
    assert "negative sign" in row["detail"]


def test_corrupt_chunks_are_asked_for_again(tmp_path: Path) -> None:
    """A chunk with a good checksum whose blob has another hash: everything of that blob is asked for again."""
    made = fleet(tmp_path)
    made.tick()
    messages = made.train("a")
    out = made.machine.handle(topics.UPDATE, "a", messages[0][1])
    need = protocol.decode(topics.ACK, out[0].payload)
    assert isinstance(need, protocol.Need)
    answers = made.devices["a"].receive(topics.ACK, out[0].payload)
    good = chunks.decode_chunks(answers[0][1])[0]
    bad = chunks.encode_chunk(good.sha256, bytes(good.size), 0)
    again = made.machine.handle(topics.UPDATE, "a", bad)
    second = protocol.decode(topics.ACK, again[0].payload)
    assert isinstance(second, protocol.Need)
    assert good.sha256 in {want.sha256 for want in second.wants}
    made.send("a", answers)
    assert states(made)["a"] == "accepted"
    assert made.run.journal.rows("SELECT * FROM events WHERE kind='damaged'")


def test_malformed_messages_are_journalled_and_answered_with_nothing(tmp_path: Path) -> None:
    made = fleet(tmp_path)
    for kind, payload in [
        (topics.UPDATE, b"{"),
        (topics.PROFILE, b"[]"),
        (topics.REQUEST, b"FMQC"),
        (topics.STATE, b""),
    ]:
        assert made.machine.handle(kind, "a", payload) == []
    assert len(made.run.journal.rows("SELECT * FROM events WHERE kind='malformed'")) == 4
    foreign = made.devices["a"].birth()
    for kind, payload in foreign:  # a's messages on b's topics
        assert made.machine.handle(kind, "b", payload) == []


def test_refusals_are_told_in_status_and_the_round_goes_on(tmp_path: Path) -> None:
    made = fleet(tmp_path)
    made.tick()
    plan = protocol.decode(topics.PLAN, made.run.assignment(1, "a")["plan"])  # type: ignore[index]
    assert isinstance(plan, protocol.PlanMessage)
    refusal = protocol.Refusal("test", 1, plan.identity, "memory", 5000, 4000, "swap is off")
    assert ack(made.machine.handle(topics.UPDATE, "a", protocol.encode(refusal))).accepted
    for name in "bc":
        made.send(name, made.train(name))
    made.tick()
    first = status.status(made.run.journal)["rounds"][0]
    (told,) = [d for d in first["devices"] if d["device"] == "a"]
    assert (told["state"], told["reason"]) == ("refused", "memory")
    assert told["detail"] == "5000 bytes planned, 4000 allowed; swap is off"
    assert first["accepted"] == 2


def test_everyone_refusing_ends_the_run_with_an_error(tmp_path: Path) -> None:
    made = fleet(tmp_path)
    made.tick()
    for name in "abc":
        plan = made.run.assignment(1, name)["plan_sha"]  # type: ignore[index]
        refusal = protocol.Refusal("test", 1, plan, "memory", 1, 0, "")
        made.machine.handle(topics.UPDATE, name, protocol.encode(refusal))
    with pytest.raises(RoundError, match="no update was accepted"):
        made.tick()


# --- selection, directories ---------------------------------------------------------------------------------------


def test_over_selection_asks_more_and_closes_with_the_wanted_number(tmp_path: Path) -> None:
    made = fleet(tmp_path, per_round=2, over_selection=50)
    made.tick()
    asked = states(made)
    assert len(asked) == 3
    for name in list(asked)[:2]:
        made.send(name, made.train(name))
    made.tick()
    assert sorted(states(made).values()) == ["accepted", "accepted", "missed"]
    assert made.run.round_row()["round"] == 2  # type: ignore[index]


def test_selection_depends_on_seed_and_round_only(tmp_path: Path) -> None:
    drawn = []
    for number, order in enumerate(("abc", "cba")):
        made = Fleet(tmp_path / str(number), config(per_round=1), dict(THREE))
        made.announce(list(order))
        made.tick()
        drawn.append(sorted(states(made)))
    assert drawn[0] == drawn[1]
    assert len(drawn[0]) == 1


def test_a_second_coordinator_on_the_directory_is_refused(tmp_path: Path) -> None:
    made = fleet(tmp_path)
    with pytest.raises(StateError, match="another coordinator is using"):
        made.open()


def test_another_configuration_is_refused_by_key(tmp_path: Path) -> None:
    made = fleet(tmp_path)
    made.run.close()
    made.config = config(lr=0.2)
    with pytest.raises(ConfigError, match=r"lr = 0\.05, not 0\.2"):
        made.open()


def test_offline_devices_are_not_selected_and_an_old_will_is_ignored(tmp_path: Path) -> None:
    made = Fleet(tmp_path, config(min_devices=2), dict(THREE))
    made.announce()
    old = protocol.encode(protocol.DeviceState("b", False, 0, "virtual"))
    made.machine.handle(topics.STATE, "b", old)
    gone = protocol.encode(protocol.DeviceState("a", False, 1, "virtual"))
    made.machine.handle(topics.STATE, "a", gone)
    made.tick()
    assert sorted(states(made)) == ["b", "c"]


def test_the_client_number_is_the_names_and_never_the_servers() -> None:
    assert rounds.client_number("a") == rounds.client_number("a") != rounds.client_number("b")
    # The one name in four billion that would collide with the server's number is moved to 0.
    import hashlib
    import struct

    for name in ("a", "device-7"):
        (number,) = struct.unpack("<I", hashlib.sha256(name.encode()).digest()[:4])
        assert rounds.client_number(name) == number


def test_present_devices_are_counted_by_an_index_that_older_journals_get(tmp_path: Path) -> None:
    made = fleet(tmp_path)
    assert made.run.journal.present() == 3
    made.machine.handle(topics.STATE, "a", protocol.encode(protocol.DeviceState("a", False, 1, "virtual")))
    assert made.run.journal.present() == 2
    made.run.close()
    with sqlite3.connect(tmp_path / "journal.sqlite") as opened:
        opened.execute("DROP INDEX present")
    opened.close()
    journal = Journal(tmp_path)
    query = "EXPLAIN QUERY PLAN SELECT COUNT(*) FROM devices WHERE online=1 AND admission='admitted'"
    assert "INDEX present" in str(journal.rows(query)[0]["detail"])
    journal.close()


def test_what_a_device_says_again_is_answered_and_not_written_again(tmp_path: Path) -> None:
    made = fleet(tmp_path)
    journal = made.run.journal
    changes = journal.changes
    for _ in range(3):
        for kind, payload in made.devices["a"].birth():
            answers = made.machine.handle(kind, "a", payload)
    assert journal.changes == changes
    assert protocol.decode(topics.ACK, answers[0].payload).accepted  # type: ignore[union-attr]
    assert len(journal.rows("SELECT id FROM verdicts WHERE of='profile' AND device='a'")) == 1
    made.devices["a"].limit_bytes += 1
    for kind, payload in made.devices["a"].birth():
        made.machine.handle(kind, "a", payload)
    assert len(journal.rows("SELECT id FROM verdicts WHERE of='profile' AND device='a'")) == 2
