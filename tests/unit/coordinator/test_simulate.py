"""Simulated runs: resumable, independent of engine and workers."""

from __future__ import annotations

from pathlib import Path

import pytest

from fedmpq.coordinator import rounds, strategies
from fedmpq.coordinator.config import RunConfig
from fedmpq.coordinator.service import make_config, parse_setting, read_config, stored_run
from fedmpq.coordinator.simulate import Simulation
from fedmpq.coordinator.source import Source
from fedmpq.errors import ConfigError, UsageError
from tests.helpers.fleet import LAYOUT, PROGRAM, config, first_model, samples

ORIGIN = Source(PROGRAM, LAYOUT, first_model, "tiny")
CLIENTS = {name: samples(40, number) for number, name in enumerate(["a", "b", "c"])}
BUDGETS = {"a": 2, "b": 4.5, "c": 8}


def simulation(path: Path, *, engine: str = "core", workers: int = 1, **values: object) -> Simulation:
    made = config(**{"budgets": BUDGETS, **values})
    return Simulation(path, made, ORIGIN, CLIENTS, samples(50, 9), engine=engine, workers=workers)


def result(made: Simulation) -> str:
    made.play()
    model = made.run.journal.meta("model")
    made.close()
    assert model is not None
    return model


def test_engines_and_workers_change_no_byte(tmp_path: Path) -> None:
    models = {
        result(simulation(tmp_path / "one")),
        result(simulation(tmp_path / "three", workers=3)),
        result(simulation(tmp_path / "torch", engine="torch")),
    }
    assert len(models) == 1


def test_budgets_are_those_of_the_configuration(tmp_path: Path) -> None:
    made = simulation(tmp_path)
    facts = made.play()
    made.close()
    for row in facts["rounds"]:
        assert {d["device"]: d["budget_bits"] <= BUDGETS[d["device"]] for d in row["devices"]} == dict.fromkeys(
            "abc", True
        )
        for device in row["devices"]:
            assert LAYOUT.average_bits(device["bits"]) <= BUDGETS[device["device"]]


def test_an_interrupted_simulation_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = result(simulation(tmp_path / "whole", rounds=3))
    made = simulation(tmp_path / "stopped", rounds=3)
    real = rounds.aggregate_round

    def stop(run: object, row: dict[str, object]) -> None:
        if row["round"] == 2:
            raise KeyboardInterrupt
        real(run, row)  # type: ignore[arg-type]

    with monkeypatch.context() as patch:
        patch.setattr(rounds, "aggregate_round", stop)
        with pytest.raises(KeyboardInterrupt):
            made.play()
    made.close()
    assert result(simulation(tmp_path / "stopped", rounds=3)) == whole


def test_server_momentum_and_the_policy_of_training_noise_take_part(tmp_path: Path) -> None:
    plain, moved, walk = (
        result(simulation(tmp_path / name, rounds=2, **values))
        for name, values in (("plain", {}), ("moved", {"server_momentum_q15": 1 << 14}), ("walk", {"policy": "walk"}))
    )
    assert len({plain, moved, walk}) == 3
    # Nothing has moved before the first round.
    first = {result(simulation(tmp_path / f"first-{q15}", rounds=1, server_momentum_q15=q15)) for q15 in (0, 1 << 14)}
    assert len(first) == 1


def test_a_resumed_run_with_another_configuration_names_the_key(tmp_path: Path) -> None:
    result(simulation(tmp_path, rounds=1))
    with pytest.raises(ConfigError, match="epochs = 1, not 2"):
        simulation(tmp_path, rounds=1, epochs=2)
    stored = stored_run(tmp_path)
    assert stored is not None
    assert stored[0].budgets == BUDGETS
    assert stored[1].program == PROGRAM
    assert stored_run(tmp_path / "none") is None


@pytest.mark.parametrize("name", sorted(strategies.STRATEGIES))
def test_every_strategy_makes_a_configuration(name: str) -> None:
    made = make_config(name, {"rounds": 3})
    assert made.strategy == name
    assert made.rounds == 3
    if name.startswith("aqfl"):
        assert (made.policy, made.lasso, made.prune_density) == ("uniform", 0, 0)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"lr": "fast"}, "lr = 'fast'.* wrong type"),
        ({"rounds": 0}, "rounds = 0 is outside"),
        ({"scale": "min"}, "scale = 'min'"),
        ({"speed": 1}, "unknown key 'speed'"),
        ({"act_bits": 5}, "act_bits = 5"),
        ({"batch": 4, "micro_batch": 8}, "micro_batch = 8 exceeds batch = 4"),
        ({"budgets": {"a": 9}}, "a has 9 bits"),
        ({"budgets": [1]}, "must map device names"),
        ({"rounds": True}, "rounds = True.* wrong type"),
    ],
)
def test_bad_configurations_name_the_key(values: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        make_config("fedmpq", values)


def test_unknown_strategy_lists_the_names() -> None:
    with pytest.raises(ConfigError, match="unknown strategy 'fedmax'"):
        make_config("fedmax", {})


def test_configuration_files_name_file_and_place(tmp_path: Path) -> None:
    path = tmp_path / "run.toml"
    path.write_text("rounds = 4\nstrategy = 'aqfl'\n[budgets]\na = 2\n")
    assert read_config(path) == {"rounds": 4, "strategy": "aqfl", "budgets": {"a": 2}}
    path.write_text("rounds = \n")
    with pytest.raises(ConfigError, match=r"run\.toml: .*line 1"):
        read_config(path)
    path.write_text("round = 1\n")
    with pytest.raises(ConfigError, match=r"run\.toml: unknown key 'round'"):
        read_config(path)
    with pytest.raises(ConfigError, match="cannot be read"):
        read_config(tmp_path / "none.toml")
    assert parse_setting("lr=0.5") == ("lr", 0.5)
    assert parse_setting("scale=mse") == ("scale", "mse")
    with pytest.raises(UsageError):
        parse_setting("lr")


def test_the_learning_rate_follows_its_schedule() -> None:
    made = RunConfig(rounds=10, lr=0.1, lr_final=0.02, schedule="cosine")
    rates = [made.rate(number) for number in range(1, 11)]
    assert rates[0] == pytest.approx(0.1)
    assert rates == sorted(rates, reverse=True)
    assert rates[-1] > 0.02
    assert RunConfig(rounds=10, schedule="constant").rate(10) == 0.1
    assert RunConfig(rounds=10, schedule="linear", lr_final=0.0).rate(6) == pytest.approx(0.05)
