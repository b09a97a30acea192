"""Simulated runs: resumable, independent of engine and workers."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from fedmpq.coordinator import control, model_export, rounds, strategies
from fedmpq.coordinator.config import RunConfig
from fedmpq.coordinator.service import (
    Service,
    Where,
    check_same_model,
    make_config,
    parse_setting,
    read_config,
    stored_run,
)
from fedmpq.coordinator.simulate import Simulation
from fedmpq.coordinator.source import Source
from fedmpq.errors import ConfigError, NetworkError, RoundError, StateError, UsageError
from fedmpq.export.budget import average_bits
from tests.helpers import programs
from tests.helpers.fleet import LAYOUT, PROGRAM, config, first_model, samples
from tests.helpers.origins import origin_of

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
            assert average_bits(device["bits"], LAYOUT.thetas) <= BUDGETS[device["device"]]


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


def test_a_referee_without_images_is_refused_before_the_run_is_journalled(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="needs images to judge with"):
        Service(tmp_path / "run", config(robust="referee"), ORIGIN, None, Where())
    assert not (tmp_path / "run").exists()


def test_a_run_goes_on_with_its_own_model_only(tmp_path: Path) -> None:
    made, directory = config(), tmp_path / "run"
    with pytest.raises(NetworkError):  # after the run was journalled
        Service(directory, made, ORIGIN, None, Where(broker="mqtt://127.0.0.1:1", insecure=True))
    stored = stored_run(directory)
    assert stored is not None
    known = stored[1]
    assert known.name == "tiny"
    check_same_model(directory, made, known, "tiny")
    for name in ("resnet20", "absent.fmpq"):
        with pytest.raises(StateError, match=f"holds a run of model tiny, not {name}"):
            check_same_model(directory, made, known, name)
    same, other = tmp_path / "same.fmpq", tmp_path / "other.fmpq"
    for path, source in ((same, ORIGIN), (other, origin_of(programs.resnet(size=(8, 8, 1), width=8), "other"))):
        journal = tmp_path / path.stem
        run = Simulation(journal, made, source, {}, None).run
        model_export.export(run.journal, journal, 4, 0, path)
        run.close()
    check_same_model(directory, made, known, str(same))
    with pytest.raises(StateError, match=rf"program {LAYOUT.program[:12]}, not \w+ of .*other\.fmpq"):
        check_same_model(directory, made, known, str(other))
    # The journal of an older build has no name: only a file can be compared.
    check_same_model(directory, made, replace(known, name="journal"), "resnet20")


def test_a_simulation_that_cannot_move_says_so(tmp_path: Path) -> None:
    made = simulation(tmp_path / "few", min_devices=4)
    with pytest.raises(RoundError, match="stands still, waiting for devices: 3 of at least 4"):
        made.play()
    made.close()
    made = simulation(tmp_path / "cancelled")
    (tmp_path / "cancelled" / "request").write_text("cancel")
    with pytest.raises(RoundError, match=r"cancelled .*resume"):
        made.play()
    made.close()
    assert control.ask(tmp_path / "cancelled", "resume", 0.0) == "running"
    assert result(simulation(tmp_path / "cancelled")) == result(simulation(tmp_path / "plain"))


def test_a_paused_simulation_waits_and_goes_on(tmp_path: Path) -> None:
    said: list[str] = []

    def say(line: str) -> None:
        said.append(line)
        (tmp_path / "run" / "request").write_text("resume")

    made = Simulation(tmp_path / "run", config(budgets=BUDGETS), ORIGIN, CLIENTS, samples(50, 9), workers=1, say=say)
    (tmp_path / "run" / "request").write_text("pause")
    assert result(made) == result(simulation(tmp_path / "plain"))
    assert said == ["waiting for the operator: the run is paused (`fedmpq coordinator resume`)"]


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
        ({"policy": "walkk"}, r"policy = 'walkk' \(one of literal, .*walk"),
        ({"run": "My Run"}, r"run = 'My Run' \(lower-case letters"),
    ],
)
def test_bad_configurations_name_the_key(values: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        make_config("fedmpq", values)


def test_unknown_strategy_lists_the_names() -> None:
    with pytest.raises(ConfigError, match="unknown strategy 'fedmax'"):
        make_config("fedmax", {})
    with pytest.raises(ConfigError, match=r"strategy = \['fedmpq'\].* wrong type"):
        make_config(["fedmpq"], {})  # type: ignore[arg-type]


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
    path.write_text("strategy = ['fedmpq']\n")
    with pytest.raises(ConfigError, match=r"run\.toml: strategy = \['fedmpq'\].* wrong type"):
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
