"""Pause, resume and cancel; backup and verify; clocks that jump; a disk that is full."""

from __future__ import annotations

import os
import random
import resource
import signal
import sqlite3
from collections.abc import Sequence
from pathlib import Path

import pytest
from click.testing import CliRunner

from fedmpq.cli.coordinator import command
from fedmpq.coordinator import control, status
from fedmpq.coordinator.backup import backup
from fedmpq.coordinator.blobs import BlobStore
from fedmpq.coordinator.clock import SteadyClock
from fedmpq.coordinator.journal import Journal
from fedmpq.coordinator.machine import Outgoing
from fedmpq.coordinator.verify import verify
from fedmpq.edge_runtime import protocol, topics
from fedmpq.errors import ConfigError, StateError, UsageError
from tests.helpers.fleet import Fleet, config, limits

TWO = limits(a=2, b=8)


def fleet(path: Path, **values: object) -> Fleet:
    made = Fleet(path, config(**{"min_devices": 2, "batch": 32, **values}), dict(TWO))
    made.announce()
    return made


def phase_told(made: Fleet) -> str:
    """The round's state as the fleet hears it."""
    (told,) = [m for m in made.machine.birth() if m.kind == topics.ROUND]
    return state_told([told]).phase


def state_told(out: Sequence[Outgoing]) -> protocol.RoundState:
    """The last state of the round among messages."""
    state = protocol.decode(topics.ROUND, [m for m in out if m.kind == topics.ROUND][-1].payload)
    assert isinstance(state, protocol.RoundState)
    return state


def answer(made: Fleet) -> None:
    for name in made.devices:
        if made.devices[name].work is not None:
            made.send(name, made.train(name))


# --- pause, resume, cancel ------------------------------------------------------------------------------------------


def test_a_paused_run_ends_its_round_and_opens_no_other(tmp_path: Path) -> None:
    made = fleet(tmp_path)
    made.tick()
    (tmp_path / "request").write_text("pause")
    made.tick()
    assert not (tmp_path / "request").exists()
    answer(made)
    made.tick()
    made.tick()
    assert made.run.round_row()["phase"] == "done"  # type: ignore[index]
    facts = status.status(made.run.journal)
    assert (facts["control"], facts["rounds_done"]) == ("paused", 1)
    assert "paused" in facts["waiting_for"]
    made.restart()  # it stays paused
    made.tick()
    assert made.run.round_row()["round"] == 1  # type: ignore[index]
    (tmp_path / "request").write_text("resume")
    made.play()
    assert made.machine.finished


def test_a_cancelled_run_tells_the_fleet_and_can_go_on(tmp_path: Path) -> None:
    plain = fleet(tmp_path / "plain")
    plain.play()
    made = fleet(tmp_path / "run")
    made.tick()
    late = made.train("a")
    (tmp_path / "run" / "request").write_text("cancel")
    made.tick()
    assert made.machine.cancelled
    assert phase_told(made) == "cancelled"
    (refused,) = made.machine.handle(topics.UPDATE, "a", late[0][1])
    ack = protocol.decode(topics.ACK, refused.payload)
    assert isinstance(ack, protocol.Ack)
    assert ack.reason == "closed"
    made.run.close()
    assert control.ask(tmp_path / "run", "resume", 0.0) == "running"
    made.machine = made.open()
    made.announce()
    made.send("a", late)
    made.play()
    assert made.model() == plain.model()


def test_a_run_that_is_cancelled_and_resumed_in_one_life_is_heard_again(tmp_path: Path) -> None:
    made = fleet(tmp_path)
    heard = state_told(made.machine.tick())
    for wish, phase in (("cancel", "cancelled"), ("resume", "collect")):
        (tmp_path / "request").write_text(wish)
        out = made.machine.tick()
        state = state_told(out)
        assert state.phase == phase
        assert state.order > heard.order  # a device drops a state that is not later than the one it knows
        heard = state
    assert {message.device for message in out if message.kind == topics.PLAN} == set(TWO)


def test_wishes_reach_a_running_coordinator_or_say_that_they_do_not(tmp_path: Path) -> None:
    made = fleet(tmp_path)
    with pytest.raises(StateError, match="does not answer"):
        control.ask(tmp_path, "pause", 0.0, wait_s=0.2)
    assert not (tmp_path / "request").exists()
    made.run.close()
    assert control.ask(tmp_path, "pause", 0.0) == "paused"
    with pytest.raises(StateError, match="no coordinator journal"):
        control.ask(tmp_path / "nowhere", "pause", 0.0)
    assert not (tmp_path / "nowhere").exists()


# --- backup and verify ------------------------------------------------------------------------------------------------


def test_a_backup_goes_on_to_the_same_result_while_the_original_does(tmp_path: Path) -> None:
    made = fleet(tmp_path / "run")
    made.tick()
    made.send("a", made.train("a"))
    facts = backup(tmp_path / "run", tmp_path / "copy")  # inside a round, one update in
    assert (facts["round"], facts["phase"]) == (1, "collect")
    assert verify(tmp_path / "copy")["good"]
    made.play()
    model, epoch = made.model(), made.machine.epoch
    assert verify(tmp_path / "run")["good"]
    made.run.close()
    made.clock.now += 100
    # The devices are further than the copy, and follow it back.
    again = Fleet(tmp_path / "copy", made.config, dict(TWO), clock=made.clock)
    assert again.machine.epoch > epoch
    again.announce()
    again.play()
    assert again.model() == model
    assert [row["state"] for row in again.run.assignments(1)] == ["accepted", "accepted"]


def test_a_backup_says_why_it_cannot_be_made(tmp_path: Path) -> None:
    made = fleet(tmp_path / "run")
    with pytest.raises(UsageError, match="inside"):
        backup(tmp_path / "run", tmp_path / "run" / "copy")
    (tmp_path / "taken").mkdir()
    (tmp_path / "taken" / "file").touch()
    with pytest.raises(UsageError, match="exists already"):
        backup(tmp_path / "run", tmp_path / "taken")
    name = made.run.journal.meta("model") or ""
    made.run.blobs.path(name).write_bytes(b"damaged")
    with pytest.raises(Exception, match="damaged"):
        backup(tmp_path / "run", tmp_path / "copy")
    assert not (tmp_path / "copy").exists()
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".")] == []


def test_verify_names_every_damage(tmp_path: Path) -> None:
    made = fleet(tmp_path)
    made.tick()
    answer(made)
    made.tick()
    made.send("a", made.train("a"))
    made.run.close()
    assert verify(tmp_path) == {**verify(tmp_path), "problems": [], "good": True}
    database = sqlite3.connect(tmp_path / "journal.sqlite")
    pack, model = database.execute(
        "SELECT pack, base_model FROM assignments JOIN rounds USING (round) WHERE round=2 AND state='accepted'"
    ).fetchone()
    for name in (pack, model):
        path = tmp_path / "blobs" / name[:2] / name
        data = path.read_bytes()
        path.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
        assert any("is damaged" in problem for problem in verify(tmp_path)["problems"])
        path.unlink()
        assert any("cannot read blob" in problem for problem in verify(tmp_path)["problems"])
        path.write_bytes(data)
    assert verify(tmp_path)["good"]
    for statement, problem in [
        ("UPDATE rounds SET next_model=base_model WHERE round=1", "does not start from the model of round 1"),
        ("UPDATE meta SET value='{}' WHERE key='model'", "not that of its last committed round"),
        ("UPDATE assignments SET ref='0' WHERE state='accepted' AND round=2", "not the one that was acknowledged"),
        ("UPDATE assignments SET plan_sha='0' WHERE round=2 AND device='b'", "not the one its hash names"),
        ("UPDATE rounds SET round=7 WHERE round=2", "round 2 is missing"),
    ]:
        database.execute(statement)
        database.commit()
        assert any(problem in line for line in verify(tmp_path)["problems"]), statement
    database.close()
    result = CliRunner().invoke(command, ["verify", "--dir", str(tmp_path)])
    assert isinstance(result.exception, StateError)
    assert "problem: " in result.output


def test_verify_of_a_damaged_journal_lists_what_is_wrong(tmp_path: Path) -> None:
    made = fleet(tmp_path)
    made.tick()
    answer(made)
    made.tick()
    made.run.close()
    path = tmp_path / "journal.sqlite"
    whole = path.read_bytes()
    noise = random.Random(1)
    problems: list[str] = []
    for at in range(4096, len(whole), 4096):  # without the first page it is no database
        path.write_bytes(whole[:at] + noise.randbytes(4096) + whole[at + 4096 :])
        problems += verify(tmp_path)["problems"]
        result = CliRunner().invoke(command, ["verify", "--dir", str(tmp_path)])
        assert isinstance(result.exception, StateError), result.output
    assert any("cannot be read" in problem for problem in problems)


def test_reading_a_damaged_journal_names_the_file(tmp_path: Path) -> None:
    made = fleet(tmp_path)
    made.run.close()
    database = sqlite3.connect(tmp_path / "journal.sqlite")
    database.execute("UPDATE devices SET profile='{'")
    for table in ("rounds", "meta"):
        database.execute(f"ALTER TABLE {table} RENAME TO {table}_lost")
    database.execute("ALTER TABLE devices RENAME COLUMN admission TO lost")
    database.commit()
    database.close()
    journal = Journal(tmp_path, read_only=True)
    for read in (
        lambda: journal.rows("SELECT * FROM rounds"),
        lambda: journal.row("SELECT profile FROM devices"),
        lambda: journal.meta("config"),
        journal.present,
    ):
        with pytest.raises(StateError, match=r"journal .*journal\.sqlite cannot be read: .*verify"):
            read()
    journal.close()


def test_verify_beside_a_run_that_goes_on_finds_no_damage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = fleet(tmp_path)
    made.tick()
    made.send("a", made.train("a"))
    real, moved = BlobStore.get, []

    def get(self: BlobStore, sha256: str) -> bytes:
        """The first look at a blob comes just before the round is committed and its updates are removed."""
        if self.root == tmp_path / "blobs" and not moved and self is not made.run.blobs:
            moved.append(sha256)
            made.send("b", made.train("b"))
            made.tick()
            assert made.run.round_row()["round"] == 2  # type: ignore[index]
        return real(self, sha256)

    monkeypatch.setattr(BlobStore, "get", get)
    assert verify(tmp_path)["problems"] == []
    assert moved


# --- what a data directory refuses ------------------------------------------------------------------------------------


def test_a_second_coordinator_another_run_and_another_version_are_refused(tmp_path: Path) -> None:
    made = fleet(tmp_path)
    with pytest.raises(StateError, match="another coordinator is using"):
        made.open()
    made.run.close()
    made.config = config(min_devices=2, batch=32, lr=0.5)
    with pytest.raises(ConfigError, match=r"holds a run with lr = 0\.05, not 0\.5"):
        made.open()
    database = sqlite3.connect(tmp_path / "journal.sqlite")
    database.execute("PRAGMA user_version=77")
    database.close()
    with pytest.raises(StateError, match="has version 77, this build reads"):
        made.open()


# --- clocks -----------------------------------------------------------------------------------------------------------


def test_the_steady_clock_ignores_jumps_of_the_wall() -> None:
    wall, ticks = [1000.0], [5.0]
    clock = SteadyClock(lambda: wall[0], lambda: ticks[0])
    assert clock() == 1000.0
    wall[0] += 86400
    ticks[0] += 3
    assert clock() == 1003.0


@pytest.mark.parametrize("jump", [-365 * 86400.0, -10.0, 20.0, 365 * 86400.0])
def test_a_clock_set_while_the_coordinator_was_down_closes_no_round_and_holds_none(tmp_path: Path, jump: float) -> None:
    made = fleet(tmp_path, deadline_s=60.0)
    made.tick()
    made.clock.now += jump
    made.restart()
    made.tick()
    row = made.run.round_row()
    assert row is not None
    assert row["phase"] == "collect"
    assert 30.0 <= row["deadline_at"] - made.clock.now <= 60.0
    made.play()


# --- a full disk ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("room", [0, 3_000, 30_000])
def test_a_full_data_directory_stops_with_one_line_and_loses_nothing(tmp_path: Path, room: int) -> None:
    """A limit on file sizes stands for the full disk: writes fail half-way in the same way."""
    plain = fleet(tmp_path / "plain")
    plain.play()
    directory = tmp_path / "run"
    made = fleet(directory)
    made.tick()
    made.run.close()
    largest = max(path.stat().st_size for path in directory.rglob("*") if path.is_file() and "blobs" not in str(path))
    report, other = os.pipe()
    child = os.fork()
    if child == 0:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (min(largest, room) if room < largest else room,) * 2)
        text = "nothing happened"
        try:
            made.machine = made.open()
            made.announce()
            made.play()
        except StateError as error:
            text = str(error)
        except BaseException as error:  # noqa: BLE001
            text = f"{type(error).__name__}: {error}"
        os.write(other, text.encode())
        os._exit(0)
    os.waitpid(child, 0)
    said = os.read(report, 4096).decode()
    os.close(report)
    os.close(other)
    assert "cannot be written" in said or "cannot write blob" in said or "cannot be used" in said, said
    made.machine = made.open()
    made.announce()
    made.play()
    assert made.model() == plain.model()
    assert verify(directory)["good"]


def test_the_commands_work_on_a_directory(tmp_path: Path) -> None:
    made = fleet(tmp_path / "run")
    made.play()
    made.run.close()
    run = CliRunner().invoke
    for verb in ("pause", "resume"):
        result = run(command, [verb, "--dir", str(tmp_path / "run"), "--json"])
        assert result.exit_code == 0, result.output
    assert Journal(tmp_path / "run", read_only=True).meta("control") == "running"
    result = run(command, ["backup", str(tmp_path / "copy"), "--dir", str(tmp_path / "run")])
    assert result.exit_code == 0, result.output
    result = run(command, ["verify", "--dir", str(tmp_path / "copy")])
    assert result.exit_code == 0, result.output
    assert "2 rounds" in result.output
