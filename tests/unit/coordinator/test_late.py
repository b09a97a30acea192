"""Updates after the deadline, memory that shrinks, and rounds in which too many fail."""

from __future__ import annotations

from pathlib import Path

import pytest

from fedmpq.coordinator import rounds
from fedmpq.edge_runtime import protocol, topics
from fedmpq.errors import ConfigError, RoundError
from tests.helpers.fleet import Fleet, config, limits, plan_bytes

THREE = limits(a=2, b=4, c=8)


def fleet(path: Path, **values: object) -> Fleet:
    made = Fleet(path, config(**{"rounds": 4, "min_devices": 2, "batch": 32, **values}), dict(THREE))
    made.announce()
    return made


def round_without_c(made: Fleet) -> None:
    """a and b answer, the deadline passes, and the next round is open."""
    made.tick()
    for name in "ab":
        made.send(name, made.train(name))
    made.clock.now += 61
    made.tick()


def decoded(messages: list[object]) -> list[protocol.Message]:
    return [protocol.decode(m.kind, m.payload) for m in messages]  # type: ignore[attr-defined]


def test_a_late_update_counts_in_the_present_round_with_half_its_weight(tmp_path: Path) -> None:
    made = fleet(tmp_path, late_rounds=2)
    round_without_c(made)
    assert {a["device"]: a["state"] for a in made.run.assignments(2)} == {"a": "assigned", "b": "assigned"}
    late = made.train("c")
    made.send("c", late)
    first, second = made.run.assignment(1, "c"), made.run.assignment(2, "c")
    assert first is not None
    assert second is not None
    assert (first["state"], second["state"]) == ("folded", "accepted")
    assert second["weight"] == first["weight"] // 2
    assert second["detail"] == "trained in round 1, counted in round 2"
    (again,) = decoded(made.machine.handle(*late[0][:1], "c", late[0][1]))  # its answer was lost
    assert isinstance(again, protocol.Ack)
    assert again.accepted
    made.restart()  # nothing of it is lost
    made.send("a", made.train("a"))
    made.send("b", made.train("b"))
    made.tick()
    (event,) = made.run.journal.rows("SELECT * FROM events WHERE kind='aggregated' AND round=2")
    assert event["detail"].startswith("3 updates")
    assert {a["device"] for a in made.run.assignments(3)} == {"a", "b", "c"}
    made.play()


def test_the_order_of_a_late_update_changes_no_byte(tmp_path: Path) -> None:
    models = set()
    for order in ("cab", "abc", "acb"):
        made = fleet(tmp_path / order, late_rounds=1, rounds=2, per_round=0)
        round_without_c(made)
        row = made.run.round_row()
        assert row is not None
        trained = {name: made.train(name) for name in order}
        for name in order:
            for message in trained[name]:
                made.route(made.machine.handle(message[0], name, message[1]))
        assert {a["state"] for a in made.run.assignments(2)} == {"accepted"}
        rounds.close(made.run, row)
        made.tick()
        models.add(made.model())
    assert len(models) == 1


def test_between_rounds_a_late_update_waits_and_too_late_it_is_dropped(tmp_path: Path) -> None:
    made = fleet(tmp_path, late_rounds=1)
    round_without_c(made)
    late = made.train("c")
    for name in "ab":
        made.send(name, made.train(name))
    row = made.run.round_row()
    assert row is not None
    rounds.close(made.run, row)
    assert made.machine.handle(topics.UPDATE, "c", late[0][1]) == []  # no verdict: it says it again
    made.tick()
    made.clock.now += 61
    made.devices["a"].work = made.devices["b"].work = None
    assert made.run.round_row()["round"] == 3  # type: ignore[index]
    (verdict,) = decoded(made.machine.handle(topics.UPDATE, "c", late[0][1]))
    assert isinstance(verdict, protocol.Ack)
    assert (verdict.accepted, verdict.reason) == (False, "stale-round")


def test_late_rounds_need_a_run_of_changes(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="late_rounds = 1 needs"):
        config(late_rounds=1, aggregation="models")


def refusal(made: Fleet, name: str, limit: int, plan: str = "") -> list[protocol.Message]:
    row = made.run.round_row()
    assert row is not None
    assignment = made.run.assignment(row["round"], name)
    assert assignment is not None
    message = protocol.Refusal("test", row["round"], plan or assignment["plan_sha"], "memory", 1, limit, "the arena")
    return decoded(made.machine.handle(topics.UPDATE, name, protocol.encode(message)))


def test_a_device_whose_memory_has_shrunk_gets_a_smaller_plan_in_the_same_round(tmp_path: Path) -> None:
    made = fleet(tmp_path, min_devices=3, retries=2)
    made.tick()
    for number, bits in enumerate((5, 3)):
        limit = limits(x=bits)["x"]
        ack, plan = refusal(made, "c", limit)
        assert isinstance(ack, protocol.Ack)
        assert isinstance(plan, protocol.PlanMessage)
        assert plan_bytes(plan.bits) <= limit
        assert len(made.run.journal.rows("SELECT * FROM events WHERE kind='replanned'")) == number + 1
    made.route(made.machine.birth())  # the plan now is the smaller one
    made.play()
    assert {a["state"] for a in made.run.assignments(1)} == {"accepted"}
    assert made.run.device("c")["limit_bytes"] == limits(x=3)["x"]  # type: ignore[index]


def test_retries_are_counted_and_nothing_fits_ends_them(tmp_path: Path) -> None:
    made = fleet(tmp_path, min_devices=3, retries=1)
    made.tick()
    assert len(refusal(made, "c", limits(x=5)["x"])) == 2
    assert len(refusal(made, "c", limits(x=4)["x"])) == 1
    assert len(refusal(made, "b", 1)) == 1
    assert {a["device"]: a["state"] for a in made.run.assignments(1)} == {
        "a": "assigned", "b": "refused", "c": "refused",
    }  # fmt: skip


def test_a_round_in_which_too_many_fail_stops_the_run(tmp_path: Path) -> None:
    made = fleet(tmp_path, min_devices=3, abort_percent=34, retries=0)
    made.tick()
    refusal(made, "b", 1)
    made.tick()
    refusal(made, "c", 1)
    with pytest.raises(RoundError, match="2 of 3 devices refused or were rejected"):
        made.tick()


def test_a_refusal_that_comes_again_gets_the_smaller_plan_again(tmp_path: Path) -> None:
    made = fleet(tmp_path, min_devices=3, retries=2)
    made.tick()
    assignment = made.run.assignment(1, "c")
    assert assignment is not None
    limit = limits(x=5)["x"]
    told = [refusal(made, "c", limit, assignment["plan_sha"]) for _ in range(4)]
    assert all(answers == told[0] for answers in told)
    assert len(made.run.journal.rows("SELECT * FROM events WHERE kind='replanned'")) == 1
    made.route(made.machine.birth())
    made.play()
    assert {a["state"] for a in made.run.assignments(1)} == {"accepted"}
