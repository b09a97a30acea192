"""The demo's memory limits give its four budgets, and its parts fit together without starting a process."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
from click.testing import CliRunner

from fedmpq.coordinator import admission
from fedmpq.coordinator.run_state import noise_of
from fedmpq.demo import plot
from fedmpq.demo.federation import config_of, memory_limits, prepare
from fedmpq.demo.fleet import DeviceProcess, Member
from fedmpq.demo.scenario import BUDGETS, scenario_for
from fedmpq.edge_runtime.shard import Shard
from fedmpq.errors import DataError, RoundError

DIGITS = replace(scenario_for("digits"), train_images=400)


def test_the_limits_lead_to_the_budgets_under_both_methods(tmp_path: Path) -> None:
    stage = prepare(DIGITS, alpha=0.5, seed=1, folder=tmp_path)
    for strategy in ("fedmpq", "aqfl"):
        config = config_of(DIGITS, strategy, 1)
        plan_bytes = admission.planner_of(stage.source.program, config.settings)
        noise = noise_of(config.policy, stage.source.initial(), config.scale)
        allot = admission.Allotter(config.policy, stage.source.layout.thetas, plan_bytes, noise)
        found = [allot(member.memory_limit, 8 * 16) for member in stage.members]
        assert [round(allotment.budget16 / 16) for allotment in found] == list(BUDGETS)
        for member, allotment in zip(stage.members, found, strict=True):
            assert allotment.planned_bytes <= member.memory_limit


def test_the_data_are_divided_without_loss(tmp_path: Path) -> None:
    stage = prepare(DIGITS, alpha=0.5, seed=1, folder=tmp_path)
    assert sum(stage.samples) == 400
    for member, count in zip(stage.members, stage.samples, strict=True):
        with Shard(member.shard) as shard:
            assert shard.count == count
    limits = memory_limits(stage.source, config_of(DIGITS, "fedmpq", 1))
    assert list(limits) == sorted(set(limits))


@pytest.mark.parametrize("data", ["digits", "fashion-mnist", "cifar10", "photos.zip"])
def test_every_scenario_is_a_valid_configuration(data: str) -> None:
    for strategy in ("fedmpq", "aqfl"):
        assert config_of(scenario_for(data), strategy, 7).min_devices == len(BUDGETS)


def test_data_that_are_not_there_are_one_line(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="nowhere"):
        prepare(scenario_for(str(tmp_path / "nowhere")), 0.5, 1, tmp_path / "work")


def test_a_device_that_fails_is_named_with_its_last_words(tmp_path: Path) -> None:
    member = Member("device-2", tmp_path / "absent.shard", 1000)
    device = DeviceProcess(member, "mqtt://127.0.0.1:1", "demo", tmp_path)
    device.start()
    device.stop(30.0)
    with pytest.raises(RoundError, match=r"device-2 ended with exit code 4: .*absent\.shard"):
        device.check()


def test_the_picture_is_drawn_from_a_result(tmp_path: Path) -> None:
    devices = [
        {"device": f"device-{b}", "bits": float(b), "limit_bytes": b * 1000, "measured_bytes": b * 990, "bytes_up": b}
        for b in BUDGETS
    ]
    rounds = [{"round": r, "accuracy": 50.0 + r, "devices": devices} for r in (1, 2)]
    for aqfl in (None, {"rounds": rounds}):
        plot.draw({"data": "digits", "alpha": 0.5, "rounds": rounds, "aqfl": aqfl}, tmp_path / "demo.png")
        assert (tmp_path / "demo.png").read_bytes().startswith(b"\x89PNG")


def test_help_has_an_example_and_bad_options_are_refused() -> None:
    from fedmpq.cli.demo import command

    done = CliRunner().invoke(command, ["--help"])
    assert "fedmpq demo --data fashion-mnist" in done.output
    assert CliRunner().invoke(command, ["--alpha", "0"]).exit_code == 2
    assert json.dumps(BUDGETS) == "[2, 4, 6, 8]"
