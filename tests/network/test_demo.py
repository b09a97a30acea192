"""The demo from its command line, cut short: broker, coordinator, four devices, both methods, one document."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from fedmpq.coordinator.broker import find_mosquitto
from fedmpq.demo.scenario import BUDGETS

pytestmark = [
    pytest.mark.network,
    pytest.mark.slow,
    pytest.mark.skipif(find_mosquitto() is None, reason="there is no mosquitto on this machine"),
]


def demo(out: Path, *options: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "fedmpq", "demo", "--out", str(out), "--json", *options]
    return subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)


def test_a_short_demo_gives_the_document_of_the_contract(tmp_path: Path) -> None:
    done = demo(tmp_path, "--rounds", "2", "--epochs", "1", "--train-images", "300")
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout)
    assert 0 <= result["final_accuracy"] <= 100
    assert 0 <= result["aqfl_accuracy"] <= 100
    for rounds in (result["rounds"], result["aqfl"]["rounds"]):
        assert [row["round"] for row in rounds] == [1, 2]
        for row in rounds:
            assert {"accuracy", "bytes_up", "bytes_down"} <= row.keys()
            assert [round(device["bits"]) for device in row["devices"]] == list(BUDGETS)
            for device in row["devices"]:
                assert device["planned_bytes"] == device["measured_bytes"] <= device["limit_bytes"]
                assert device["state"] == "accepted"
            assert row["bytes_up"] == sum(device["bytes_up"] for device in row["devices"])
    assert (tmp_path / "demo.png").read_bytes().startswith(b"\x89PNG")
    assert json.loads((tmp_path / "demo.json").read_text()) == result
    assert len(list((tmp_path / "logs").glob("*.log"))) == 2 * len(BUDGETS)


def test_the_same_seed_gives_the_same_accuracy(tmp_path: Path) -> None:
    options = ("--rounds", "1", "--epochs", "1", "--train-images", "200", "--no-aqfl")
    first, second = (json.loads(demo(tmp_path / name, *options).stdout) for name in ("a", "b"))
    assert first["aqfl"] is None
    assert [row["loss"] for row in first["rounds"]] == [row["loss"] for row in second["rounds"]]


def test_data_that_are_not_there_are_one_line(tmp_path: Path) -> None:
    done = demo(tmp_path / "out", "--data", str(tmp_path / "nowhere"))
    assert done.returncode == 4
    assert "nowhere" in done.stderr.splitlines()[-1]
    assert json.loads(done.stdout)["error"]["exit_code"] == 4
