"""`fedmpq simulate`: options, configuration files, refusals."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from fedmpq.cli.simulate import command
from fedmpq.errors import ConfigError, FedmpqError, UsageError

SMALL = ["--clients", "3", "--rounds", "1", "--train", "96", "--test", "40", "--batch", "16", "--iid", "--workers", "1"]


def called(*arguments: str) -> dict[str, Any]:
    result = CliRunner().invoke(command, [*arguments, "--json"], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    found: dict[str, Any] = json.loads(result.stdout)
    return found


def refused(kind: type[FedmpqError], *arguments: str) -> str:
    with pytest.raises(kind) as caught:
        CliRunner().invoke(command, list(arguments), catch_exceptions=False, standalone_mode=False)
    return str(caught.value)


def test_a_file_gives_the_defaults_and_the_command_line_wins(tmp_path: Path) -> None:
    path = tmp_path / "experiment.toml"
    path.write_text(
        "clients = 3\nrounds = 2\ntrain = 96\ntest = 40\nbatch = 16\niid = true\nworkers = 1\n"
        "strategy = ['aqfl']\nbudgets = [2, 4, 8]\n[set]\nlasso = 0.5\nscale = 'max'\n"
    )
    result = called("--config", str(path), "--rounds", "1", "--out", str(tmp_path / "out"))
    (run,) = result["runs"]
    assert run["strategy"] == "aqfl"
    assert len(run["rounds"]) == 1
    assert (run["config"]["lasso"], run["config"]["scale"]) == (0.5, "max")
    assert sorted(result["budgets"].values()) == [2, 4, 8]
    assert {path.name for path in (tmp_path / "out").iterdir()} >= {"result.json", "table.md", "accuracy.png"}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("speed = 3\n", "unknown key 'speed'"),
        ("rounds = \n", "line 1"),
        ("set = 3\n", "set = 3 is no table"),
    ],
)
def test_bad_files_are_named(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "experiment.toml"
    path.write_text(text)
    problem = refused(ConfigError, "--config", str(path))
    assert message in problem
    assert "experiment.toml" in problem


def test_refusals_name_the_way_out(tmp_path: Path) -> None:
    assert "unknown strategy 'best'" in refused(ConfigError, *SMALL, "--strategy", "best")
    assert "a budget of 0.5 bits is impossible" in refused(UsageError, *SMALL, "--budgets", "2,0.5")
    assert "unknown preset 'table7'" in refused(ConfigError, "--preset", "table7")
    assert "--scale goes with --preset" in refused(UsageError, "--scale", "full")
    assert "--rounds cannot be combined" in refused(UsageError, "--preset", "table1", "--rounds", "3")
    assert "matches no run of table1" in refused(UsageError, "--preset", "table1", "--only", "fedmax*")
    for text, message in (
        ("robust=referee", "needs images to judge with (--referee COUNT"),
        ("strategy=aqfl", "strategy = 'aqfl' (the strategy is chosen by --strategy)"),
        ("min_devices=4", "min_devices = 4 exceeds the 3 clients"),
        ("policy=walkk", "policy = 'walkk' (one of"),
        ("run=My Run", "run = 'My Run'"),
    ):
        assert message in refused(ConfigError, *SMALL, "--set", text, "--out", str(tmp_path / "refused"))
    both = ["--strategy", "fedmpq", "--strategy", "fedavg", "--set", "per_round=2"]
    assert "per_round = 2 is for integer runs" in refused(
        ConfigError, *SMALL, *both, "--out", str(tmp_path / "refused")
    )
    assert not (tmp_path / "refused").exists()
    called(*SMALL, "--strategy", "aqfl", "--out", str(tmp_path))
    changed = [*SMALL, "--strategy", "aqfl", "--out", str(tmp_path)]
    assert "epochs = 1, not 2" in refused(ConfigError, *changed, "--epochs", "2")
    assert "test = 40, not 30" in refused(ConfigError, *changed, "--test", "30")


def test_costs_are_those_of_the_clients_that_trained(tmp_path: Path) -> None:
    result = called(*SMALL, "--set", "per_round=1", "--out", str(tmp_path))
    (run,) = result["runs"]
    assert len(run["rounds"][0]["devices"]) == 1
    assert f"| fedmpq | {run['bytes_up']:,} | {run['bytes_down']:,} |" in (tmp_path / "table.md").read_text()
