"""`fedmpq coordinator …` and `fedmpq simulate` on the command line: JSON, tables, one clear line for bad input."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from fedmpq.cli import _main
from fedmpq.coordinator.journal import Journal
from fedmpq.edge_runtime import artifact
from tests.helpers.fleet import Fleet, config, limits, plan_bytes


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("run")
    made = Fleet(path, config(rounds=1), {**limits(a=2, b=4, c=8), "tiny": plan_bytes((1,) * 8) - 5}, judge=True)
    made.announce()
    made.play()
    made.run.close()
    return path


def fedmpq(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str, str]:
    code = _main.run(list(arguments))
    captured = capsys.readouterr()
    return code, captured.out, captured.err


def test_status_tells_progress_and_refusals(finished: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = fedmpq(capsys, "coordinator", "status", "--dir", str(finished), "--json")
    assert code == 0
    facts = json.loads(out)
    assert (facts["rounds_done"], facts["phase"]) == (1, "done")
    assert facts["refused"][0]["device"] == "tiny"
    code, out, _ = fedmpq(capsys, "coordinator", "status", "--dir", str(finished))
    assert "refused tiny: budget: the smallest plan takes" in out
    assert "1 of 1" in out


def test_devices_and_profile_show_the_fleet(finished: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = fedmpq(capsys, "coordinator", "devices", "--dir", str(finished), "--json")
    assert code == 0
    rows = {row["device"]: row for row in json.loads(out)["devices"]}
    assert rows["c"]["bits"] == [8] * 8
    assert rows["a"]["headroom_bytes"] == rows["a"]["limit_bytes"] - rows["a"]["planned_bytes"] >= 0
    code, out, _ = fedmpq(capsys, "coordinator", "profile", "--dir", str(finished), "--json")
    plans = {row["device"]: row["plans"] for row in json.loads(out)["devices"]}
    assert [plan["bits"] for plan in plans["a"]] == list(range(1, 9))
    assert [plan["fits"] for plan in plans["b"]] == [True] * 4 + [False] * 4
    for words in (("devices",), ("profile",)):
        code, out, _ = fedmpq(capsys, "coordinator", *words, "--dir", str(finished))
        assert code == 0
        assert "tiny" in out


def test_export_model_writes_an_artifact(finished: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    for name, extra in (("last", ()), ("first", ("--round", "0"))):
        out_file = tmp_path / f"{name}.fmpq"
        words = ("coordinator", "export-model", "--dir", str(finished), "--bits", "4", "--out", str(out_file))
        code, out, _ = fedmpq(capsys, *words, *extra, "--json")
        assert code == 0
        assert json.loads(out)["bytes"] == out_file.stat().st_size
        assert [layer.bits for layer in artifact.read(out_file).layers] == [4] * 8
    assert artifact.read(tmp_path / "first.fmpq").layers != artifact.read(tmp_path / "last.fmpq").layers
    code, _, err = fedmpq(capsys, *words, "--round", "7")
    assert code == 10
    assert "no result of round 7" in err


@pytest.mark.parametrize("words", [("status",), ("devices",), ("profile",), ("export-model", "--out", "x")])
def test_an_absent_run_is_one_clear_line(
    words: tuple[str, ...], capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    code, out, err = fedmpq(capsys, "coordinator", *words, "--dir", str(tmp_path / "none"))
    assert (code, out) == (10, "")
    assert err.startswith("fedmpq: error: no coordinator journal in")
    assert err.count("\n") == 1
    assert not (tmp_path / "none").exists()


def test_a_damaged_journal_is_one_clear_line(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    (tmp_path / "journal.sqlite").write_bytes(b"not a database, but long enough to be read as one" * 100)
    code, _, err = fedmpq(capsys, "coordinator", "status", "--dir", str(tmp_path))
    assert code == 10
    assert "cannot be used" in err


@pytest.mark.parametrize(
    ("words", "code", "message"),
    [
        ((), 2, "holds no run yet"),
        (("resnet8",), 2, "give --test SHARD"),
        (("resnet8", "--test", "none.shard"), 4, "none.shard does not exist"),
        (("resnet8", "--set", "lr"), 2, "not KEY=VALUE"),
        (("resnet8", "--set", "speed=1"), 3, "unknown key 'speed'"),
        (("resnet8", "--strategy", "best"), 3, "unknown strategy 'best'"),
        (("resnet8", "--config", "none.toml"), 3, "none.toml cannot be read"),
        (("resnet8", "--set", "policy=walkk"), 3, "policy = 'walkk'"),
        (("resnet8", "--set", 'strategy=["aqfl"]'), 3, "strategy = ['aqfl']"),
    ],
)
def test_serve_refuses_what_it_cannot_use(
    words: tuple[str, ...], code: int, message: str, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    found, out, err = fedmpq(capsys, "coordinator", "serve", *words, "--dir", str(tmp_path / "run"))
    assert (found, out) == (code, "")
    assert message in err
    assert not (tmp_path / "run").exists()


def test_serve_goes_on_with_no_other_model(finished: Path, capsys: pytest.CaptureFixture[str]) -> None:
    journal = Journal(finished)
    with journal.transaction():
        journal.set_meta("model_name", "resnet8")
    journal.close()
    code, _, err = fedmpq(capsys, "coordinator", "serve", "resnet20", "--dir", str(finished))
    assert code == 10
    assert "holds a run of model resnet8, not resnet20" in err


def test_simulate_prints_one_document(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    words = ["--rounds", "1", "--clients", "3", "--budgets", "2,8", "--train", "90", "--test", "60", "--batch", "16"]
    code, out, _ = fedmpq(capsys, "simulate", *words, "--iid", "--out", str(tmp_path / "out"), "--json")
    assert code == 0
    facts = json.loads(out)
    assert facts["budgets"] == {"client-0": 2, "client-1": 8, "client-2": 2}
    assert facts["runs"][0]["rounds"][0]["accepted"] == 3
    assert json.loads((tmp_path / "out" / "result.json").read_text()) == facts


def test_simulate_names_the_clients_a_partition_leaves_empty(capsys: pytest.CaptureFixture[str]) -> None:
    code, _, err = fedmpq(capsys, "simulate", "--clients", "60", "--alpha", "0.01", "--train", "60")
    assert code == 4
    assert "leaves client" in err
