"""Hopeless rounds are given up, what a device does out of turn changes nothing, and bytes are counted once."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

from fedmpq.coordinator import machine
from fedmpq.edge_runtime import protocol, topics
from fedmpq.errors import RoundError
from tests.helpers.fleet import Fleet, config, limits

THREE = limits(a=2, b=4, c=8)


def fleet(path: Path, **values: object) -> Fleet:
    made = Fleet(path, config(**values), dict(THREE))
    made.announce()
    return made


def refuse(made: Fleet, name: str, limit: int = 0, reason: str = "memory") -> list[machine.Outgoing]:
    assignment = made.run.assignment(1, name)
    assert assignment is not None
    refusal = protocol.Refusal("test", 1, assignment["plan_sha"], reason, 1, limit, "")
    return made.machine.handle(topics.UPDATE, name, protocol.encode(refusal))


def begin_upload(made: Fleet, name: str) -> tuple[str, bytes]:
    """Sends the message of an update, none of its chunks yet; the chunks follow when the message is sent again."""
    ((kind, payload),) = [up for up in made.train(name) if up[0] == topics.UPDATE][:1]
    made.machine.handle(kind, name, payload)
    assert name in made.machine._inbox.uploads
    return kind, payload


# --- rounds that cannot succeed -----------------------------------------------------------------------------------


def test_a_round_nobody_can_win_is_given_up_at_the_next_start(tmp_path: Path) -> None:
    made = fleet(tmp_path)
    made.tick()
    first = made.model()
    for name in "abc":
        refuse(made, name)
    with pytest.raises(RoundError, match="no update was accepted"):
        made.tick()
    made.restart()
    made.tick()
    row = made.run.round_row()
    assert row is not None
    assert (row["round"], row["phase"]) == (2, "collect")
    assert made.run.blobs.get(row["base_model"]) == first
    (event,) = made.run.journal.rows("SELECT * FROM events WHERE kind='given-up'")
    assert event["detail"] == "no update was accepted, 3 devices refused or were rejected"
    made.play()
    assert made.model() != first


def test_past_abort_percent_the_next_start_goes_on_with_the_next_round(tmp_path: Path) -> None:
    made = fleet(tmp_path, abort_percent=30)
    made.tick()
    refuse(made, "a")
    with pytest.raises(RoundError, match="more than abort_percent = 30"):
        made.tick()
    made.restart()
    made.play()
    assert made.machine.finished


def test_a_start_after_the_last_extension_waits_as_long_again(tmp_path: Path) -> None:
    made = fleet(tmp_path, extensions=1)
    made.tick()
    made.send("a", made.train("a"))
    made.clock.now += 61
    made.tick()
    made.clock.now += 61
    with pytest.raises(RoundError, match="1 of 2 updates needed"):
        made.tick()
    made.restart()
    made.clock.now += 31
    made.tick()  # the time to come back is over: extended again
    made.send("b", made.train("b"))
    made.send("c", made.train("c"))
    made.tick()
    assert made.run.round_row()["round"] == 2  # type: ignore[index]


def test_a_quarantined_device_alone_waits_for_the_others(tmp_path: Path) -> None:
    made = fleet(tmp_path, min_devices=1, rounds=4, quarantine_after=1, quarantine_rounds=5)
    made.tick()
    ((kind, payload),) = [up for up in made.train("a") if up[0] == topics.UPDATE][:1]
    update = protocol.decode(kind, payload)
    assert isinstance(update, protocol.Update)
    made.machine.handle(kind, "a", protocol.encode(dataclasses.replace(update, count=update.count + 1)))
    for name in "bc":  # their wills come as soon as they have answered
        made.send(name, made.train(name))
        made.machine.handle(topics.STATE, name, offline(made, name))
    made.tick()
    assert (made.run.round_row()["round"], made.run.round_row()["phase"]) == (1, "done")  # type: ignore[index]
    made.announce(["b"])
    made.tick()
    assert [a["device"] for a in made.run.assignments(2)] == ["b"]
    made.send("b", made.train("b"))
    with made.run.journal.transaction() as journal:
        journal.write("UPDATE devices SET admission='refused' WHERE device!='a'")
    with pytest.raises(RoundError, match="every device is in quarantine"):
        made.tick()


def offline(made: Fleet, name: str) -> bytes:
    """The will of a device."""
    known = made.run.device(name)
    assert known is not None
    return protocol.encode(protocol.DeviceState(name, False, known["bd_seq"], known["version"]))


# --- out of turn --------------------------------------------------------------------------------------------------


def test_an_upload_under_a_plan_that_was_replaced_does_not_count(tmp_path: Path) -> None:
    made = fleet(tmp_path, retries=2)
    made.tick()
    device = made.devices["c"]
    kind, payload = begin_upload(made, "c")
    made.route(refuse(made, "c", limit=THREE["b"]))
    assert "c" not in made.machine._inbox.uploads
    made.route(made.machine.handle(kind, "c", payload))
    assignment = made.run.assignment(1, "c")
    assert assignment is not None
    assert (assignment["state"], assignment["reason"]) == ("rejected", "stale-round")
    assert device.limit_bytes == THREE["c"]


@pytest.mark.parametrize(("weighting", "same"), [("samples", True), ("samples-bits", False)])
def test_a_smaller_plan_lowers_the_weight_only_where_bits_weigh(tmp_path: Path, weighting: str, same: bool) -> None:
    made = fleet(tmp_path, weighting=weighting, retries=2)
    made.tick()
    before = made.run.assignment(1, "c")
    refuse(made, "c", limit=THREE["b"])
    after = made.run.assignment(1, "c")
    assert before is not None
    assert after is not None
    assert after["budget16"] < before["budget16"]
    assert (after["weight"] == before["weight"]) == same


# --- bytes and the disk -------------------------------------------------------------------------------------------


def test_the_bytes_of_a_round_outlive_a_restart(tmp_path: Path) -> None:
    made = fleet(tmp_path)
    made.tick()
    made.send("a", made.train("a"))
    before = made.run.assignment(1, "a")
    assert before is not None
    made.restart()
    for name in "bc":
        made.send(name, made.train(name))
    made.tick()
    after = made.run.assignment(1, "a")
    assert after is not None
    assert after["bytes_up"] >= before["bytes_up"] > 1000
    assert after["bytes_down"] >= before["bytes_down"] > 1000


def test_what_goes_to_a_device_is_counted_once(tmp_path: Path) -> None:
    made = fleet(tmp_path)
    made.tick()
    assignment = made.run.assignment(1, "a")
    assert assignment is not None
    before = made.run.traffic["a"][1]
    answers = made.machine.handle(
        topics.REQUEST, "a", protocol.encode(protocol.Request("test", 1, plan=True, wants=()))
    )
    assert [answer.kind for answer in answers] == [topics.PLAN]
    assert made.run.traffic["a"][1] - before == len(assignment["plan"])


def test_updates_of_no_round_fill_no_disk(tmp_path: Path) -> None:
    made = fleet(tmp_path)
    made.tick()
    ((_, payload),) = [up for up in made.train("a") if up[0] == topics.UPDATE][:1]
    update = protocol.decode(topics.UPDATE, payload)
    assert isinstance(update, protocol.Update)
    count = "SELECT COUNT(*) AS n FROM verdicts WHERE device='a' AND of='update'"
    for number in range(300):
        wrong = protocol.encode(dataclasses.replace(update, round=7, train_ms=number))
        assert made.machine.handle(topics.UPDATE, "a", wrong)  # answered all the same
    assert made.run.journal.rows(count)[0]["n"] == machine.ODD_NOTED
    made.clock.now += machine.NOTE_EVERY_S
    made.machine.handle(topics.UPDATE, "a", protocol.encode(dataclasses.replace(update, round=8)))
    assert made.run.journal.rows(count)[0]["n"] == machine.ODD_NOTED + 1
